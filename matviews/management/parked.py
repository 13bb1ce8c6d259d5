"""`--parked`: the keys that refreshes leave out, and retrying them."""

from typing import Any

from django.core.management.base import CommandError

from matviews import engine
from matviews.databases.keys import shown, to_json
from matviews.engine import Parked
from matviews.presentation import format_time, pluralize
from matviews.redact import in_one_line, may_show_keys

from .targets import Targets

__all__ = ["parked"]


def parked(targets: Targets) -> None:
    """Show the parked keys of views; with `--retry`, the next refresh tries them again.

    Raises:
        CommandError: keys are parked, and they are not to be tried again.
    """
    labels = [
        label for label in targets.labels() if _report(label, engine.list_parked(label), targets)
    ]
    if labels and not targets.options.retry:
        raise CommandError(
            f"Keys of {', '.join(labels)} are parked. Fix the data or source(); the keys are "
            f"retried automatically, or by the next refresh after --parked --retry."
        )


def _report(label: str, keys: list[Parked], targets: Targets) -> bool:
    """Show the parked keys of one view; whether there are any."""
    retried = targets.options.retry and engine.retry_parked(label) > 0
    targets.output.entries.append(
        {"view": label, "parked": list(map(_as_dict, keys)), "retried": retried, "error": ""}
    )
    again = "; the next refresh tries them again" if retried else ""
    targets.output.say(f"{label}: {pluralize(len(keys), 'key')} parked{again}")
    for each in keys:
        targets.output.say(f"  {each.phase} {_key_in_words(each)}: {in_one_line(each.message)}")
        if not retried:
            tries = pluralize(each.tries, "time")
            when = format_time(each.retry_at)
            targets.output.say(f"    failed {tries}; next try after {when}")
    return bool(keys)


def _key_in_words(each: Parked) -> str:
    left_out = "(key left out, see MATVIEWS['VALUES_IN_ERRORS'])"
    return shown(each.key) if may_show_keys() else left_out


def _as_dict(each: Parked) -> dict[str, Any]:
    return {
        "phase": each.phase,
        "key": to_json(each.key) if may_show_keys() else None,
        "error_class": each.error_class,
        "code": each.code,
        "constraint": each.constraint,
        "columns": list(each.columns),
        "message": each.message,
        "first_seen": each.first_seen.isoformat(),
        "last_seen": each.last_seen.isoformat(),
        "tries": each.tries,
        "retry_at": each.retry_at.isoformat(),
    }
