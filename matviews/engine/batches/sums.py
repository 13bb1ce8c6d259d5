"""The sums of additive views in batches: kept by adding what has been logged, or recomputed.

In every snapshot, and for each group, the sums plus the entries of the value logs equal the source.
A batch first adds and then writes the view, in one transaction that holds the shard, so that the
rows it writes include each change that it has drained. If anything is wrong with the sums, the
view's rows are right all the same: the batch recomputes the sums of the groups at fault, or all
sums, or computes the rows from the source.
"""

import logging
from collections.abc import Collection

from django.db import DatabaseError, transaction
from django.db.models import Q

from ... import changes
from ...databases import Failure, errors_of, sums_of
from ...databases.keys import Key
from ...logs import log
from ...models import PhaseRun, ViewShard, ViewSums
from ...queryset import (
    BatchRunner,
    Cut,
    GroupSums,
    Plan,
    add,
    build,
    count_moved,
    count_rows,
    plan_of,
)
from ...redact import error_text
from ..locking import lock_available
from ..parking.splitting import is_careful
from ..transactions import alias, short_transaction
from ..work.shard_work import Work

__all__ = [
    "MAX_ENTRIES",
    "distrust_misfits",
    "distrust_sums",
    "recompute_groups",
    "sums_runner",
    "trim_value_logs",
]

logger = logging.getLogger(__name__)

# Of a view that nobody refreshes: to add more may take longer than to recompute its sums.
MAX_ENTRIES = 200_000
TRIMMED_AT_ONCE = 50_000
# Of the rows of the source, which an index finds one by one: beyond that, all are read.
MAX_SHARE, FEW_ROWS = 0.25, 10_000
MAX_CUTS = 4  # while rows change, further groups may become doubtful
INCOMPLETE = "changes were logged without their values"
LEFT = "a largest or smallest value may have been deleted, or a row that was not logged"
SUSPECT = "sums were impossible"
TOO_MANY = "too many groups had to be recomputed"
MOVED = "too many rows were behind changed lookups"
ALTERED = (
    "a column of its source was altered: run manage.py update_materialized_views --triggers install"
)


def sums_runner(work: Work, run: PhaseRun) -> BatchRunner | None:
    """The runner of a view's batches from its sums, after bringing these up to date.

    None if its rows are to be computed from the source: it is not additive, its tables are missing,
    or keys are left out.
    """
    if not (work.plan.additive and work.shard.view.is_additive) or work.has_siblings:
        return None
    if work.checked_plan is not work.plan:
        return None
    full = run.dirty_after is None
    made_for = run.refresh_id if full else 0
    if made_for not in work.sums:
        table = _keep_up(work) if is_careful(work) else _up_to_date(work, run)
        work.sums[made_for] = work.plan.sums_runner(table, of_keys=not full) if table else None
    return work.sums[made_for]


def _up_to_date(work: Work, run: PhaseRun) -> str:
    """The name of the table with the view's sums; "" if they cannot be used."""
    kept = _lock(work.plan, work.shard.view_id)
    if kept is None:
        return ""
    full = run.dirty_after is None
    if kept.drain_number == ViewSums.FAILED and not full:
        return ""
    usable = kept.drain_number >= max(0, work.shard.full_refresh_after)
    if usable and not (full and kept.refresh != run.refresh_id) and _add(work.plan, kept):
        return kept.table
    return kept.table if _build(work, kept, run.refresh_id if full else 0) else ""


def _keep_up(work: Work) -> str:
    """Add what has been logged although rows are computed from the source, as keys are parked.

    Entries that cannot be added are deleted: the sums are recomputed once no key is parked.

    Returns:
        "", as the sums are not used.
    """
    kept = _lock(work.plan, work.shard.view_id)
    if kept is None:
        return ""
    usable = kept.drain_number >= max(0, work.shard.full_refresh_after)
    if not (usable and _add(work.plan, kept)):
        kept.drain_number = ViewSums.STALE
        kept.save()
        for name in kept.logs:
            changes.trim_values(name, MAX_ENTRIES)
    return ""


def _lock(plan: Plan, view_id: int) -> ViewSums | None:
    """The record of a view's sums; None if there is none, or not every change is logged for it."""
    assert plan.additive is not None
    if not changes.are_valued(plan.additive.additive.logs):
        return None
    kept = ViewSums.objects.filter(view=view_id, fingerprint=plan.fingerprint)
    return kept.order_by().select_for_update().first()


