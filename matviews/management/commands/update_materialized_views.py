"""Refresh views from the command line, or see their state."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError

from matviews import engine
from matviews.exceptions import NOT_MIGRATED, MatviewsError
from matviews.management import (
    actions,
    checking,
    explain,
    follow,
    graph,
    health,
    options,
    parked,
    refresh,
    triggers,
    verify,
    wave,
)
from matviews.management.output import Output
from matviews.management.targets import Targets
from matviews.queryset import is_missing
from matviews.redact import error_text

__all__ = ["Command"]

MISSING_TABLES = "If tables of matviews or of a view are missing, run `manage.py migrate`."
INTERRUPTED = 130  # exit status of a program that SIGINT ended, as a shell reports it
ACTIONS: dict[str, Callable[[Targets], None]] = {
    "list": actions.list_views,
    "schedules": actions.list_schedules,
    "check": checking.check,
    "verify": verify.verify,
    "parked": parked.parked,
    "explain": explain.explain,
    "graph": graph.graph,
    "triggers": triggers.triggers,
    "wave": wave.wave,
    "health": health.health,
    "follow": follow.follow,
    "enqueue": actions.enqueue,
    "refresh": refresh.refresh,
}


class Command(BaseCommand):
    """`update_materialized_views`: runs batches in this process, or leaves them to workers."""

    help = (
        "Bring materialized views up to date, in this process. Without --models: every view that "
        "is enabled, not paused and included in a refresh of all views. Workers may refresh the "
        "same views meanwhile. Ctrl-C or SIGTERM stops between batches, and the next run "
        "continues; a second one interrupts the batch. Exit status: 0 all succeeded; 1 a view "
        "failed, is not on time, has changes pending or differs; 2 the options are invalid; 3 "
        "--health has found views with a problem; 130 or 143 stopped."
    )
    requires_system_checks = ()  # an invalid view fails alone; the others are refreshed

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        options.add_arguments(parser)

    def handle(self, **given: Any) -> None:
        """Run the action that the options name.

        Raises:
            CommandError: a view failed, is not on time, differs or cannot be refreshed, or the
                command was stopped. It has the exit status.
        """
        output = Output(
            self,
            as_json=given["format"] == "json",
            verbosity=given["verbosity"],
            no_color=given["no_color"],
        )
        try:
            with _as_command_error():
                parsed = options.parse_options(given)
                ACTIONS[parsed.action](Targets(options=parsed, output=output))
        except CommandError as error:
            output.finish(error=str(error))
            raise
        output.finish(error="")


@contextmanager
def _as_command_error() -> Iterator[None]:
    try:
        yield
    except MatviewsError as error:
        raise CommandError(str(error)) from error
    except (DatabaseError, InterfaceError) as error:
        if is_missing(error, engine.alias()):
            raise CommandError(f"{NOT_MIGRATED} ({error_text(error)})") from error
        raise CommandError(
            f"The database refused ({error_text(error)}). What was committed stays, and an open "
            f"refresh continues with the next run or worker. "
            f"{engine.denied_for(error) or MISSING_TABLES}"
        ) from error
    except KeyboardInterrupt as error:
        raise CommandError("Interrupted.", returncode=INTERRUPTED) from error
