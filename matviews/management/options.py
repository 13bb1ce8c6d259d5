"""The command's options, held against each other before anything is done."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from django.core.management.base import CommandError, CommandParser

from matviews.exceptions import UnknownView
from matviews.limits import BATCH_SIZE, SAMPLE_SIZE, Range
from matviews.phases import Phase
from matviews.registry import registry

__all__ = ["REFUSED", "Asked", "add_arguments", "refusal", "understand"]

REFUSED = 2  # exit status when nothing was done because of what was asked
ACTIONS = ("list", "schedules", "check", "verify", "explain", "triggers", "enqueue")
PARTS = {
    "repair": "verify",
    "sample": "verify",
    "pending": "check",
    "no_sql": "explain",
}  # options of one action
TRIGGERS = ("install", "remove", "sql")
SENSELESS = {
    ("list", "phases"): "--list shows the state of views, whatever their phases",
    ("list", "batch_size"): "--list runs no batches",
    ("schedules", "phases"): "--schedules shows every schedule of a view",
    ("schedules", "batch_size"): "--schedules runs no batches",
    ("check", "batch_size"): "--check runs no batches",
    ("verify", "phases"): "--verify compares whole rows",
    ("verify", "batch_size"): "--verify runs no batches",
    ("explain", "phases"): "--explain shows every phase",
    ("explain", "batch_size"): "--explain runs no batches",
    ("triggers", "models"): "--triggers is about the tables that any view reads",
    ("triggers", "phases"): "--triggers is about tables",
    ("triggers", "batch_size"): "--triggers runs no batches",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the command is to do.

    Attributes:
        action: one of `ACTIONS`, or "refresh".
        labels: the views that were named, () if none were.
        phases: the phases that were named, in their order, None for all.
        batch_size: rows per batch, None to leave it to the views.
        pending: whether a check is to ask for pending changes, not for the targets.
        repair: whether to write what a verification finds different.
        sample: keys that a verification compares, None for all.
        sql: whether an explanation is to have the SQL.
        triggers: what to do about triggers, one of `TRIGGERS`; None if that was not asked.
    """

    action: str
    labels: tuple[str, ...]
    phases: tuple[Phase, ...] | None
    batch_size: int | None
    pending: bool
    repair: bool
    sample: int | None
    sql: bool
    triggers: str | None


def add_arguments(parser: CommandParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--models", nargs="+", action="extend", metavar="VIEW",
        help="views as app_label.ModelName, or ModelName where that is unique, separated by commas",
    )  # fmt: skip
    parser.add_argument(
        "--phases", nargs="+", action="extend", metavar="PHASE",
        help=f"phases to run, of {', '.join(Phase)}, separated by commas; all by default",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", metavar="N", help="rows per batch; by default each view paces itself"
    )
    parser.add_argument(
        "--format", choices=("text", "json"), default="text",
        help="json: one document on stdout, errors inside and on stderr",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="show the state of every view")
    parser.add_argument(
        "--schedules", action="store_true", help="show what beat asks for, and when"
    )
    parser.add_argument(
        "--check", action="store_true",
        help="change nothing; exit status 1 if a view is not on time: failed, or older than its target allows",
    )  # fmt: skip
    parser.add_argument(
        "--pending", action="store_true",
        help="with --check: exit status 1 if the source of a view has changed since its last refresh",
    )  # fmt: skip
    parser.add_argument(
        "--verify", action="store_true",
        help="compare views with what their source() yields now; exit status 1 if one differs",
    )  # fmt: skip
    parser.add_argument(
        "--repair", action="store_true", help="with --verify: write what differs, and only that"
    )
    parser.add_argument(
        "--sample", metavar="N", help="with --verify: compare about so many keys, at random"
    )
    parser.add_argument(
        "--explain", action="store_true",
        help="show how views are derived from their source(): path, indexes, SQL",
    )  # fmt: skip
    parser.add_argument("--no-sql", action="store_true", help="with --explain: leave the SQL out")
    parser.add_argument(
        "--triggers", choices=TRIGGERS,
        help="make, or remove, the triggers that log changes; sql: show the SQL that makes them",
    )  # fmt: skip
    parser.add_argument("--enqueue", action="store_true", help="leave the work to Celery workers")


def understand(options: Mapping[str, Any]) -> Asked:
    """Read the options as given on the command line or to `call_command`.

    Raises:
        CommandError: they name what is not there, or do not go together.
    """
    actions = [action for action in ACTIONS if options[action]]
    if len(actions) > 1:
        raise refusal(f"Choose one of {' and '.join(f'--{action}' for action in actions)}.")
    for (action, other), reason in SENSELESS.items():
        if actions == [action] and options[other] is not None:
            raise refusal(f"{reason}: leave out --{other.replace('_', '-')}.")
    for option, action in PARTS.items():
        if actions != [action] and options[option] not in (None, False):
            name = option.replace("_", "-")
            raise refusal(f"--{name} is for --{action}: add that, or leave it out.")
    if actions == ["check"] and options["phases"] is not None and not options["pending"]:
        raise refusal("--check is about whole views: leave out --phases, or add --pending.")
    return Asked(
        action=actions[0] if actions else "refresh",
        labels=_labels(options["models"]),
        phases=_phases(options["phases"]),
        batch_size=_number(options["batch_size"], "batch-size", BATCH_SIZE),
        pending=options["pending"],
        repair=options["repair"],
        sample=_number(options["sample"], "sample", SAMPLE_SIZE),
        sql=not options["no_sql"],
        triggers=options["triggers"],
    )


def _labels(given: str | Iterable[str] | None) -> tuple[str, ...]:
    labels, faults = [], []
    for name in _names(given, "models") or ():
        try:
            labels.append(registry.find(name).label)
        except UnknownView as error:
            faults.append(str(error))
    if faults:
        raise refusal(" ".join(faults))
    return tuple(dict.fromkeys(labels))


def _phases(given: str | Iterable[str] | None) -> tuple[Phase, ...] | None:
    names = _names(given, "phases")
    if names is None:
        return None
    asked = {name.lower() for name in names}
    for name in sorted(asked - set(Phase)):
        near = get_close_matches(name, list(Phase), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Phases are {', '.join(Phase)}."
        raise refusal(f"There is no phase {name!r}. {hint}")
    return tuple(phase for phase in Phase if phase in asked)


def _names(given: str | Iterable[str] | None, option: str) -> list[str] | None:
    if given is None:
        return None
    pieces = [given] if isinstance(given, str) else given
    names = [name.strip() for piece in pieces for name in piece.split(",") if name.strip()]
    if not names:
        raise refusal(f"--{option} names nothing: name at least one, or leave it out.")
    return names


def _number(given: str | int | None, option: str, limits: Range) -> int | None:
    if given is None:
        return None
    text = str(given).strip()
    number = int(text) if text.isascii() and text.isdecimal() else None
    if number is None or number not in limits:
        raise refusal(f"--{option} must be {limits}, not {text!r}.")
    return number


def refusal(sentence: str) -> CommandError:
    """An error that ends the command before anything was done."""
    return CommandError(sentence, returncode=REFUSED)
