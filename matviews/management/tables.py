"""The command's results as tables for a person and as plain values for JSON."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from matviews.engine import ViewStatus
from matviews.models import Heartbeat, PhaseRun, Refresh
from matviews.tasks.timetable import Planned
from matviews.words import duration

__all__ = [
    "plan_as_dict",
    "print_plans",
    "print_statuses",
    "print_watch",
    "refresh_as_dict",
    "status_as_dict",
]

STATUS_HEADINGS = ("view", "state", "enabled", "rows", "last success", "lag", "oldest change")
PLAN_HEADINGS = ("view", "schedule", "phases", "next", "last sent", "off because")
DATES = ("last success", "next", "last sent")
UNCUT = 10_000  # columns of a file: no table is wider


def print_statuses(statuses: Sequence[ViewStatus], console: Console) -> None:
    """How the views stand, a line for each; a paragraph where the terminal is too narrow."""
    _print(STATUS_HEADINGS, [_cells(status) for status in statuses], console)
    for note in _notes(statuses):
        console.print(note, soft_wrap=True)


def print_plans(planned: Sequence[Planned], console: Console) -> None:
    """What beat asks for and when, a line for each schedule; a paragraph as above."""
    _print(PLAN_HEADINGS, [_plan_cells(each) for each in planned], console)


def print_watch(heartbeat: Heartbeat | None, problem: str, console: Console) -> None:
    """When `watch` last ran, and what keeps it from running."""
    ran = f"ran at {_moment(heartbeat.ran_at)}" if heartbeat else "has not run yet"
    console.print(Text(f"watch {ran}"), soft_wrap=True)
    if problem:
        console.print(Text(problem, style="red"), soft_wrap=True)


def _print(headings: Sequence[str], rows: Sequence[tuple[str, ...]], console: Console) -> None:
    if not console.is_terminal:
        console.width = UNCUT
    table = _table(headings, rows)
    unbound = console.options.update(max_width=UNCUT)
    if Measurement.get(console, unbound, table).minimum <= console.width:
        console.print(table)
    else:
        for row in rows:
            console.print(_paragraph(headings, row), highlight=False)


def _table(headings: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading == "rows" else "left",
            no_wrap=heading not in DATES,  # a date may go above its time
            min_width=len(heading),
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _paragraph(headings: Sequence[str], row: tuple[str, ...]) -> Text:
    cells = zip(headings[2:], row[2:], strict=True)
    details = ", ".join(f"{heading} {cell}" for heading, cell in cells if cell)
    return Text.assemble((row[0], "bold"), f"\n  {row[1]}, {details}")


def _plan_cells(planned: Planned) -> tuple[str, ...]:
    schedule = planned.schedule
    return (
        schedule.view.label,
        schedule.how_often,
        ", ".join(schedule.phases) or "all",
        _moment(planned.next_due) if planned.next_due else "",
        _moment(planned.last_sent) if planned.last_sent else "never",
        planned.why_not,
    )


def _cells(status: ViewStatus) -> tuple[str, ...]:
    return (
        status.label,
        status.state,
        _enabled(status),
        _rows(status),
        _moment(status.last_success) if status.last_success else "never",
        _length(status.lag),
        _length(status.oldest_change),
    )


def _length(time: timedelta | None) -> str:
    return "" if time is None else duration(time.total_seconds())


def _rows(status: ViewStatus) -> str:
    if status.rows is None:
        return "?"
    return f"{'' if status.rows.exact else '~'}{status.rows.rows:,}"


def _enabled(status: ViewStatus) -> str:
    if not status.enabled:
        return "no"
    return "yes" if status.include_in_batch else "by name"


def _notes(statuses: Iterable[ViewStatus]) -> Iterator[Text]:
    """What would make the table too wide: who is at work, what has changed, and the errors."""
    now = timezone.now()
    for status in statuses:
        for worker, since in status.running:
            at_it = duration(max(0.0, (now - since).total_seconds()))
            yield Text(f"{status.label}: running at {worker}, its batch for {at_it}")
        if status.changed:
            phases = ", ".join(status.changed)
            yield Text(f"{status.label}: definition changed ({phases})")
        for line in status.error.splitlines():
            yield Text(f"{status.label} {line}", style="red")


def _moment(moment: datetime) -> str:
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return f"{local:%Y-%m-%d %H:%M:%S}"


def status_as_dict(status: ViewStatus) -> dict[str, Any]:
    """A view's state; times in ISO 8601, lag and the age of the oldest change in seconds."""
    return {
        "view": status.label,
        "state": status.state,
        "changed": list(status.changed),
        "enabled": status.enabled,
        "paused": status.paused,
        "include_in_batch": status.include_in_batch,
        "rows": status.rows and status.rows.rows,
        "rows_exact": status.rows and status.rows.exact,
        "last_success": status.last_success and status.last_success.isoformat(),
        "lag": _seconds(status.lag),
        "oldest_change": _seconds(status.oldest_change),
        "running": [
            {"worker": worker, "since": since.isoformat()} for worker, since in status.running
        ],
        "error": status.error,
    }


def _seconds(time: timedelta | None) -> float | None:
    return None if time is None else time.total_seconds()


def plan_as_dict(planned: Planned) -> dict[str, Any]:
    """What comes of a schedule; times in ISO 8601."""
    schedule = planned.schedule
    return {
        "view": schedule.view.label,
        "schedule": schedule.pk,
        "how_often": schedule.how_often,
        "phases": schedule.phases,
        "runs": planned.runs,
        "why_not": planned.why_not,
        "last_sent": planned.last_sent and planned.last_sent.isoformat(),
        "next_due": planned.next_due and planned.next_due.isoformat(),
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
        "looked": done.looked,
        "batches": done.batches,
        "seconds": round(done.seconds, 3),
        "full_pass": done.reason or None,
        "error": run.error,
    }
