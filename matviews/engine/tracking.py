"""What is known to be unchanged: views whose tables have logged no change since they succeeded.

*Take first, compute after*: the queue of a view is emptied before anything is computed from the
source, in the same transaction. What commits later is in the queue the next time.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from typing import Any

from django.db import connections
from django.db.models import Min, QuerySet

from .. import changes
from ..changes import ChangesLogged, Standing, Taken
from ..clock import UtcNow
from ..definition import ViewDefinition
from ..exceptions import InvalidRequest
from ..models import Change, DirtyKeys, PhaseRun, Stripe, ViewChange, ViewControl, WatchedTable
from ..phases import Phase
from ..queryset import Plan, all_from_json, as_key, estimated_rows, plan_of, to_json
from ..registry import registry
from .controls import not_ready
from .databases import alias, short_transaction
from .resolving import resolve
from .work import Dirty, Work

__all__ = [
    "begin_tracked",
    "collect_changes",
    "count_keys",
    "dirty_keys",
    "end_tracked",
    "forget_untrackable",
    "load_keys",
    "look",
    "mark_dirty",
    "needs_pass",
    "oldest_changes",
    "save_dirty",
    "save_tracked",
    "shorten_queues",
]

logger = logging.getLogger(__name__)

# On PostgreSQL, a tenth of 100,000 keys takes nearly as long as a full pass (`make bench`).
SHARE = 0.1
FEW = 1_000  # keys that are never too many
PART = 1_000  # keys in a row of `DirtyKeys`
LONGEST_REASON = 255  # characters

Covers = list[Any] | None  # [changes, moment], as in `Stripe.covered`; None for nothing


def collect_changes() -> None:
    """Move what triggers have logged into the queues of the views; where nothing is, nothing is locked."""
    more = True
    while more and (found := changes.logged()):
        with short_transaction():
            more = changes.move(found)


def shorten_queues() -> None:
    """Keep the queues of views that nobody refreshes short."""
    for view_id in changes.long_queues():
        with short_transaction():
            changes.shorten(view_id)


def forget_untrackable() -> None:
    """Look whether somebody has made a table such as triggers cannot tell of; full passes follow then."""
    for table, reason in changes.forget_untrackable(alias()).items():
        logger.warning(
            "changes are not logged any more, so each refresh is a full pass table=%s reason=%s",
            table, reason,
        )  # fmt: skip


def needs_pass(work: Work, run: PhaseRun) -> bool:
    """Whether a derived phase has anything to do since it last succeeded. Takes the view's queue.

    Raises:
        ChangesLogged: the log is to be moved before this can be told.
        InvalidView: `source()` cannot be derived from.
    """
    if work.claimed is None:
        work.claimed = _claim(work)
    run.covers, run.reason = work.claimed
    if run.covers is None:
        return True
    run.reason = _whole(work, run)
    run.since = None if run.reason else work.stripe.covered[run.phase][0]
    if run.since is None or dirty_keys(work, run):
        return True
    end_tracked(work, run)
    return False


def _claim(work: Work) -> tuple[Covers, str]:
    """What a pass that begins in this batch will cover; None if changes are not tracked, and why."""
    tracking, stripe = changes.tracking_of(work.plan), work.stripe
    if tracking.reason:
        changes.take(stripe.view_id)  # each pass is a full one, whatever somebody has marked
        return None, _short(tracking.reason)
    if work.logged:
        raise ChangesLogged
    if taken := changes.take(stripe.view_id):
        _dirty(work)
        stripe.changes += 1
        work.marks = True
        _note_dirty(work, taken)
    if lacking := changes.untracked_tables(stripe.view_id, tracking, alias()):
        changes.forget_gone(alias())
        return None, _short(f"no triggers log all changes of {', '.join(sorted(lacking))}")
    return [stripe.changes, work.plan.moment], ""


def _short(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 3]}..."


def _note_dirty(work: Work, taken: Collection[Taken]) -> None:
    """Keep the keys that changes concern for the phases, unless they may be any, or are too many."""
    stripe, plan, kept = work.stripe, work.plan, _dirty(work)
    waiting = count_keys(kept)
    logged_at = min(each.logged_at for each in taken)
    stages = {run.stage for run in _staged(work) if run.fingerprint == plan.fingerprint}
    keys, reason, many = resolve(plan, taken, FEW - waiting, stages)
    if many:
        keys, reason, many = resolve(plan, taken, _most_dirty(plan) - waiting, stages)
    if keys is None:
        oldest = min([logged_at, *(each.logged_at for each in kept)])
        stripe.whole, stripe.whole_reason = stripe.changes, _short(reason)
        stripe.whole_since = min(stripe.whole_since or oldest, oldest)
        _forget(kept)
        work.dirty = []
        return
    ordered = sorted(keys)
    for at in range(0, len(ordered), PART):
        part = ordered[at : at + PART]
        kept.append(Dirty(number=stripe.changes, count=len(part), logged_at=logged_at, keys=part))


def _staged(work: Work) -> list[PhaseRun]:
    """The runs of full passes under way whose rows are as old as their staging table."""
    return [run for run in work.runs if run.stage]


def _most_dirty(plan: Plan) -> int:
    """The number of keys beyond which a full pass is cheaper."""
    model = plan.source.model
    rows = estimated_rows(alias()).get(model._meta.db_table, -1)
    if rows < 0 and connections[alias()].vendor == "sqlite":
        rows = model._base_manager.count()
    return max(FEW, int(SHARE * rows))


def _whole(work: Work, run: PhaseRun) -> str:
    """Why a phase has to look at all keys, "" if the dirty ones are all that it has to do."""
    stripe = work.stripe
    if run.phase not in stripe.covered:
        return "it has not succeeded since changes are tracked"
    number, moment = stripe.covered[run.phase]
    if moment != work.plan.moment or number < 0:
        return "source() is another query than when it last succeeded, or has other dates"
    return stripe.whole_reason if number < stripe.whole else ""


def dirty_keys(work: Work, run: PhaseRun) -> list[Dirty]:
    """The dirty keys that a run has to do, in the order of their primary keys."""
    assert run.covers is not None
    assert run.since is not None
    return [each for each in _dirty(work) if run.since < each.number <= run.covers[0]]


def count_keys(dirty: Iterable[Dirty]) -> int:
    """How many keys some parts of the dirty ones are."""
    return sum(each.count for each in dirty)


def _dirty(work: Work) -> list[Dirty]:
    if work.dirty is None and _done(work.stripe) == work.stripe.changes:
        work.dirty = []  # each was forgotten with the last phase that had it to do
    if work.dirty is None:
        rows = DirtyKeys.objects.filter(stripe=work.stripe).order_by("pk")
        names = ("pk", "number", "count", "logged_at")
        work.dirty = [
            Dirty(**dict(zip(names, row, strict=True))) for row in rows.values_list(*names)
        ]
    return work.dirty


def load_keys(plan: Plan, dirty: Iterable[Dirty]) -> None:
    """Have the keys of some parts at hand."""
    lacking = {each.pk: each for each in dirty if each.pk and each.keys is None}
    if not lacking:
        return
    rows = DirtyKeys.objects.filter(pk__in=lacking)
    for pk, keys in rows.values_list("pk", "keys"):
        lacking[pk].keys = all_from_json(plan.key_fields, keys)


def save_dirty(work: Work) -> None:
    """Save the dirty keys that are not yet."""
    stripe, fields = work.stripe, work.plan.key_fields
    for each in work.dirty or ():
        if each.pk is None:
            keys = [to_json(fields, key) for key in each.keys or ()]
            each.pk = DirtyKeys.objects.create(
                stripe=stripe,
                number=each.number,
                keys=keys,
                count=each.count,
                logged_at=each.logged_at,
            ).pk


def save_tracked(work: Work) -> None:
    """Save what a batch has found out about changes, in its transaction, and forget what is done."""
    stripe = work.stripe
    done = _done(stripe)
    _forget(each for each in work.dirty or () if each.number <= done)
    if work.dirty:
        work.dirty = [each for each in work.dirty if each.number > done]
        save_dirty(work)
    if work.marks:
        changed = {name: getattr(stripe, name) for name in _OF_CHANGES}
        Stripe.objects.filter(pk=stripe.pk).update(**changed)


def _done(stripe: Stripe) -> int:
    """The number up to which each phase that has ever succeeded has done what it had to do."""
    return min((number for number, _moment in stripe.covered.values()), default=-1)


_OF_CHANGES = ("changes", "whole", "whole_reason", "whole_since", "covered")


def begin_tracked(work: Work, run: PhaseRun) -> None:
    """Limit what a run that begins will cover, and forget what it is about to make untrue.

    A full pass builds on what other runs of its refresh have found, and covers no more than they do.
    """
    stripe, moment = work.stripe, work.plan.moment
    if run.since is None:
        leaders = [
            other.merged_into or other for other in work.runs if other.refresh_id == run.refresh_id
        ]
        run.covers = _least(
            each.covers for each in leaders if each is run or each.fingerprint == run.fingerprint
        )
    # Rows of another moment may go with this run, even if it does not come to its end.
    covered = {
        phase: [number if known == moment else -1, known]
        for phase, (number, known) in stripe.covered.items()
    }
    if covered != stripe.covered:
        stripe.covered = covered
        work.marks = True


def _least(several: Iterable[Covers]) -> Covers:
    known = list(several)
    if not all(known) or len({covers[1] for covers in known if covers}) > 1:
        return None
    return min(known, key=lambda covers: covers[0] if covers else 0)


def end_tracked(work: Work, run: PhaseRun) -> None:
    """Note what a run that has succeeded covers; in the transaction of its last batch.

    That is no more than a staging table holds of which rows may yet be written: it may be older.
    """
    stripe = work.stripe
    if run.covers is None or run.covers[1] != work.plan.moment:
        return
    _dirty(work)  # to be forgotten, as far as they are done
    staged = (each.covers[0] if each.covers else -1 for each in _staged(work))
    covers = [min([run.covers[0], *staged]), run.covers[1]]
    stripe.covered = {**stripe.covered, run.phase: covers}
    if _done(stripe) >= stripe.whole:
        stripe.whole_since = None
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
    covered = (stands.covered.get(each) == [stands.changes, plan.moment] for each in phases)
    return stands, stands.complete and all(covered)


def oldest_changes() -> dict[int, timedelta]:
    """How old the oldest change is that is not applied yet, by primary key of the view's control.

    Views without one are left out. The number of statements does not depend on that of the views.
    """
    ages: dict[int, timedelta] = {}

    def note(view_id: int, age: timedelta) -> None:
        ages[view_id] = max(age, ages.get(view_id, timedelta()))

    logged = dict(_ages(Change.objects.all(), "table", "logged_at"))
    for watched in WatchedTable.objects.filter(table__in=logged):
        for view_id in watched.views:
            note(view_id, logged[watched.table])
    for view_id, age in (
        *_ages(ViewChange.objects.all(), "view", "logged_at"),
        *_ages(DirtyKeys.objects.all(), "stripe__view", "logged_at"),
        *_ages(Stripe.objects.exclude(whole_since=None), "view", "whole_since"),
    ):
        note(view_id, age)
    return ages


def _ages(rows: QuerySet[Any], by: str, moment: str) -> QuerySet[Any, tuple[Any, timedelta]]:
    """How long ago the first moment of rows is, by what they belong to."""
    return rows.order_by().values(by).values_list(by, UtcNow() - Min(moment))


def mark_dirty(view: str | type, keys: Iterable[Any] | None = None) -> None:
    """Have the next refresh of a view look at keys, or at all of them, whatever is known of its tables.

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
        return
    if not definition.has_source:
        raise InvalidRequest(f"{definition.label} has no source(), so nobody knows its key.")
    fields = plan_of(definition, alias()).key_fields
    texts = [_key_as_text(definition, fields, each) for each in keys]
    for at in range(0, len(texts), PART):
        changes.enqueue({control.pk}, texts[at : at + PART])


def _key_as_text(definition: ViewDefinition, fields: Sequence[Any], key: Any) -> list[str]:
    try:
        return to_json(fields, as_key(fields, key))
    except ValueError as error:
        raise InvalidRequest(f"That is no key of {definition.label}: {error}") from error
