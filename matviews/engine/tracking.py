"""What is known to be unchanged: views whose tables have logged no change since they succeeded.

*Take first, compute after*: the queue of a view is emptied before anything is computed from the
source, in the same transaction. What commits later is in the queue the next time.
"""

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from django.db import DatabaseError, DataError, connections, transaction

from .. import changes
from ..changes import ChangesLogged, Standing, Taken
from ..databases import catalog_of
from ..databases.keys import Key, from_json, to_json
from ..definition import ViewDefinition
from ..exceptions import InvalidRequest
from ..models import DirtyKeys, PhaseRun, ViewControl, ViewShard
from ..phases import Phase
from ..queryset import Plan, as_key, plan_of
from ..registry import registry
from .controls import not_ready
from .pending import add_drain, drop_processed, processed
from .resolving import resolve
from .transactions import alias, short_transaction
from .work import Dirty, Work

__all__ = [
    "await_changes",
    "begin_tracked",
    "collect_changes",
    "count_keys",
    "dirty_keys",
    "distrust_dirty",
    "end_tracked",
    "finish_triggers",
    "forget_gone",
    "forget_mistyped",
    "forget_untrackable",
    "load_keys",
    "look",
    "mark_dirty",
    "needs_pass",
    "save_dirty",
    "save_tracked",
    "short",
    "shorten_queues",
]

logger = logging.getLogger(__name__)

# On PostgreSQL, a tenth of 100,000 keys takes nearly as long as a full pass (`make bench`).
SHARE = 0.1
FEW = 1_000  # keys that are never too many
PART = 1_000  # keys in a row of `DirtyKeys`
LONGEST_REASON = 255  # characters
# Seconds between looks at a log that another process is moving: that takes it milliseconds, unless it is
# frozen, and then seconds.
PAUSES = tuple(0.01 * 2**number for number in range(8))

Checkpoint = (
    list[Any] | None
)  # as in `ViewShard.covered`; None where changes are not tracked at all


def collect_changes() -> None:
    """Move what triggers have logged into the queues of the views, but for what others are moving."""
    more = changes.is_logged()
    while more:
        with short_transaction():
            more = changes.move()


def await_changes(logged: ChangesLogged) -> list[str]:
    """Have the entries of a log moved, here or by whoever is at it, for as long as PAUSES are.

    Returns:
        The tables of which some are still not.
    """
    left: list[str] = []
    for pause in PAUSES:
        collect_changes()
        left = changes.unmoved(logged.tables, logged.newest)
        if not left:
            break
        time.sleep(pause)
    return left


def shorten_queues() -> None:
    """Keep the queues of views that nobody refreshes short."""
    for view_id in changes.long_queues():
        with short_transaction():
            changes.shorten(view_id)


def forget_gone() -> None:
    """Stop trusting triggers that somebody has dropped, disabled or made anew; full passes follow then."""
    with _limited():
        changes.forget_gone(alias())


def forget_untrackable() -> None:
    """Look whether somebody has made a table such as triggers cannot tell of; full passes follow then."""
    with _limited():
        untrackable = changes.forget_untrackable(alias())
    for table, reason in untrackable.items():
        logger.warning(
            "changes are not logged any more, so each refresh is a full pass table=%s reason=%s",
            table, reason,
        )  # fmt: skip


@contextmanager
def _limited() -> Iterator[None]:
    """A short transaction where rows are locked. SQLite locks none, and need not let a reader write."""
    locks = connections[alias()].features.has_select_for_update
    with short_transaction() if locks else nullcontext():
        yield


def finish_triggers() -> None:
    """Make the triggers that `migrate` had to leave, for somebody wrote to their tables."""
    try:
        left = changes.finish(alias())
    except DatabaseError as error:
        logger.warning(
            "triggers are still to be made: run `manage.py update_materialized_views --triggers "
            "install` as the owner of the tables error=%s", str(error).strip(),
        )  # fmt: skip
        return
    for table, reason in left.items():
        logger.warning("triggers are still to be made table=%s reason=%s", table, reason)


