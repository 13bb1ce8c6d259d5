"""Reading the pending work of a shard, or of all shards of a view, in one query as a rule.

Inside the shard's batch the result is exact. Outside it is a guess; if the guess is wrong, the
token makes it harmless.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import groupby, islice
from typing import Any

from django.db.models import (
    BooleanField,
    Case,
    Count,
    Exists,
    F,
    FilteredRelation,
    Model,
    OuterRef,
    Q,
    Subquery,
    Sum,
    Value,
    When,
)
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce

from ...contract import Shard
from ...databases import clock, floors_of
from ...databases.clock import UtcNow
from ...databases.compiled import MAX_BIGINT, PK_PLACEHOLDER, CompiledSelect
from ...models import PhaseRun, Refresh, ViewControl, ViewShard
from ...states import RefreshState
from ..failures.backoff import is_forced, is_waiting, may_begin
from ..transactions import alias
from .prerequisites import waits_for_others
from .shard_work import Work

__all__ = ["MAX_REFRESHES_READ", "load_work", "load_works"]

# Open refreshes of a view that are read, oldest first. The others wait until these have ended.
MAX_REFRESHES_READ = 100
#: Rows of a query that reads a view's work: a row for each phase run, or for a refresh without any.
MAX_ROWS_READ = MAX_REFRESHES_READ


def load_work(shard_id: int, *, looks_at_log: bool = False) -> Work | None:
    """Load the work of a shard in one query; None if no refresh is open.

    Args:
        shard_id: the primary key of the shard.
        looks_at_log: whether `Work.logged` is wanted, which only a batch needs.
    """
    return next(_works(_rows("view__shards", shard_id, looks_at_log=looks_at_log)), None)


def load_works(view_id: int) -> list[Work]:
    """Load the work of each shard of a view in one query; empty if no refresh is open."""
    return list(_works(_rows("view", view_id)))


def _rows(by: str, key: int, *, looks_at_log: bool = False) -> list[list[Any]]:
    """The rows of the query by a primary key; a second query only if very many are open."""
    rows: list[list[Any]] = []
    for oldest in (False, True):
        rows = _work_query(alias(), by, oldest=oldest, looks_at_log=looks_at_log).run(key)
        if len(rows) < MAX_ROWS_READ:
            break
    return rows


@lru_cache(maxsize=16)
def _work_query(using: str, by: str, *, oldest: bool, looks_at_log: bool) -> CompiledSelect:
    """The query of `load_work` and `load_works`; its parameter is the primary key of `by`.

    Every batch runs it several times, and on PostgreSQL to plan it takes longer than to run it, so
    it has no subquery that Python or a rarer statement can do without.

    Args:
        using: alias of the database.
        by: the relation from a refresh to the view, or to a shard.
        oldest: whether only the oldest refreshes are read; else any `MAX_ROWS_READ` rows.
        looks_at_log: whether it also finds out whether the change log has an entry.
    """
    columns = [prefix + name for model, prefix in _PARTS for name in _fields(model)]
    totals = ViewShard.objects.filter(view=OuterRef("view")).order_by().values("view")
    is_logged = f"EXISTS (SELECT 1 FROM {floors_of(using).log(1)} entry)" if looks_at_log else "0"
    merged = Refresh.objects.using(using).filter(
        merged_into=OuterRef("pk"), state=RefreshState.MERGED
    )
    waiting = Refresh.objects.using(using).filter(waits_for_upstream=True, state=RefreshState.OPEN)
    rows = (
        Refresh.objects.using(using)
        .filter(**{by: PK_PLACEHOLDER}, view__shards__isnull=False, state=RefreshState.OPEN)
        .annotate(
            here=FilteredRelation("runs", condition=Q(runs__shard=F("view__shards"))),
            total=Subquery(totals.values(total=Count("pk"))),
            claims_now=Subquery(totals.values(total=Sum("claims"))),
            is_merge_target=Exists(merged),
            loaded_at=UtcNow(),
            logged=RawSQL(is_logged, (), BooleanField()),
            others_wait=Exists(waiting.order_by()),
            may_begin=Case(When(may_begin("view__"), then=True), default=False),
        )
        .order_by("view__shards__number", "pk", "here__pk")
        .values_list(*columns, *_FACTS)
    )
    if oldest:
        open_refreshes = Refresh.objects.using(using).filter(
            **{by: PK_PLACEHOLDER}, state=RefreshState.OPEN
        )
        end = open_refreshes.order_by("pk").values("pk")[MAX_REFRESHES_READ:][:1]
        return CompiledSelect(rows.filter(pk__lt=Coalesce(Subquery(end), Value(MAX_BIGINT))))
    return CompiledSelect(rows[:MAX_ROWS_READ])


@cache
def _fields(model: type[Model]) -> list[str]:
    return [field.attname for field in model._meta.concrete_fields]


_FACTS = (
    "total", "logged", "claims_now", "may_begin", "others_wait", "loaded_at", "is_merge_target",
)  # fmt: skip
_PARTS: list[tuple[type[Model], str]] = [
    (Refresh, ""),
    (ViewControl, "view__"),
    (ViewShard, "view__shards__"),
    (PhaseRun, "here__"),
]


def _instances(row: Sequence[Any]) -> list[Any]:
    """The instances of a row, one for each of `_PARTS`, and the values of `_FACTS`."""
    values = iter(row)
    instances: list[Any] = []
    for model, _prefix in _PARTS:
        names = _fields(model)
        instances.append(model.from_db(alias(), names, list(islice(values, len(names)))))
    return [*instances, *islice(values, len(_FACTS))]


def _works(rows: Iterable[Sequence[Any]]) -> Iterator[Work]:
    """The work of each shard, from rows that are ordered by shard."""
    parts = map(_instances, rows)
    for _shard, shard_rows in groupby(parts, key=lambda instances: instances[2].pk):
        yield _build(list(shard_rows))


def _build(rows: list[list[Any]]) -> Work:
    _refresh, control, shard, _run, *facts = rows[0]
    total, logged, claims, may_begin_now, others_wait, loaded_at, _is_target = facts
    shard.view = control
    refreshes: dict[int, Refresh] = {}
    runs: dict[int, PhaseRun] = {}
    merge_targets: set[int] = set()
    for row_refresh, _control, _shard, run, *_facts, is_merge_target in rows:
        refresh = refreshes.setdefault(row_refresh.pk, row_refresh)
        refresh.view = control
        if is_merge_target:
            merge_targets.add(refresh.pk)
        if run.pk is not None:
            run.refresh, run.shard = refresh, shard
            runs[run.pk] = run
    for run in runs.values():
        if run.merged_into_id in runs:
            run.merged_into = runs[run.merged_into_id]
    begun = {run.refresh_id for run in runs.values()}
    waiting = waits_for_others(each for each in refreshes.values() if each.pk not in begun)
    return Work(
        shard=shard,
        hook_shard=Shard(shard.number, total),
        definition=control.definition,
        refreshes=[each for each in refreshes.values() if each.pk not in waiting],
        truncated=len(refreshes) >= MAX_REFRESHES_READ,
        merge_targets=frozenset(merge_targets),
        claims=claims,
        waits=not (may_begin_now or _has_forced(control, refreshes.values())),
        crowded=_is_crowded(shard),
        others_wait=bool(others_wait),
        loaded_at=clock.stored(loaded_at, alias()),
        runs=list(runs.values()),
        logged=bool(logged),
    )


def _has_forced(control: ViewControl, refreshes: Collection[Refresh]) -> bool:
    """Whether a view has a forced refresh to do, perhaps among those that were not read."""
    if any(each.forced and not each.stop_requested for each in refreshes):
        return True
    return len(refreshes) >= MAX_REFRESHES_READ and not is_waiting(control.pk)


def _is_crowded(shard: ViewShard) -> bool:
    """Whether other shards take turns in its queue and may go on; a statement if it takes turns."""
    if shard.turn_queue is None:
        return False
    others = ViewShard.objects.using(alias()).filter(
        may_begin("view__") | is_forced("view"), view__enabled=True, view__paused=False,
        turn_queue=shard.turn_queue,
    )  # fmt: skip
    return others.exclude(pk=shard.pk).order_by().exists()
