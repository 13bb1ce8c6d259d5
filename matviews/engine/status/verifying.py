"""The running verification of a view, as people see it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ...databases import clock
from ...databases.clock import UtcNow
from ...models import VerifyRun
from ...waits import Wait
from ..transactions import alias

__all__ = ["Verifying", "find_verifying", "verifying_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verifying:
    """A verification in the background that has yet to end."""

    #: Whether a worker has it; otherwise it waits for one.
    running: bool
    #: When it began or, if it has not, when it was requested.
    since: datetime
    #: How many rows of the source it has compared so far.
    rows_compared: int
    #: Whether it writes the rows that differ.
    repair: bool
    #: About how many keys it compares; None for all.
    sample: int | None
    #: Who requested it; "" for a schedule.
    requested_by: str
    #: Why it waits, for quiet hours or the governor; None if it does not.
    wait: Wait | None = None


def find_verifying(view_id: int) -> Verifying | None:
    """The running or requested verification of a view; None without one."""
    run = VerifyRun.objects.filter(view=view_id).annotate(now=UtcNow()).first()
    return _shown(run, run.now) if run else None


def verifying_of(control: Any) -> Verifying | None:
    """The same for a control that has its run as `verifying`, if any, and the time as `now`."""
    run = getattr(control, "verifying", None)
    return _shown(run, control.now) if run else None


def _shown(run: VerifyRun, moment: datetime) -> Verifying:
    held = run.resend_after is not None and run.resend_after > moment
    worked = held and run.started_at is not None and not run.wait
    return Verifying(
        running=worked,
        since=clock.stored(run.started_at, alias()) if run.started_at else run.requested_at,
        rows_compared=run.progress.get("rows_compared", 0),
        repair=run.repair,
        sample=run.sample,
        requested_by=run.requested_by,
        wait=run.wait,
    )
