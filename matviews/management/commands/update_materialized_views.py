"""Refresh views from the command line, or see how they stand."""

import argparse
import getpass
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, cast

from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper
from django.db import DatabaseError
from rich.console import Console

from matviews import engine, tasks
from matviews.exceptions import MatviewsError
from matviews.management import progress, tables
from matviews.models import Refresh, Trigger
from matviews.phases import Phase
from matviews.registry import registry
from matviews.states import RefreshState
from matviews.tasks import inline

__all__ = ["Command"]

INTERRUPTED = 130  # what a shell reports of a program that SIGINT ended


class Command(BaseCommand):
    """`update_materialized_views`: the same batches as the workers', here or through the broker."""

    help = (
        "Bring materialized views up to date, in this process. Without --models: every view that "
        "is enabled and included in batches. Workers may refresh the same views meanwhile."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--models",
            type=_names,
            help="views, as app_label.ModelName or ModelName, separated by commas",
        )
        parser.add_argument(
            "--phases",
            type=_names,
            help=f"phases to run, separated by commas: {', '.join(Phase)}; all by default",
        )
        parser.add_argument(
            "--batch-size",
            type=_batch_size,
            help="rows per batch; by default each view paces itself",
        )
        parser.add_argument(
            "--format", choices=("text", "json"), default="text", help="how to print results"
        )
        instead = parser.add_mutually_exclusive_group()
        instead.add_argument("--list", action="store_true", help="show the state of every view")
        instead.add_argument(
            "--check", action="store_true", help="exit with status 1 if a view is not fresh"
        )
        instead.add_argument(
            "--enqueue", action="store_true", help="leave the work to Celery workers"
        )

    def handle(self, **options: Any) -> None:
        """Do what was asked for.

        Raises:
            CommandError: a view failed, is not fresh, or cannot be refreshed; exit status 1, or
                130 after Ctrl-C.
        """
        self.options = options
        self.as_json = options["format"] == "json"
        try:
            if options["list"]:
                self._list()
                return
            labels = [registry.find(name).label for name in options["models"] or ()]
            labels = list(dict.fromkeys(labels)) or engine.views_in_batch()
            if options["check"]:
                self._check(labels)
            elif options["enqueue"]:
                self._enqueue(labels)
            else:
                self._refresh(labels)
        except MatviewsError as error:
            raise CommandError(str(error)) from error
        except DatabaseError as error:
            raise CommandError(
                f"The database refused ({type(error).__name__}: {error}). What was committed stays, "
                f"and an open refresh goes on with the next run or worker. If tables of matviews or "
                f"of a view are missing, run `manage.py migrate`."
            ) from error

    def _list(self) -> None:
        statuses = engine.view_statuses()
        if self.as_json:
            self._print_json([tables.status_as_dict(status) for status in statuses])
        elif statuses:
            self._console().print(tables.status_table(statuses))
        else:
            self.stdout.write("No view is defined.")

    def _check(self, labels: list[str]) -> None:
        fresh = {label: engine.is_fresh(label, phases=self._phases_of(label)) for label in labels}
        if self.as_json:
            self._print_json([{"view": label, "fresh": fresh[label]} for label in labels])
        else:
            for label in labels:
                self.stdout.write(f"{label}: {'fresh' if fresh[label] else 'not fresh'}")
        if not all(fresh.values()):
            raise CommandError(f"{list(fresh.values()).count(False)} of {len(fresh)} not fresh.")

    def _enqueue(self, labels: list[str]) -> None:
        failed: list[str] = []
        asked = []
        for label in labels:
            if refresh := self._request(label, failed):
                sent = tasks.dispatch(refresh.view_id)
                asked.append({"view": label, "refresh": refresh.pk, "sent": sent})
        if self.as_json:
            self._print_json(asked)
        else:
            for entry in asked:
                how = (
                    ""
                    if entry["sent"]
                    else (
                        ": recorded, but the broker took no message; watch sends it when the broker "
                        "is back"
                    )
                )
                self.stdout.write(f"{entry['view']}: refresh {entry['refresh']} requested{how}")
        self._raise_failed(failed, labels)

    def _refresh(self, labels: list[str]) -> None:
        failed: list[str] = []
        done: list[dict[str, Any]] = []
        reporter = self._reporter()
        with _interruptible(self.stderr.write) as interrupted:
            try:
                for label in labels:
                    if refresh := self._request(label, failed):
                        refresh = inline.run_to_end(
                            refresh, on_report=reporter.report, stop=interrupted
                        )
                        done.append(tables.refresh_as_dict(label, refresh))
                        self._tell_failure(label, refresh, failed)
                    if interrupted():
                        break
            finally:
                reporter.close()
        if self.as_json:
            self._print_json(done)
        if interrupted():
            self._raise_interrupted(done, labels)
        self._raise_failed(failed, labels)

    def _request(self, label: str, failed: list[str]) -> Refresh | None:
        try:
            return engine.request(
                label,
                phases=self._phases_of(label),
                trigger=Trigger.COMMAND,
                requested_by=_user(),
                batch_size=self.options["batch_size"],
            )
        except MatviewsError as error:
            failed.append(label)
            self.stderr.write(f"{label}: {error}")
            return None

    def _phases_of(self, label: str) -> list[str] | None:
        """The phases asked for; those that a view lacks are left out unless it was named."""
        asked = self.options["phases"]
        if asked and not self.options["models"] and set(asked) <= set(Phase):
            asked = [phase for phase in registry.find(label).options.phases if phase in asked]
        return list(asked) if asked is not None else None

    def _tell_failure(self, label: str, refresh: Refresh, failed: list[str]) -> None:
        if refresh.state == RefreshState.FAILED:
            failed.append(label)
            for line in refresh.error.splitlines():
                self.stderr.write(f"{label} {line}")
        elif refresh.state == RefreshState.OPEN and not refresh.view.enabled:
            failed.append(label)
            self.stderr.write(f"{label}: was disabled meanwhile; it goes on when it is enabled.")

    def _raise_failed(self, failed: list[str], labels: list[str]) -> None:
        if failed:
            raise CommandError(f"{len(failed)} of {len(labels)} views failed: {', '.join(failed)}.")

    def _raise_interrupted(self, done: list[dict[str, Any]], labels: list[str]) -> None:
        closed = [entry for entry in done if entry["state"] != RefreshState.OPEN]
        so_far = [
            f"{entry['view']} {run['phase']}: {run['rows']:,} rows"
            for entry in done
            if entry["state"] == RefreshState.OPEN
            for run in entry["phases"]
            if run["batches"]
        ]
        raise CommandError(
            f"Interrupted after {len(closed)} of {len(labels)} views"
            f"{' (' + '; '.join(so_far) + ')' if so_far else ''}. What was committed stays; the "
            f"next run, or a worker, goes on from there.",
            returncode=INTERRUPTED,
        )

    def _reporter(self) -> progress.Reporter:
        if self.as_json:
            return progress.Silence()
        console = self._console()
        return progress.Bars(console) if console.is_terminal else progress.Lines(self.stdout.write)

    def _console(self) -> Console:
        plain = self.options["no_color"] or None
        return Console(file=cast("IO[str]", _Unended(self.stdout)), no_color=plain)

    def _print_json(self, value: object) -> None:
        self.stdout.write(json.dumps(value, indent=2))


class _Unended:
    """Django's output as a plain file: it would end each piece that rich writes with a newline."""

    def __init__(self, output: OutputWrapper) -> None:
        self.write = partial(output.write, ending="")
        self.flush = output.flush
        self.isatty = output.isatty


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("name at least one")
    return names


def _batch_size(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""


@contextmanager
def _interruptible(write: Any) -> Iterator[Any]:
    """Let the first Ctrl-C be a wish to stop between batches; the second interrupts."""
    pressed = False

    def note(_number: int, _frame: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        write("Stopping after this batch; Ctrl-C again interrupts it.")

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread, where no Ctrl-C arrives
        yield lambda: False
        return
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
