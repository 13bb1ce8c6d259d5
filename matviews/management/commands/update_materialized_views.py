"""Refresh views from the command line, or see how they stand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError

from matviews import engine
from matviews.api import NOT_MIGRATED
from matviews.exceptions import MatviewsError
from matviews.management import actions, checking, options, runs, sources, triggers
from matviews.management.output import Output
from matviews.management.requests import Requests
from matviews.queryset import is_missing
from matviews.redact import error_text

__all__ = ["Command"]

MISSING_TABLES = "If tables of matviews or of a view are missing, run `manage.py migrate`."
INTERRUPTED = 130  # what a shell reports of a program that SIGINT ended
ACTIONS: dict[str, Callable[[Requests], None]] = {
    "list": actions.list_views,
    "schedules": actions.list_schedules,
    "check": checking.check,
    "verify": sources.verify,
    "explain": sources.explain,
    "triggers": triggers.triggers,
    "enqueue": actions.enqueue,
    "refresh": runs.refresh,
}


class Command(BaseCommand):
    """`update_materialized_views`: the same batches as the workers', here or through the broker."""

    help = (
        "Bring materialized views up to date, in this process. Without --models: every view that "
        "is enabled and included in batches. Workers may refresh the same views meanwhile. Ctrl-C "
        "or SIGTERM stops between batches, and the next run goes on; a second one interrupts the "
        "batch. Exit status: 0 all succeeded, 1 a view failed, is not on time, has changes pending or "
        "differs, 2 what was asked for makes no sense, 130 or 143 stopped."
    )
    requires_system_checks = ()  # a view with errors fails by itself; the others are refreshed

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        options.add_arguments(parser)

    def handle(self, **given: Any) -> None:
        """Do what was asked for.

        Raises:
            CommandError: a view failed, is not on time, differs or cannot be refreshed, or the command was
                stopped; with the exit status.
        """
        output = Output(
            self,
            as_json=given["format"] == "json",
            verbosity=given["verbosity"],
            no_color=given["no_color"],
        )
        try:
            with _as_command_error():
                asked = options.understand(given)
                ACTIONS[asked.action](Requests(asked=asked, output=output))
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
            f"refresh goes on with the next run or worker. "
            f"{engine.denied_for(error) or MISSING_TABLES}"
        ) from error
    except KeyboardInterrupt as error:
        raise CommandError("Interrupted.", returncode=INTERRUPTED) from error