def forget_mistyped() -> None:
    """Look whether somebody has given columns of keys or links another type; full refreshes follow then."""
    found = changes.mistyped(alias())
    controls = dict(ViewControl.objects.filter(label__in=found).values_list("pk", "label"))
    with short_transaction():
        for pk in changes.untrust(controls.keys()):
            logger.warning(
                "changes are not believed any more, so each refresh is a full one view=%s reason=%s",
                controls[pk], found[controls[pk]],
            )  # fmt: skip


def needs_pass(work: Work, run: PhaseRun) -> bool:
    """Whether a derived phase has anything to do since it last succeeded. Takes the view's queue.

    Raises:
        ChangesLogged: the log is to be moved before this can be told.
        InvalidView: `source()` cannot be derived from.
    """
    if work.checkpoint is None:
        work.checkpoint = _claim(work)
    run.checkpoint, run.full_refresh_reason = work.checkpoint
    run.full_refresh_reason = run.full_refresh_reason or _whole(work, run)
    run.dirty_after = None if run.full_refresh_reason else work.shard.checkpoints[run.phase][0]
    if run.dirty_after is None or dirty_keys(work, run):
        return True
    end_tracked(work, run)
    return False


def _claim(work: Work) -> tuple[Checkpoint, str]:
    """What a pass that begins in this batch will cover, and why it has to be a full one, if that is known."""
    tracking, shard = changes.tracking_of(work.plan), work.shard
    if tracking.reason:
        changes.take(shard.view_id)  # each pass is a full one, whatever somebody has marked
        if shard.checkpoints or shard.pending:  # of a time when changes were tracked
            shard.checkpoints, shard.pending, work.marks = {}, [], True
        return None, short(tracking.reason)
    if work.logged:
        raise ChangesLogged(tracking.tables.keys(), work.logged)
    if taken := changes.take(shard.view_id):
        _dirty(work)
        shard.drain_number += 1
        work.marks = True
        add_drain(shard, min(each.logged_at for each in taken), work.runs)
        _note_dirty(work, taken)
    if lacking := changes.untracked_tables(shard.view_id, tracking, alias()):
        changes.forget_gone(alias())
        no_triggers = f"no triggers log all changes of {', '.join(sorted(lacking))}"
        return [shard.drain_number, None], short(work.plan.mismatch() or no_triggers)
    return [shard.drain_number, work.plan.moment], ""


def short(reason: str) -> str:
    """A reason, at most as long as it may be."""
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 3]}..."


def _note_dirty(work: Work, taken: Collection[Taken]) -> None:
    """Keep the keys that changes concern for the phases, unless they may be any, or are too many."""
    shard, plan, kept = work.shard, work.plan, _dirty(work)
    waiting = count_keys(kept)
    stages = {run.stage for run in _staged(work) if run.fingerprint == plan.fingerprint}
    keys, reason, many = resolve(plan, taken, FEW - waiting, stages)
    if many:
        keys, reason, many = resolve(plan, taken, _most_dirty(plan) - waiting, stages)
    if keys is None:
        shard.full_refresh_after, shard.full_refresh_reason = shard.drain_number, short(reason)
        _forget(kept)
        work.dirty = []
        return
    found = list(keys)
    for at in range(0, len(found), PART):
        part = found[at : at + PART]
        kept.append(Dirty(drain_number=shard.drain_number, count=len(part), keys=part))


def _staged(work: Work) -> list[PhaseRun]:
    """The runs of full passes under way whose rows are as old as their staging table."""
    return [run for run in work.runs if run.stage]


def _most_dirty(plan: Plan) -> int:
    """The number of keys beyond which a full pass is cheaper."""
    model = plan.source.model
    catalog = catalog_of(alias())
    rows = catalog.estimated_rows().get(model._meta.db_table, -1)
    if rows < 0 and not catalog.has_estimates:
        rows = model._base_manager.using(alias()).count()
    return max(FEW, int(SHARE * rows))


def _whole(work: Work, run: PhaseRun) -> str:
    """Why a phase has to look at all keys, "" if the dirty ones are all that it has to do."""
    shard = work.shard
    if run.phase not in shard.checkpoints:
        return "it has not succeeded since changes are tracked"
    number, moment = shard.checkpoints[run.phase]
    if number < shard.full_refresh_after:
        return shard.full_refresh_reason
    if moment != work.plan.moment or number < 0:
        return "source() is another query than when it last succeeded, or has other dates"
    return ""