def _add(plan: Plan, kept: ViewSums, keys: Collection[Key] = ()) -> bool:
    """Add what has been logged; False if that does not give the right sums.

    Args:
        plan: the plan of the view.
        kept: the record of its sums.
        keys: the keys of groups to recompute.
    """
    reason = ""
    try:
        with transaction.atomic(using=alias()):
            if reason := _added(plan, kept, keys):
                transaction.set_rollback(True, using=alias())
    except DatabaseError as error:
        if errors_of(alias()).failure(error) is Failure.RETRY:
            raise
        reason = error_text(error)
    if not reason:
        return True
    level = logging.INFO if reason in (INCOMPLETE, LEFT, TOO_MANY, MOVED) else logging.WARNING
    sentence = "the sums of an additive view are recomputed"
    log(logger, level, sentence, view=plan.source.definition.label, reason=reason)
    kept.reason = reason[:255]
    return False


def _added(plan: Plan, kept: ViewSums, keys: Collection[Key]) -> str:
    """Add what has been logged, and recompute groups that need it; why that is not enough, or "".

    Each statement adds all entries that it sees. The next one recomputes the groups that it could
    not add to, and those that it has recomputed itself: on SQLite, which stores any number, they
    may be impossible even as the source has them.
    """
    sums = plan.additive
    assert sums is not None
    if _moves_much(sums, kept.table):
        return MOVED
    for _cut in range(MAX_CUTS):
        if keys and _are_too_many(sums, kept.table, keys):
            return TOO_MANY
        cut = add(sums, kept.log, kept.table, keys)
        if reason := _fault(sums, cut):
            return reason
        if max(len(cut.suspect), len(cut.doubtful)) > sums.dialect.max_keys:
            return TOO_MANY  # and the list may be cut off
        suspect, doubtful = cut.suspect.difference(keys), cut.doubtful.difference(keys)
        if not (more := suspect | doubtful):
            return ""
        keys = more.union(keys)
        level = logging.WARNING if suspect else logging.INFO
        sentence, reason = "groups of an additive view are recomputed", SUSPECT if suspect else LEFT
        label = plan.source.definition.label
        log(logger, level, sentence, view=label, groups=len(more), reason=reason)
        kept.reason = reason
        kept.save(update_fields=["reason"])
    return reason


def _fault(sums: GroupSums, cut: Cut) -> str:
    """Why no sums are right after entries have been added; "" if they may be."""
    if cut.incomplete:
        return INCOMPLETE
    if sums_of(alias()).stores_what_fits and not sums.fit():
        return ALTERED  # before the entries were read, or it would wait for this batch
    # An index that was dropped may be back before the next maintenance.
    return sums.ambiguous() if cut.moves else ""


def _are_too_many(sums: GroupSums, table: str, keys: Collection[Key]) -> bool:
    """Whether recomputing all groups takes no longer than recomputing those with some keys."""
    if len(keys) > sums.dialect.max_keys:
        return True
    rows = count_rows(sums, table, keys)
    return rows > FEW_ROWS and rows > MAX_SHARE * count_rows(sums, table)


def _moves_much(sums: GroupSums, table: str) -> bool:
    """Whether recomputing all groups takes no longer than moving rows behind changed lookups."""
    if count_moved(sums, FEW_ROWS + 1) <= FEW_ROWS:
        return False
    most = int(MAX_SHARE * count_rows(sums, table))
    return count_moved(sums, most + 1) > most


def recompute_groups(plan: Plan, shard: ViewShard, keys: Collection[Key]) -> None:
    """Recompute the sums of some groups of a view, or have the next batch recompute all.

    For changes that no entry of the log shows. Call it in a transaction that holds the shard.
    """
    kept = _lock(plan, shard.view_id) if plan.additive else None
    if kept and kept.drain_number < max(0, shard.full_refresh_after):
        return  # all are recomputed anyway
    # without a record for this definition, there may be one for that of another process
    if kept is None or plan.checked() is not plan or not _add(plan, kept, keys):
        distrust_sums(shard.view_id)


