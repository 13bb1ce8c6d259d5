"""`--triggers`: the triggers that log changes."""

from django.core.management.base import CommandError
from django.db import DatabaseError, connections
from django.db.transaction import TransactionManagementError

from matviews import changes, engine
from matviews.presentation import pluralize
from matviews.redact import error_words

from .options import refusal
from .targets import Targets

__all__ = ["triggers"]


def triggers(targets: Targets) -> None:
    """Install the triggers, remove them, or show the SQL that creates them.

    Raises:
        CommandError: the database refused, a table was locked for too long, or the caller is in a
            transaction that this would commit.
    """
    targets.output.subject = "triggers"
    try:
        _ACTIONS[targets.options.triggers or "sql"](targets)
    except TransactionManagementError as error:
        raise refusal(
            f"{error} Call update_materialized_views outside transaction.atomic()."
        ) from error
    except DatabaseError as error:
        advice = engine.denied_for(error)
        if not advice and connections[engine.alias()].connection is not None:
            advice = (
                "--triggers sql prints the SQL, for somebody who may create triggers. "
                "Afterwards, --triggers install records that they exist."
            )
        raise CommandError(f"{error_words(error)} {advice}".strip()) from error


def _install(targets: Targets) -> None:
    output = targets.output
    engine.choose_additive()
    faults = changes.install(engine.alias())
    problems = list(changes.find_problems(engine.alias()))
    output.entries.append({"untracked": faults, "problems": problems})
    for problem in problems:
        output.say(problem)
    if changes.LOCKED in faults.values():
        raise CommandError(
            "Some tables are being written to and could not be locked: run this again."
        )
    if not problems:
        output.say("All triggers are installed.")


def _remove(targets: Targets) -> None:
    removed = changes.remove(engine.alias())
    engine.forget_additive()
    targets.output.entries.append({"removed": removed})
    targets.output.say(
        f"{pluralize(len(removed), 'trigger')} removed. Every refresh is full until they are "
        f"installed again."
    )


def _sql(targets: Targets) -> None:
    engine.choose_additive()
    sql = changes.script(engine.alias())
    targets.output.entries.append({"sql": sql})
    find = changes.find_untrackable if sql else changes.find_problems
    comments = [f"-- {problem}" for problem in find(engine.alias())]
    script = "\n".join(filter(None, [*comments, sql]))
    targets.output.say(script or "-- All triggers are installed.")


_ACTIONS = {"install": _install, "remove": _remove, "sql": _sql}
