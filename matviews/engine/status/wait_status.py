"""Why and how long the refreshes of a view wait, as its status shows it."""

from datetime import datetime, timedelta
from typing import Any

from ...models import ViewControl
from ...waits import Wait, WaitCode
from ..transactions import utc_now

__all__ = ["is_late", "quiet_until", "retry_in", "wait_of"]


def quiet_until(control: ViewControl) -> datetime | None:
    """When the quiet hours of a view end; None outside of them."""
    hours = control.quiet_hours
    return hours.until(utc_now()) if hours else None


def is_late(control: ViewControl, staleness: timedelta | None, target: timedelta | None) -> bool:
    """Whether the rows of a view are older than its target; time in quiet hours does not count."""
    if not staleness or not target or quiet_until(control):
        return False
    if hours := control.quiet_hours:
        staleness = min(staleness, utc_now() - hours.last_end(utc_now()))
    return staleness > target


def wait_of(control: Any) -> Wait | None:
    """Why the open refreshes of a view wait, apart from failures; None if they do not."""
    if not control.open_refreshes:
        return None
    takes_turns = any(shard.turn_deadline is not None for shard in control.all_shards)
    found: Wait | None = control.wait
    follows = Wait(WaitCode.UPSTREAM) if control.follows else None
    return found or follows or (Wait(WaitCode.TURNS) if takes_turns else None)


def retry_in(control: Any) -> timedelta | None:
    """How long the view still waits before its next try."""
    if not control.waits or control.suspended_at:
        return None
    left: timedelta = control.retry_at - control.now
    return left