def distrust_dirty(work: Work, run: PhaseRun) -> None:
    """After an error of data over dirty keys: the next run looks at all keys, or it would fail like this one.

    As where a column has got another type, which cannot have the logged values.
    """
    if run.phase in work.shard.checkpoints:
        number = work.shard.drain_number + 1
        reason = "the database could not read a dirty key, or compute its row"
        ViewShard.objects.filter(pk=work.shard.pk).update(
            drain_number=number, full_refresh_after=number, full_refresh_reason=reason
        )


def dirty_keys(work: Work, run: PhaseRun) -> list[Dirty]:
    """The dirty keys that a run has to do, in the order of their primary keys."""
    assert run.checkpoint is not None
    assert run.dirty_after is not None
    return [
        each for each in _dirty(work) if run.dirty_after < each.drain_number <= run.checkpoint[0]
    ]


def count_keys(dirty: Iterable[Dirty]) -> int:
    """How many keys some parts of the dirty ones are."""
    return sum(each.count for each in dirty)


def _dirty(work: Work) -> list[Dirty]:
    if work.dirty is None and _done(work) == work.shard.drain_number:
        work.dirty = []  # each was forgotten with the last phase that had it to do
    if work.dirty is None:
        rows = DirtyKeys.objects.filter(shard=work.shard).order_by("pk")
        names = ("pk", "drain_number", "count")
        work.dirty = [
            Dirty(**dict(zip(names, row, strict=True))) for row in rows.values_list(*names)
        ]
    return work.dirty


def load_keys(dirty: Iterable[Dirty]) -> None:
    """Have the keys of some parts at hand."""
    lacking = {each.pk: each for each in dirty if each.pk and each.keys is None}
    if not lacking:
        return
    rows = DirtyKeys.objects.filter(pk__in=lacking)
    for pk, keys in rows.values_list("pk", "keys"):
        lacking[pk].keys = list(map(from_json, keys))


def save_dirty(work: Work) -> None:
    """Save the dirty keys that are not yet."""
    shard = work.shard
    for each in work.dirty or ():
        if each.pk is None:
            keys = list(map(to_json, each.keys or ()))
            each.pk = DirtyKeys.objects.create(
                shard=shard, drain_number=each.drain_number, keys=keys, count=each.count
            ).pk


def save_tracked(work: Work) -> None:
    """Save what a batch has found out about changes, in its transaction, and forget what is done."""
    shard = work.shard
    done = _done(work)
    _forget(each for each in work.dirty or () if each.drain_number <= done)
    if work.dirty:
        work.dirty = [each for each in work.dirty if each.drain_number > done]
        save_dirty(work)
    if work.marks:
        changed = {name: getattr(shard, name) for name in _OF_CHANGES}
        ViewShard.objects.filter(pk=shard.pk).update(**changed)


def _done(work: Work) -> int:
    """The number up to which each phase that has ever succeeded has done what it had to do.

    At most the least that a run of an open refresh covers. A phase that has never succeeded covers only what
    the phases before it in its refresh do, and needs the keys of every later change.
    """
    covers: list[int] = [run.checkpoint[0] for run in work.runs if run.checkpoint]
    return min([processed(work.shard, work.shard.checkpoints), *covers])


_OF_CHANGES = (
    "drain_number", "full_refresh_after", "full_refresh_reason", "pending", "checkpoints",
)  # fmt: skip


def begin_tracked(work: Work, run: PhaseRun) -> None:
    """Limit what a run that begins will cover, and forget what it is about to make untrue.

    A full pass builds on what other runs of its refresh have found, and covers no more than they do.
    """
    shard, moment = work.shard, work.plan.moment
    if run.dirty_after is None and run.checkpoint:
        leaders = [
            other.merged_into or other for other in work.runs if other.refresh_id == run.refresh_id
        ]
        run.checkpoint = _least(
            each.checkpoint
            for each in leaders
            if each is run or each.fingerprint == run.fingerprint
        )
    # Rows of another moment may go with this run, even if it does not come to its end.
    covered = {
        phase: [number, known if known == moment else None]
        for phase, (number, known) in shard.checkpoints.items()
    }
    if covered != shard.checkpoints:
        shard.checkpoints = covered
        work.marks = True


