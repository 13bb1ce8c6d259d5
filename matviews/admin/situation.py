"""What a view is doing now, and what it waits for, on its page."""

from collections.abc import Sequence
from typing import Any

from django.db.models import Max
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..engine import RunProgress, ViewStatus
from ..models import Refresh, ViewShard
from ..states import ViewState
from ..tasks import broker_errors
from .phrases import duration, number
from .presentation import time_ago

__all__ = ["situation_context"]


def situation_context(
    status: ViewStatus, refresh: Refresh | None, progress: Sequence[RunProgress]
) -> dict[str, Any]:
    """What the view does and waits for, for its template.

    Args:
        status: of the view.
        refresh: its oldest open refresh.
        progress: of that.
    """
    return {
        "paused_since": time_ago(status.paused_at) if status.paused_at else "",
        "paused_by": status.paused_by,
        "suspended_since": time_ago(status.suspended_at) if status.suspended_at else "",
        "failures": _failures(status),
        "failing_since": time_ago(status.failing_since) if status.failing_since else "",
        "retry_in": "" if status.retry_in is None else duration(status.retry_in),
        "running": [_running(each) for each in progress if each.claim],
        "unclaimed": _unclaimed(status, refresh),
    }


def _failures(status: ViewStatus) -> str:
    """How often in a row it has failed; "" if it works."""
    if not status.failures:
        return ""
    text = ngettext("Failed once", "Failed %(count)s times in a row", status.failures)
    return text % {"count": number(status.failures)}


def _running(progress: RunProgress) -> dict[str, SafeString | str]:
    """Which phase a worker runs, and since when."""
    assert progress.claim is not None
    shard = progress.shard
    phase = progress.phase.value
    return {
        "phase": phase
        if shard is None
        else _("%(phase)s, shard %(shard)s") % {"phase": phase, "shard": shard},
        "worker": progress.claim.worker,
        "since": time_ago(progress.claim.since),
    }


def _unclaimed(status: ViewStatus, refresh: Refresh | None) -> dict[str, Any]:
    """A refresh that no worker has taken: since when, and how often its message was sent again."""
    if refresh is None or status.state != ViewState.WAITING:
        return {}
    resends = ViewShard.objects.filter(view=refresh.view_id).aggregate(Max("resends"))
    return {
        "since": time_ago(refresh.requested_at),
        "resends": resends["resends__max"] or 0,
        "broker_error": broker_errors.last_error(),
    }
