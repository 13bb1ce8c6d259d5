"""The rows of the bookkeeping that the status of views is found from, in five statements."""

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from django.db.models import Case, OuterRef, Prefetch, QuerySet, Subquery, When, Window
from django.db.models.functions import RowNumber

from ..databases.clock import UtcNow
from ..models import (
    TOTALS,
    PhaseRun,
    Refresh,
    RefreshSchedule,
    ScheduleKind,
    ViewControl,
    ViewShard,
    intervals_of,
)  # fmt: skip
from ..states import RefreshState
from .failures import is_forced, may_begin

__all__ = ["MAX_OPEN_REFRESHES", "load_records"]

MAX_OPEN_REFRESHES = 20  # of a view, that are listed
_SHARD_FIELDS = (
    "view_id", "token", "resend_after", "resends", "worker", "claimed_at", "claimed_token",
    "parked_count", "pending", "checkpoints", "turn_by",
)  # fmt: skip


def load_records(labels: Collection[str] | None) -> list[Any]:
    """The control rows, with what the status needs from their shards, schedules and refreshes.

    `Prefetch` would take as long again: it makes a queryset for each row, and names all their keys.
    """
    # A stopped refresh says nothing about the view.
    ended = Refresh.objects.filter(state__in=(RefreshState.SUCCEEDED, RefreshState.FAILED))
    last = ended.filter(view=OuterRef("pk")).order_by("-pk")
    needed = ViewControl.objects.select_related("verify_run").defer(*TOTALS)
    found: Any = needed.annotate(
        last_state=Subquery(last.values("state")[:1]),
        last_error=Subquery(last.filter(state=RefreshState.FAILED).values("error")[:1]),
        now=UtcNow(),
        waits=Case(When(may_begin() | is_forced("pk"), then=False), default=True),
    )
    controls = {
        each.pk: each for each in (found if labels is None else found.filter(label__in=labels))
    }
    for control in controls.values():
        control.all_shards, control.open_refreshes = [], []
    of = {} if labels is None else {"view__in": list(controls)}
    for shard in ViewShard.objects.filter(**of).order_by("view_id", "number").only(*_SHARD_FIELDS):
        if shard.view_id in controls:  # one that was created meanwhile has to wait
            controls[shard.view_id].all_shards.append(shard)
    schedules = defaultdict(list)
    enabled = RefreshSchedule.objects.filter(enabled=True, kind=ScheduleKind.REFRESH, **of)
    columns = enabled.order_by().values_list("view", "every", "period", "on_change", "phases")
    for view, *schedule in columns:
        schedules[view].append(tuple(schedule))
    for view, control in controls.items():
        control.intervals = intervals_of(schedules[view])
    for refresh in _open_refreshes(of):
        if refresh.view_id in controls:
            controls[refresh.view_id].open_refreshes.append(refresh)
    return list(controls.values())


def _open_refreshes(of: dict[str, Any]) -> QuerySet[Refresh]:
    """The oldest open refreshes of each view, with their runs."""
    still_open = Refresh.objects.filter(state=RefreshState.OPEN, **of)
    number = Window(RowNumber(), partition_by="view", order_by="pk")
    oldest = still_open.annotate(number=number).filter(number__lte=MAX_OPEN_REFRESHES)
    runs = PhaseRun.objects.select_related("merged_into")
    return oldest.order_by("pk").prefetch_related(Prefetch("runs", runs, to_attr="all_runs"))
