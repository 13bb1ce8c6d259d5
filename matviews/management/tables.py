"""The command's results as tables for a person and as plain values for JSON."""

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.table import Table

from matviews.engine import ViewStatus
from matviews.models import PhaseRun, Refresh

from .progress import duration

__all__ = ["refresh_as_dict", "status_as_dict", "status_table"]


def status_table(statuses: Iterable[ViewStatus]) -> Table:
    """One line per view: how it stands."""
    table = Table("view", "state", "enabled", box=box.SIMPLE)
    table.add_column("rows", justify="right")
    for heading in ("last success", "lag", "running"):
        table.add_column(heading)
    for status in statuses:
        table.add_row(
            status.label,
            status.state,
            "yes" if status.enabled else "no",
            "?" if status.rows is None else f"{status.rows:,}",
            f"{status.last_success:%Y-%m-%d %H:%M:%S}" if status.last_success else "never",
            duration(status.lag.total_seconds()) if status.lag is not None else "",
            ", ".join(status.workers),
        )
        if status.error:
            table.add_row("", status.error, style="red")
    return table


def status_as_dict(status: ViewStatus) -> dict[str, Any]:
    """A view's state; times in ISO 8601, lag in seconds."""
    return {
        "view": status.label,
        "state": status.state,
        "enabled": status.enabled,
        "include_in_batch": status.include_in_batch,
        "rows": status.rows,
        "last_success": status.last_success and status.last_success.isoformat(),
        "lag": status.lag and status.lag.total_seconds(),
        "running": list(status.workers),
        "error": status.error,
    }


def refresh_as_dict(label: str, refresh: Refresh) -> dict[str, Any]:
    """What a refresh did; seconds are those that its hooks took."""
    return {
        "view": label,
        "refresh": refresh.pk,
        "state": refresh.state,
        "merged_into": refresh.merged_into_id,
        "error": refresh.error,
        "phases": [
            _run_as_dict(run) for run in refresh.runs.select_related("stripe", "merged_into")
        ],
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