def _least(several: Iterable[Checkpoint]) -> Checkpoint:
    numbers, moments = zip(*(covers or (-1, None) for covers in several), strict=True)
    return [min(numbers), moments[0] if len(set(moments)) == 1 else None]


def end_tracked(work: Work, run: PhaseRun) -> None:
    """Note what a run that has succeeded covers; in the transaction of its last batch.

    That is no more than a staging table holds of which rows may yet be written: it may be older. What is
    known of phases that the view no longer has would hold up the others for ever.
    """
    shard, definition = work.shard, work.definition
    if run.checkpoint is None or definition is None:
        return
    _dirty(work)  # to be forgotten, as far as they are done
    number, moment = run.checkpoint
    staged = (each.checkpoint[0] if each.checkpoint else -1 for each in _staged(work))
    covers = [min([number, *staged]), moment if moment == work.plan.moment else None]
    covered = {**shard.checkpoints, run.phase: covers}
    phases = definition.options.phases
    shard.checkpoints = {phase: covered[phase] for phase in phases if phase in covered}
    drop_processed(shard, phases)
    work.marks = True


def _forget(dirty: Iterable[Dirty]) -> None:
    """Delete dirty keys. A DELETE that looks for them would come across, and wait for, those of others."""
    changes.delete_rows(DirtyKeys, [each.pk for each in dirty if each.pk is not None])


def look(definition: ViewDefinition, phases: Collection[Phase]) -> tuple[Standing | None, bool]:
    """How a view's changes stand, if that is known, and whether it tells that phases have nothing to do.

    One statement, which does not look at the source.

    Raises:
        InvalidView: `source()` cannot be derived from.
    """
    if not set(phases) <= definition.derived:
        return None, False
    plan = plan_of(definition, alias())
    tracking = changes.tracking_of(plan)
    stands = None if tracking.reason else changes.standing(definition.label, tracking, alias())
    if stands is None:
        return None, False
    covered = (
        stands.checkpoints.get(each) == [stands.drain_number, plan.moment] for each in phases
    )
    return stands, stands.complete and all(covered)


def mark_dirty(view: str | type, keys: Iterable[Any] | None = None) -> list[Any]:
    """Have the next refresh of a view look at keys, or at all of them, whatever is known of its tables.

    Returns:
        The keys, as they were given, that neither the view nor its source has at this moment.

    Raises:
        UnknownView, InvalidView, ViewNotReady.
        InvalidRequest: something is not a key, or the view has no `source()`.
    """
    definition = registry.usable(view)
    control = ViewControl.objects.filter(label=definition.label).first()
    if control is None:
        raise not_ready(definition.label)
    if keys is None:
        if definition.derived:  # hooks are asked at each refresh anyway
            changes.enqueue({control.pk}, "all keys were marked as dirty")
        return []
    if not definition.has_source:
        raise InvalidRequest(f"{definition.label} has no source(), so nobody knows its key.")
    plan = plan_of(definition, alias())
    given = {}
    for each in keys:
        given[_exact_key(definition, plan, each)] = each
    exact = list(given)
    unknown = _unknown(definition, plan, exact)
    for at in range(0, len(exact), PART):
        changes.enqueue({control.pk}, list(map(to_json, exact[at : at + PART])))
    return [given[key] for key in unknown]


def _exact_key(definition: ViewDefinition, plan: Plan, key: Any) -> Key:
    try:
        return as_key(plan.key_fields, key, alias())
    except ValueError as error:
        raise InvalidRequest(f"That is no key of {definition.label}: {error}") from error


def _unknown(definition: ViewDefinition, plan: Plan, keys: Sequence[Key]) -> list[Key]:
    """The keys that neither view nor source has; none is told where a refresh looks at all keys anyway."""
    if plan.strategy.incremental_obstacle:
        return []
    try:
        with transaction.atomic(
            using=alias()
        ):  # else PostgreSQL would do nothing more after an error
            return plan.unknown_keys(keys)
    except DataError as error:
        raise InvalidRequest(
            f"The database takes one of the keys for none of {definition.label}: {error}"
        ) from error
