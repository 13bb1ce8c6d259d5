"""Views, schedules and refreshes, as tables for people and as values for JSON."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from matviews import engine
from matviews.engine import RecentRefreshes, Upstream, ViewStatus, count_requests
from matviews.models import PhaseRun, Refresh, RefreshSchedule
from matviews.presentation import format_duration, format_row_count, format_time, pluralize
from matviews.registry import registry
from matviews.states import ViewState
from matviews.tasks.timetable import ScheduleStatus
from matviews.waits import Wait

from .phrases import (
    IN_LOOP,
    differing_in_words,
    failing_in_words,
    length,
    not_logged_in_words,
    parked_in_words,
    pausing_in_words,
    upstream_in_words,
    waiting_in_words,
)

__all__ = [
    "print_maintenance",
    "print_schedules",
    "print_statuses",
    "print_usually_full",
    "recent_as_dict",
    "refresh_as_dict",
    "schedule_as_dict",
    "status_as_dict",
    "timeliness_as_dict",
    "upstream_as_dict",
]

STATUS_HEADINGS = ("view", "state", "enabled", "rows", "last success", "age", "change lag")
SCHEDULE_HEADINGS = ("view", "schedule", "phases", "next", "last sent", "disabled because")
DATE_HEADINGS = ("last success", "next", "last sent")
UNLIMITED_WIDTH = 10_000  # columns, for files: no table is wider


def print_statuses(statuses: Sequence[ViewStatus], console: Console) -> None:
    """The state of views, one line per view, or a paragraph if the terminal is too narrow."""
    _print(STATUS_HEADINGS, [_cells(status) for status in statuses], console)
    for note in _notes(statuses):
        console.print(note, soft_wrap=True)


def print_usually_full(recent: Mapping[str, RecentRefreshes], console: Console) -> None:
    """A line for each view whose last refreshes were mostly full."""
    for label, refreshes in recent.items():
        if refreshes.usually_full:
            console.print(Text(f"{label}: {refreshes.in_words}", style="yellow"), soft_wrap=True)


def print_schedules(statuses: Sequence[ScheduleStatus], console: Console) -> None:
    """What beat requests and when, one line or paragraph per schedule."""
    _print(SCHEDULE_HEADINGS, [_schedule_cells(status) for status in statuses], console)


def print_maintenance(ran_at: datetime | None, problem: str, console: Console) -> None:
    """When the maintenance task last ran, and what keeps it from running."""
    ran = f"ran at {format_time(ran_at)}" if ran_at else "has not run yet"
    console.print(Text(f"maintenance {ran}"), soft_wrap=True)
    if problem:
        console.print(Text(problem, style="red"), soft_wrap=True)


def _print(headings: Sequence[str], rows: Sequence[tuple[str, ...]], console: Console) -> None:
    if not console.is_terminal:
        console.width = UNLIMITED_WIDTH
    table = _table(headings, rows)
    unbound = console.options.update(max_width=UNLIMITED_WIDTH)
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
            no_wrap=heading not in DATE_HEADINGS,  # a date may stand above its time
            min_width=len(heading),
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _paragraph(headings: Sequence[str], row: tuple[str, ...]) -> Text:
    cells = zip(headings[2:], row[2:], strict=True)
    details = ", ".join(f"{heading} {cell}" for heading, cell in cells if cell)
    return Text.assemble((row[0], "bold"), f"\n  {row[1]}, {details}")


def _schedule_cells(status: ScheduleStatus) -> tuple[str, ...]:
    schedule = status.schedule
    return (
        schedule.view.label,
        schedule.how_often,
        _requested(schedule),
        format_time(status.next_due) if status.next_due else "",
        format_time(status.last_sent) if status.last_sent else "never",
        status.disabled_reason,
    )


def _requested(schedule: RefreshSchedule) -> str:
    """What a schedule requests."""
    if schedule.refreshes:
        return ", ".join(schedule.phases) or "all"
    return f"verify {pluralize(schedule.sample, 'key')}" if schedule.sample else "verify"


def _cells(status: ViewStatus) -> tuple[str, ...]:
    return (
        status.label,
        status.state,
        _enabled(status),
        _rows(status),
        format_time(status.last_success) if status.last_success else "never",
        length(status.age),
        length(status.change_lag),
    )


def _rows(status: ViewStatus) -> str:
    return (
        "?" if status.rows is None else format_row_count(status.rows.rows, exact=status.rows.exact)
    )


def _enabled(status: ViewStatus) -> str:
    if not status.enabled:
        return "no"
    return "yes" if status.include_in_refresh_all else "by name"


def _notes(statuses: Iterable[ViewStatus]) -> Iterator[Text]:
    """What would make the table too wide: running batches, changed definitions, errors."""
    now = engine.now()
    for status in statuses:
        for worker, since in status.running:
            elapsed = format_duration(now - since)
            yield Text(f"{status.label}: running on {worker}, this batch for {elapsed}")
        if status.state == ViewState.WAITING:
            yield Text(f"{status.label}: {waiting_in_words(status)}", style="yellow")
        if pauses := pausing_in_words(status):
            yield Text(f"{status.label}: {pauses}")
        yield from (Text(f"{status.label}: {each}", style="red") for each in _problems(status))
        if status.definition_changed:
            phases = ", ".join(status.definition_changed)
            yield Text(f"{status.label}: definition changed ({phases})")
        for line in status.error.splitlines():
            text = line.removeprefix(f"{status.label}: ")
            yield Text(f"{status.label} {text}", style="red")


def _problems(status: ViewStatus) -> Iterator[str]:
    if failing := failing_in_words(status):
        yield failing
    yield from upstream_in_words(status.upstream)
    if status.in_loop:
        yield IN_LOOP
    of_rows = (parked_in_words(status.label, status.parked), differing_in_words(status))
    yield from filter(None, (not_logged_in_words(status), *of_rows))
    if status.rows is None and status.label in registry and not status.error:
        yield "has no table: run manage.py makemigrations and migrate"


def status_as_dict(status: ViewStatus) -> dict[str, Any]:
    """The state of a view. Times are in ISO 8601, durations in seconds."""
    return {
        "view": status.label,
        "state": status.state,
        "definition_changed": list(status.definition_changed),
        "enabled": status.enabled,
        "paused": status.paused,
        "paused_at": status.paused_at and status.paused_at.isoformat(),
        "paused_by": status.paused_by,
        "queue": status.queue,
        "include_in_refresh_all": status.include_in_refresh_all,
        "rows": status.rows and status.rows.rows,
        "rows_exact": status.rows and status.rows.exact,
        "last_success": status.last_success and status.last_success.isoformat(),
        "age": _seconds(status.age),
        "change_lag": _seconds(status.change_lag),
        "target": _seconds(status.target),
        "not_logged": list(status.not_logged),
        **_failing_as_dict(status),
        "parked": status.parked,
        **upstream_as_dict(status.upstream),
        "in_loop": status.in_loop,
        **_verification_as_dict(status),
        "on_time": status.on_time,
        "waiting_for": _seconds(status.waiting_for),
        "running": [
            {"worker": worker, "since": since.isoformat()} for worker, since in status.running
        ],
        "error": status.error,
    }


def recent_as_dict(recent: RecentRefreshes) -> dict[str, Any]:
    """How often the last refreshes of a view were full, and why."""
    shown = {"count": recent.count, "full": recent.full, "reason": recent.reason}
    return {"recent_refreshes": shown}


def timeliness_as_dict(status: ViewStatus) -> dict[str, Any]:
    """Whether a view is on time, with the numbers that decide it, in seconds."""
    return {
        "view": status.label,
        "on_time": status.on_time,
        "reason": status.fault or "",
        "reasons": list(status.faults),
        "state": status.state,
        "change_lag": _seconds(status.change_lag),
        "age": _seconds(status.age),
        "target": _seconds(status.target),
        "not_logged": list(status.not_logged),
        **_failing_as_dict(status),
        "parked": status.parked,
        **upstream_as_dict(status.upstream),
        "in_loop": status.in_loop,
        "error": status.error,
    }


def _failing_as_dict(status: ViewStatus) -> dict[str, Any]:
    return {
        "failures": status.failures,
        "failing_since": status.failing_since and status.failing_since.isoformat(),
        "retry_in": _seconds(status.retry_in),
        **_wait_as_dict(status.wait),
        "quiet_until": status.quiet_until and status.quiet_until.isoformat(),
        "suspended_at": status.suspended_at and status.suspended_at.isoformat(),
    }


def _wait_as_dict(wait: Wait | None) -> dict[str, Any]:
    return {
        "wait": {"code": wait.code, **wait.facts} if wait else None,
        "wait_reason": str(wait or ""),
    }


def upstream_as_dict(upstream: Upstream) -> dict[str, Any]:
    """The views that one reads, directly or through others, and that are not kept up to date."""
    return {"upstream_failed": list(upstream.failed), "upstream_paused": list(upstream.held)}


def _verification_as_dict(status: ViewStatus) -> dict[str, Any]:
    verifying = status.verifying and asdict(status.verifying)
    if verifying:
        verifying["since"] = verifying["since"].isoformat()
        verifying |= _wait_as_dict(verifying["wait"])
    return {
        "verification": status.verification,
        "verifying": verifying,
        "differing": status.differing,
    }


def _seconds(time: timedelta | None) -> float | None:
    return None if time is None else time.total_seconds()


def schedule_as_dict(status: ScheduleStatus) -> dict[str, Any]:
    """A schedule and when it runs. Times are in ISO 8601."""
    schedule = status.schedule
    return {
        "view": schedule.view.label,
        "schedule": schedule.pk,
        "how_often": schedule.how_often,
        "kind": schedule.kind,
        "phases": schedule.phases,
        "sample": schedule.sample,
        "runs": status.runs,
        "disabled_reason": status.disabled_reason,
        "last_sent": status.last_sent and status.last_sent.isoformat(),
        "next_due": status.next_due and status.next_due.isoformat(),
    }


def refresh_as_dict(label: str, refresh: Refresh) -> dict[str, Any]:
    """What a refresh did. The seconds are those that its hooks worked."""
    worker = refresh.merged_into if refresh.merged_into and not refresh.runs.exists() else refresh
    runs = worker.runs.select_related("shard", "merged_into")
    return {
        "view": label,
        "refresh": refresh.pk,
        "state": refresh.state,
        "origin": refresh.origin,
        "upstream_refreshes": refresh.upstream_refreshes,
        "merged_into": refresh.merged_into_id,
        "requests": count_requests(refresh),
        "proceeded_despite": str(refresh.proceeded_despite or ""),
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
        "strategy": done.strategy or None,
        "expected_seconds": done.expected_seconds,
        "full_refresh_reason": done.full_refresh_reason or None,
        "parked": done.parked,
        "error": run.error,
    }
