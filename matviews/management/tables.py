"""The command's results as tables for a person and as plain values for JSON."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from matviews import engine
from matviews.engine import ViewStatus, count_requests
from matviews.models import Heartbeat, PhaseRun, Refresh
from matviews.presentation import format_duration, format_row_count, format_time
from matviews.registry import registry
from matviews.states import ViewState
from matviews.tasks.queues import BATCHES, queues_in_words
from matviews.tasks.timetable import ScheduleStatus

__all__ = [
    "not_logged_in_words",
    "plan_as_dict",
    "print_maintenance",
    "print_plans",
    "print_statuses",
    "refresh_as_dict",
    "status_as_dict",
    "timeliness_as_dict",
    "timeliness_in_words",
]

STATUS_HEADINGS = ("view", "state", "enabled", "rows", "last success", "age", "change lag")
PLAN_HEADINGS = ("view", "schedule", "phases", "next", "last sent", "disabled because")
DATES = ("last success", "next", "last sent")
UNCUT = 10_000  # columns of a file: no table is wider


def print_statuses(statuses: Sequence[ViewStatus], console: Console) -> None:
    """How the views stand, a line for each; a paragraph where the terminal is too narrow."""
    _print(STATUS_HEADINGS, [_cells(status) for status in statuses], console)
    for note in _notes(statuses):
        console.print(note, soft_wrap=True)


def print_plans(planned: Sequence[ScheduleStatus], console: Console) -> None:
    """What beat asks for and when, a line for each schedule; a paragraph as above."""
    _print(PLAN_HEADINGS, [_plan_cells(each) for each in planned], console)


def print_maintenance(heartbeat: Heartbeat | None, problem: str, console: Console) -> None:
    """When `matviews.maintain` last ran, and what keeps it from running."""
    ran = f"ran at {format_time(heartbeat.ran_at)}" if heartbeat else "has not run yet"
    console.print(Text(f"maintenance {ran}"), soft_wrap=True)
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


def _plan_cells(planned: ScheduleStatus) -> tuple[str, ...]:
    schedule = planned.schedule
    return (
        schedule.view.label,
        schedule.how_often,
        ", ".join(schedule.phases) or "all",
        format_time(planned.next_due) if planned.next_due else "",
        format_time(planned.last_sent) if planned.last_sent else "never",
        planned.disabled_reason,
    )


def _cells(status: ViewStatus) -> tuple[str, ...]:
    return (
        status.label,
        status.state,
        _enabled(status),
        "?" if status.rows is None else format_row_count(status.rows),
        format_time(status.last_success) if status.last_success else "never",
        _length(status.age),
        _length(status.change_lag),
    )


def _length(time: timedelta | None) -> str:
    return "" if time is None else format_duration(time)


def _enabled(status: ViewStatus) -> str:
    if not status.enabled:
        return "no"
    return "yes" if status.include_in_refresh_all else "by name"


def _notes(statuses: Iterable[ViewStatus]) -> Iterator[Text]:
    """What would make the table too wide: who is at work, what has changed, and the errors."""
    now = engine.now()
    for status in statuses:
        for worker, since in status.running:
            at_it = format_duration(now - since)
            yield Text(f"{status.label}: running at {worker}, its batch for {at_it}")
        if status.state == ViewState.WAITING:
            yield Text(f"{status.label}: {waiting_in_words()}", style="yellow")
        if status.not_logged:
            yield Text(f"{status.label}: {not_logged_in_words(status)}", style="red")
        if status.rows is None and status.label in registry and not status.error:
            yield Text(
                f"{status.label}: has no table: run manage.py makemigrations and migrate",
                style="red",
            )
        if status.changed:
            phases = ", ".join(status.changed)
            yield Text(f"{status.label}: definition changed ({phases})")
        for line in status.error.splitlines():
            text = line.removeprefix(f"{status.label}: ")
            yield Text(f"{status.label} {text}", style="red")


def not_logged_in_words(status: ViewStatus) -> str:
    """Which tables lack triggers, and the way out."""
    return (
        f"changes of {', '.join(status.not_logged)} are not logged, so every refresh is a full one: run "
        f"`manage.py update_materialized_views --triggers install`"
    )


def status_as_dict(status: ViewStatus) -> dict[str, Any]:
    """A view's state; times in ISO 8601, age and change lag in seconds."""
    return {
        "view": status.label,
        "state": status.state,
        "changed": list(status.changed),
        "enabled": status.enabled,
        "paused": status.paused,
        "include_in_refresh_all": status.include_in_refresh_all,
        "rows": status.rows and status.rows.rows,
        "rows_exact": status.rows and status.rows.exact,
        "last_success": status.last_success and status.last_success.isoformat(),
        "age": _seconds(status.age),
        "change_lag": _seconds(status.change_lag),
        "target": _seconds(status.target),
        "not_logged": list(status.not_logged),
        "on_time": status.on_time,
        "running": [
            {"worker": worker, "since": since.isoformat()} for worker, since in status.running
        ],
        "error": status.error,
    }


