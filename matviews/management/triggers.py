"""What the command does with the triggers that log changes."""

from django.core.management.base import CommandError
from django.db import DatabaseError, connections
from django.db.transaction import TransactionManagementError

from matviews import changes, engine
from matviews.presentation import pluralize
from matviews.redact import error_words

from .options import refusal
from .requests import Requests

__all__ = ["triggers"]


def triggers(requests: Requests) -> None:
    """Make the triggers, remove them, or show the SQL that makes them.

    Raises:
        CommandError: the database refused, somebody held a table for too long, or the command is called in a
            transaction that it would commit.
    """
    requests.output.subject = "triggers"
    try:
        _ACTIONS[requests.asked.triggers or "sql"](requests)
    except TransactionManagementError as error:
        raise refusal(
            f"{error} Call update_materialized_views outside transaction.atomic()."
        ) from error
    except DatabaseError as error:
        advice = engine.denied_for(error)
        if not advice and connections[engine.alias()].connection is not None:
            advice = (
                "--triggers sql shows the SQL for a person who may create triggers; "
                "--triggers install afterwards tells matviews that they are there."
            )
        raise CommandError(f"{error_words(error)} {advice}".strip()) from error


def _install(requests: Requests) -> None:
    output = requests.output
    faults = changes.install(engine.alias())
    problems = list(changes.find_problems(engine.alias()))
    output.entries.append({"untracked": faults, "problems": problems})
    for problem in problems:
        output.say(problem)
    if changes.HELD in faults.values():
        raise CommandError("Some tables have to wait for others that write to them: run it again.")
    if not problems:
        output.say("Every table that a tracked view reads has its triggers.")


def _remove(requests: Requests) -> None:
    removed = changes.remove(engine.alias())
    requests.output.entries.append({"removed": removed})
    requests.output.say(
        f"{pluralize(len(removed), 'trigger')} removed. Each refresh is a full pass until they are back."
    )


def _sql(requests: Requests) -> None:
    sql = changes.script(engine.alias())
    requests.output.entries.append({"sql": sql})
    find = changes.find_untrackable if sql else changes.find_problems
    comments = [f"-- {problem}" for problem in find(engine.alias())]
    said = "\n".join(filter(None, [*comments, sql]))
    requests.output.say(said or "-- Every table that a tracked view reads has its triggers.")


_ACTIONS = {"install": _install, "remove": _remove, "sql": _sql}