def _build(work: Work, kept: ViewSums, refresh_id: int) -> bool:
    """Recompute the sums; False if that failed, which the next full refresh tries again."""
    assert work.plan.additive is not None
    try:
        with transaction.atomic(using=alias()):
            build(work.plan.additive, kept.log, kept.table)
            if reason := work.plan.additive.misfit():
                transaction.set_rollback(True, using=alias())
    except DatabaseError as error:
        if errors_of(alias()).failure(error) is Failure.RETRY:
            raise
        reason = error_text(error)
    kept.drain_number, kept.refresh = work.shard.drain_number, refresh_id
    if reason:
        kept.drain_number, kept.reason = ViewSums.FAILED, reason[:255]
        sentence = (
            "the sums of an additive view cannot be computed, so it is refreshed from its source"
        )
        log(logger, logging.WARNING, sentence, view=work.shard.view.label, reason=reason)
        if not refresh_id and (misfit := work.plan.additive.misfit()):
            _enqueue_all(kept, misfit)  # rows may have been written from wrong sums since
    kept.save()
    return kept.drain_number >= 0


def _enqueue_all(kept: ViewSums, misfit: str) -> None:
    changes.enqueue({kept.view_id}, f"its sums cannot be used any more: {misfit}")


def distrust_sums(view_id: int) -> None:
    """Have the next batch recompute the sums of a view."""
    ViewSums.objects.filter(view=view_id, drain_number__gte=0).update(drain_number=ViewSums.STALE)


def distrust_misfits() -> None:
    """Have views whose sums can no longer be right refreshed in full, from their source.

    Somebody may have dropped the index that keeps a lookup unique, or altered a column. A view
    whose `source()` fails now is left out, and logged.
    """
    for kept in ViewSums.objects.filter(drain_number__gte=0).select_related("view"):
        try:
            if reason := _misfit(kept):
                _distrust_misfit(kept, reason)
        except Exception as error:
            if errors_of(alias()).is_external(error):
                raise
            sentence = "cannot check whether the sums of an additive view are right"
            log(logger, logging.WARNING, sentence, view=kept.view.label, error=error_text(error))


def _misfit(kept: ViewSums) -> str:
    """Why the sums of a view cannot be right; "" if they can be, or if it needs others now."""
    definition = kept.view.definition
    if definition is None or definition.errors:
        return ""
    sums = plan_of(definition, alias()).additive
    return sums.misfit() if sums and sums.additive.log == kept.log else ""


def _distrust_misfit(kept: ViewSums, reason: str) -> None:
    """If a batch is running, the next maintenance tries again."""
    with short_transaction():
        if not lock_available(Q(view=kept.view_id)):
            return
        used = ViewSums.objects.filter(pk=kept.pk, drain_number__gte=0)
        if not used.update(drain_number=ViewSums.FAILED, reason=reason[:255]):
            return
        _enqueue_all(kept, reason)
    sentence = "an additive view is refreshed from its source"
    log(logger, logging.ERROR, sentence, view=kept.view.label, reason=reason)


def trim_value_logs() -> bool:
    """Empty the value logs of views whose sums are not used, or that have too many entries.

    Their next refresh recomputes the sums. Logs that no view uses any more are emptied too.

    Returns:
        Whether all could be.
    """
    used = {log: kept.pk for kept in ViewSums.objects.order_by("pk") for log in kept.logs}
    emptied = [_empty(name, used.get(name)) for name in sorted(changes.present_logs())]
    return all(emptied)


def _empty(name: str, pk: int | None) -> bool:
    """Empty a value log, of the `ViewSums` with this primary key; whether that was possible."""
    try:
        while pk and _trim(pk, name):
            pass
        while not pk and changes.count_values(name, 1) and _trim_unused(name):
            pass
    except DatabaseError as error:
        sentence = "a value log cannot be emptied"
        log(logger, logging.ERROR, sentence, table=name, reason=error_text(error))
        return False
    return True


def _trim_unused(name: str) -> bool:
    """Delete some entries of a log that no view uses; False if one has come to use it meanwhile."""
    with short_transaction():
        changes.trim_values(name, TRIMMED_AT_ONCE)
        unused = not any(name in kept.logs for kept in ViewSums.objects.all())
        if not unused:
            transaction.set_rollback(True, using=alias())
        return unused


def _trim(pk: int, name: str) -> bool:
    """Delete some entries in a short transaction; whether there may be more to delete."""
    with short_transaction():
        kept = ViewSums.objects.filter(pk=pk)
        if not lock_available(Q(view__in=kept.values("view"))):
            return False
        for view_id, drain_number in kept.values_list("view", "drain_number"):
            few = MAX_ENTRIES if drain_number >= 0 else 0
            if changes.count_values(name, few + 1) > few:
                distrust_sums(view_id)
                changes.trim_values(name, TRIMMED_AT_ONCE)
                return True
    return False
