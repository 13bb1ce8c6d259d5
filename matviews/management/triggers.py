"""What the command does with the triggers that log changes."""

from django.core.management.base import CommandError
from django.db import DatabaseError

from matviews import changes, engine
from matviews.words import counted

from .requests import Requests

__all__ = ["triggers"]


def triggers(requests: Requests) -> None:
    """Make the triggers, remove them, or show the SQL that makes them.

    Raises:
        CommandError: the database refused.
    """
    requests.output.subject = "triggers"
    try:
        _ACTIONS[requests.asked.triggers or "sql"](requests)
    except DatabaseError as error:
        raise CommandError(
            f"{str(error).strip()} --triggers sql shows the SQL for a person who may create triggers; "
            f"--triggers install afterwards tells matviews that they are there."
        ) from error


def _install(requests: Requests) -> None:
    output = requests.output
    faults = changes.install(engine.alias())
    problems = list(changes.find_problems(engine.alias()))
    output.entries.append({"untracked": faults, "problems": problems})
    for problem in problems:
        output.say(problem)
    if not problems:
        output.say("Every table that a tracked view reads has its triggers.")


def _remove(requests: Requests) -> None:
    removed = changes.remove(engine.alias())
    requests.output.entries.append({"removed": removed})
    requests.output.say(
        f"{counted(len(removed), 'trigger')} removed. Each refresh is a full pass until they are back."
    )


def _sql(requests: Requests) -> None:
    sql = changes.script(engine.alias())
    requests.output.entries.append({"sql": sql})
    requests.output.say(sql or "-- Nothing is lacking.")


_ACTIONS = {"install": _install, "remove": _remove, "sql": _sql}
