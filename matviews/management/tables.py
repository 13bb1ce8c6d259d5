"""The command's results as tables for a person and as plain values for JSON."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from django.utils import timezone
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from matviews.engine import ViewStatus
from matviews.models import PhaseRun, Refresh

from .progress import duration

__all__ = ["print_statuses", "refresh_as_dict", "status_as_dict"]

HEADINGS = ("view", "state", "enabled", "rows", "last success", "lag")
UNCUT = 10_000  # columns of a file: no table is wider


def print_statuses(statuses: Sequence[ViewStatus], console: Console) -> None:
    """How the views stand, a line for each; a paragraph where the terminal is too narrow."""
    if not console.is_terminal:
        console.width = UNCUT
    table = _table(statuses)
    unbound = console.options.update(max_width=UNCUT)
    if Measurement.get(console, unbound, table).minimum <= console.width:
        console.print(table)
    else:
        for status in statuses:
            console.print(_paragraph(status), highlight=False)
    for note in _notes(statuses):
        console.print(note, soft_wrap=True)


def _table(statuses: Iterable[ViewStatus]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in HEADINGS:
        date = heading == "last success"
        table.add_column(
            heading,
            justify="right" if heading == "rows" else "left",
            no_wrap=not date,  # a date may go above its time
            min_width=len(heading),
        )
    for status in statuses:
        table.add_row(*_cells(status))
    return table


def _paragraph(status: ViewStatus) -> Text:
    cells = zip(HEADINGS[2:], _cells(status)[2:], strict=True)
    details = ", ".join(f"{heading} {cell}" for heading, cell in cells if cell)
    return Text.assemble((status.label, "bold"), f"\n  {status.state}, {details}")


def _cells(status: ViewStatus) -> tuple[str, ...]:
    return (
        status.label,
        status.state,
        _enabled(status),
        "?" if status.rows is None else f"{status.rows:,}",
        _moment(status.last_success) if status.last_success else "never",
        duration(status.lag.total_seconds()) if status.lag is not None else "",
    )


def _enabled(status: ViewStatus) -> str:
    if not status.enabled:
        return "no"
    return "yes" if status.include_in_batch else "by name"


def _notes(statuses: Iterable[ViewStatus]) -> Iterator[Text]:
    """What would make the table too wide: who is at work, and the errors."""
    now = timezone.now()
    for status in statuses:
        for worker, since in status.running:
            at_it = duration(max(0.0, (now - since).total_seconds()))
            yield Text(f"{status.label}: running at {worker}, its batch for {at_it}")
        for line in status.error.splitlines():
            yield Text(f"{status.label} {line}", style="red")


def _moment(moment: datetime) -> str:
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return f"{local:%Y-%m-%d %H:%M:%S}"


def status_as_dict(status: ViewStatus) -> dict[str, Any]:
    """A view's state; times in ISO 8601, lag in seconds."""
    return {
        "view": status.label,
        "state": status.state,
        "enabled": status.enabled,
        "include_in_batch": status.include_in_batch,
        "rows": status.rows,
        "last_success": status.last_success and status.last_success.isoformat(),
        "lag": None if status.lag is None else status.lag.total_seconds(),
        "running": [
            {"worker": worker, "since": since.isoformat()} for worker, since in status.running
        ],
        "error": status.error,
    }


def refresh_as_dict(label: str, refresh: Refresh) -> dict[str, Any]:
    """What a refresh did; seconds are those that its hooks took."""
    runs = refresh.runs.select_related("stripe", "merged_into")
    return {
        "view": label,
        "refresh": refresh.pk,
        "state": refresh.state,
        "merged_into": refresh.merged_into_id,
        "error": refresh.error,
        "phases": [_run_as_dict(run) for run in runs],
    }


def _run_as_dict(run: PhaseRun) -> dict[str, Any]:
    done = run.merged_into or run
    return {
        "phase": run.phase,
        "stripe": run.stripe.number,
        "state": run.state,
        "rows": done.rows,
        "batches": done.batches,
        "seconds": round(done.seconds, 3),
        "error": run.error,
    }
