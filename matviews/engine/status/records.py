"""Reading the rows from which the status of views is computed.

It takes five statements, one more while verifications run, and one more while refreshes wait for
those of other views.
"""

import json
from collections import defaultdict
from collections.abc import Collection
from datetime import timedelta
from functools import cache, lru_cache
from typing import Any

from django.db.models import (
    Case,
    ExpressionWrapper,
    F,
    OuterRef,
    Prefetch,
    QuerySet,
    Subquery,
    TextField,
    When,
    Window,
)
from django.db.models.functions import RowNumber

from ...databases.clock import UtcNow
from ...models import (
    PhaseRun,
    Refresh,
    RefreshSchedule,
    ScheduleKind,
    VerifyRun,
    ViewControl,
    ViewShard,
    intervals_of,
)
from ...phases import Phase
from ...states import RefreshState
from ..failures.backoff import is_forced, may_begin
from ..work.prerequisites import waits_for_others
from .known_rows import KnownRows, twin

__all__ = ["MAX_OPEN_REFRESHES", "load_records"]

MAX_OPEN_REFRESHES = 20  # of a view, that are listed
_CONTROL_FIELDS = (
    "id", "label", "enabled", "paused", "paused_at", "paused_by", "include_in_refresh_all",
    "freshness_target", "queue", "quiet_from", "quiet_until", "quiet_zone",
    *(phase.success_field for phase in Phase), "failures", "failing_since", "retry_at", "wait",
    "echoes", "suspended_at", "fingerprints", "verification", "differing",
)  # fmt: skip
_SHARD_FIELDS = (
    "id", "view_id", "token", "resend_after", "resends", "worker", "claimed_at", "claimed_token",
    "parked_count", "pending_drains", "checkpoints", "turn_deadline",
)  # fmt: skip


def load_records(labels: Collection[str] | None) -> list[Any]:
    """The control rows, with what the status needs from their shards, schedules and refreshes.

    `Prefetch` would take as long again: it makes a queryset for each row, and names all their keys.
    Only rows that have changed since this process last read them are built again.
    """
    controls = _load_controls(labels)
    of = {} if labels is None else {"view__in": list(controls)}
    shards = ViewShard.objects.filter(**of).order_by("view_id", "number")
    for shard, _nothing in _shards().read(shards, everything=labels is None):
        if shard.view_id in controls:  # one that was created meanwhile has to wait
            controls[shard.view_id].all_shards.append(shard)
    if runs := [each.verify_run_id for each in controls.values() if each.verify_run_id]:
        for run in VerifyRun.objects.filter(pk__in=runs):
            controls[run.view_id].verifying = run
    schedules = _load_schedules(of)
    for view, control in controls.items():
        control.intervals = _intervals(tuple(schedules[view]))
    opened = [each for each in _open_refreshes(of) if each.view_id in controls]
    followers = waits_for_others(opened)
    for refresh in opened:
        controls[refresh.view_id].open_refreshes.append(refresh)
    for control in controls.values():
        keys = {refresh.pk for refresh in control.open_refreshes}
        control.follows = bool(keys) and keys <= followers
    return list(controls.values())


def _load_controls(labels: Collection[str] | None) -> dict[int, Any]:
    # A stopped refresh says nothing about the view.
    ended = Refresh.objects.filter(state__in=(RefreshState.SUCCEEDED, RefreshState.FAILED))
    last = ended.filter(view=OuterRef("pk")).order_by("-pk")
    found: Any = ViewControl.objects.annotate(
        last_state=Subquery(last.values("state")[:1]),
        last_error=Subquery(last.filter(state=RefreshState.FAILED).values("error")[:1]),
        now=UtcNow(),
        waits=Case(When(may_begin() | is_forced("pk"), then=False), default=True),
        verify_run_id=F("verify_run"),
    )
    if labels is not None:
        found = found.filter(label__in=labels)
    controls: dict[int, Any] = {}
    for known, added in _controls().read(found, *_ADDED, everything=labels is None):
        controls[known.pk] = twin(
            known, known=known, all_shards=[], open_refreshes=[], verifying=None, follows=False,
            **dict(zip(_ADDED, added, strict=True)),
        )  # fmt: skip
    return controls


def _load_schedules(of: dict[str, Any]) -> dict[int, list[tuple[Any, ...]]]:
    """What `_intervals` takes, by view."""
    found = defaultdict(list)
    enabled = RefreshSchedule.objects.filter(enabled=True, kind=ScheduleKind.REFRESH, **of)
    phases = ExpressionWrapper(F("phases"), TextField())
    columns = enabled.order_by().values_list("view", "every", "period", "on_change", phases)
    for view, *schedule in columns:
        found[view].append(tuple(schedule))
    return found


#: What the database adds to each control.
_ADDED = ("last_state", "last_error", "now", "waits", "verify_run_id")


@cache
def _controls() -> KnownRows[ViewControl]:
    return KnownRows(ViewControl, _CONTROL_FIELDS)


@cache
def _shards() -> KnownRows[ViewShard]:
    return KnownRows(ViewShard, _SHARD_FIELDS)


@lru_cache(maxsize=1_000)
def _intervals(schedules: tuple[tuple[Any, ...], ...]) -> list[timedelta | None]:
    """`intervals_of` for schedules whose phases are JSON."""
    return intervals_of([(*others, json.loads(phases)) for *others, phases in schedules])


def _open_refreshes(of: dict[str, Any]) -> QuerySet[Refresh]:
    """The oldest open refreshes of each view, with their runs."""
    still_open = Refresh.objects.filter(state=RefreshState.OPEN, **of)
    number = Window(RowNumber(), partition_by="view", order_by="pk")
    oldest = still_open.annotate(number=number).filter(number__lte=MAX_OPEN_REFRESHES)
    runs = PhaseRun.objects.select_related("merged_into")
    return oldest.order_by("pk").prefetch_related(Prefetch("runs", runs, to_attr="all_runs"))
