"""The line above the list: how many views are in each state, and what is running."""

from collections import Counter
from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from django.db.models import Max
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from .. import engine
from ..databases import clock
from ..engine import ViewStatus
from ..models import Heartbeat, ViewShard
from ..states import ViewState
from ..tasks import broker_errors
from .phrases import duration, number
from .presentation import time_ago

__all__ = ["Fact", "summary"]

BAD = (ViewState.INVALID, ViewState.FAILED, ViewState.NOT_MIGRATED)


class Fact(NamedTuple):
    """Something that the line says."""

    name: str
    value: SafeString | str
    #: Whether a person should look at it.
    bad: bool = False
    #: Whether the value is the number of what the name says.
    counts: bool = False


def summary(statuses: Collection[ViewStatus]) -> list[Fact]:
    """What an operator wants to know first, in a fixed number of statements.

    A view counts once: as failed if it is suspended and held, for example.
    """
    expected = [each for each in statuses if each.fault != ViewState.REMOVED and not each.held]
    counts = Counter(map(_kind, expected))
    lags = [each.change_lag for each in statuses if each.change_lag is not None]
    unlogged = sum(bool(each.not_logged) for each in statuses)
    facts = [
        _count(str(ViewState.ON_TIME.label), counts["on time"]),
        _count(str(ViewState.BEHIND.label), counts["behind"], bad=True),
        _count(str(ViewState.FAILED.label), counts["failed"], bad=True),
        _count(str(ViewState.SUSPENDED.label), counts["suspended"], bad=True),
    ]
    if counts["other"]:
        facts.append(_count(_("with another problem"), counts["other"], bad=True))
    if held := sum(each.held for each in statuses):
        facts.append(_count(_("paused or disabled"), held))
    logged = _("missing for %(count)s") % {"count": number(unlogged)} if unlogged else _("in place")
    heartbeat, refused = Heartbeat.objects.first() or Heartbeat(), bool(broker_errors.last_error())
    return [
        *facts,
        Fact(_("worker seen"), time_ago(_worker_seen(heartbeat))),
        Fact(_("beat seen"), time_ago(heartbeat.beat_began_at)),
        Fact(_("broker"), _("refuses messages") if refused else _("accepts messages"), bad=refused),
        Fact(_("triggers"), logged, bad=bool(unlogged)),
        Fact(_("oldest pending change"), duration(max(lags)) if lags else _("none")),
    ]


def _count(name: str, count: int, *, bad: bool = False) -> Fact:
    return Fact(name, number(count), bad=bad and count > 0, counts=True)


def _kind(status: ViewStatus) -> str:
    if status.fault is None:
        return "on time"
    if status.fault == ViewState.SUSPENDED:
        return "suspended"
    if status.fault in BAD:
        return "failed"
    return "behind" if status.fault == ViewState.BEHIND else "other"


def _worker_seen(heartbeat: Heartbeat) -> datetime | None:
    """When a worker last began a batch or the maintenance task."""
    at: datetime | None = ViewShard.objects.aggregate(at=Max("claimed_at"))["at"]
    claimed = at and clock.stored(at, engine.alias())
    return max(filter(None, (claimed, heartbeat.maintenance_began_at)), default=None)
