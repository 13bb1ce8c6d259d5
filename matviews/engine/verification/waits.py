"""Verifications wait like batches: for the governor and, if scheduled, for quiet hours to end."""

import logging
from datetime import timedelta
from typing import Any

from django.db.models import QuerySet
from django.db.models.functions import Coalesce

from ...conf import get_settings
from ...databases.clock import UtcNow
from ...logs import log
from ...models import Origin, VerifyRun
from ...waits import Wait, WaitCode
from ..dispatch.governor import ASK_AGAIN, is_governed, load_fault
from ..tracking.pending_drains import utc
from ..transactions import utc_now

__all__ = ["postpone_if_needed"]

logger = logging.getLogger(__name__)

LOOK_AGAIN = timedelta(minutes=10)  # the quiet hours may have been changed


def postpone_if_needed(run: VerifyRun, token: int) -> bool:
    """Have a run wait for quiet hours or a limit, and record why; return whether it waits.

    After that time the message is sent again, and its worker asks again. After `GOVERNOR_MAX_WAIT`
    a run continues to its end, unless the quiet hours of its view begin.
    """
    hours = run.view.quiet_hours if run.origin == Origin.SCHEDULE else None
    quiet = hours.until(utc_now()) if hours else None
    fault = None
    same = VerifyRun.objects.filter(pk=run.pk, token=token)
    if quiet:
        reason = Wait(WaitCode.QUIET_HOURS, {"hours": str(hours)})
        _wait(same, reason, min(quiet - utc_now(), LOOK_AGAIN), waiting_since=None)
        return True
    if is_governed() and not run.proceeded_despite:
        fault = load_fault(run.view.definition)
    waited = utc_now() - utc(run.waiting_since) if run.waiting_since else timedelta()
    if fault and waited < get_settings().GOVERNOR_MAX_WAIT:
        _wait(same, fault, ASK_AGAIN, waiting_since=Coalesce("waiting_since", UtcNow()))
        return True
    if fault:
        log(
            logger, logging.WARNING, "verification proceeds, it has waited long enough",
            view=run.view.label, reason=str(fault), seconds=round(waited.total_seconds()),
        )  # fmt: skip
    if run.wait:
        same.update(wait=None, waiting_since=None, proceeded_despite=fault)
    return False


def _wait(same: QuerySet[VerifyRun], reason: Wait, time: timedelta, **changes: Any) -> None:
    same.update(wait=reason, resend_after=UtcNow() + time, **changes)