def timeliness_as_dict(status: ViewStatus) -> dict[str, Any]:
    """Whether a view is on time, and by what numbers; in seconds."""
    return {
        "view": status.label,
        "on_time": status.on_time,
        "reason": status.fault or "",
        "state": status.state,
        "change_lag": _seconds(status.change_lag),
        "age": _seconds(status.age),
        "target": _seconds(status.target),
        "not_logged": list(status.not_logged),
        "error": status.error,
    }


def timeliness_in_words(status: ViewStatus) -> str:
    """The same, in a line."""
    waits = f"; {waiting_in_words()}" if status.state == ViewState.WAITING else ""
    return f"{_timeliness(status)}{waits}"


def waiting_in_words() -> str:
    """Why nobody may be at a refresh that is open."""
    return f"a refresh waits for a worker: see that one runs, and listens to {queues_in_words(*BATCHES)}"


def _timeliness(status: ViewStatus) -> str:
    numbers = ", ".join(_numbers(status))
    if status.fault is None:
        return f"on time ({numbers})"
    if status.fault == ViewState.BEHIND:
        return f"not on time: behind ({numbers})"
    if status.fault == ViewState.NOT_LOGGED:
        return f"not on time: {not_logged_in_words(status)}"
    if status.fault == ViewState.NOT_MIGRATED:
        return (
            "not on time: its table or its bookkeeping is missing: run makemigrations and migrate"
        )
    why = status.error.partition("\n")[0].removeprefix(f"{status.label}: ")
    return f"not on time: {status.fault}{why and f': {why}'}"


def _numbers(status: ViewStatus) -> Iterator[str]:
    if status.change_lag is not None:
        yield f"oldest change {_length(status.change_lag)} ago"
    if status.staleness != status.change_lag and status.staleness and status.age is not None:
        yield f"last success {_length(status.age)} ago"
    elif status.change_lag is None:
        yield "no change pending"
    yield f"target {_length(status.target)}" if status.target else "no target"


def _seconds(time: timedelta | None) -> float | None:
    return None if time is None else time.total_seconds()


def plan_as_dict(planned: ScheduleStatus) -> dict[str, Any]:
    """What comes of a schedule; times in ISO 8601."""
    schedule = planned.schedule
    return {
        "view": schedule.view.label,
        "schedule": schedule.pk,
        "how_often": schedule.how_often,
        "phases": schedule.phases,
        "runs": planned.runs,
        "disabled_reason": planned.disabled_reason,
        "last_sent": planned.last_sent and planned.last_sent.isoformat(),
        "next_due": planned.next_due and planned.next_due.isoformat(),
    }


def refresh_as_dict(label: str, refresh: Refresh) -> dict[str, Any]:
    """What a refresh did; seconds are those that its hooks took."""
    worker = refresh.merged_into if refresh.merged_into and not refresh.runs.exists() else refresh
    runs = worker.runs.select_related("shard", "merged_into")
    return {
        "view": label,
        "refresh": refresh.pk,
        "state": refresh.state,
        "merged_into": refresh.merged_into_id,
        "requests": count_requests(refresh),
        "error": refresh.error,
        "phases": [_run_as_dict(run) for run in runs],
    }


def _run_as_dict(run: PhaseRun) -> dict[str, Any]:
    done = run.merged_into or run
    return {
        "phase": run.phase,
        "shard": run.shard.number,
        "state": run.state,
        "rows": done.rows,
        "keys_scanned": done.keys_scanned,
        "batches": done.batches,
        "seconds": round(done.seconds, 3),
        "full_refresh_reason": done.full_refresh_reason or None,
        "error": run.error,
    }
