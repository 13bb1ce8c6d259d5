"""What is known to be unchanged: views whose tables have logged no change since they succeeded.

*Take first, compute after*: the queue of a view is emptied before anything is computed from the
source, in the same transaction. What commits later is in the queue the next time.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.db import connections
from django.db.models import QuerySet, Sum

from .. import changes
from ..changes import ChangesLogged, Taken
from ..definition import ViewDefinition
from ..exceptions import InvalidRequest
from ..models import DirtyKeys, PhaseRun, Stripe, ViewControl
from ..phases import Phase
from ..queryset import Plan, estimated_rows, from_json, plan_of, to_json
from ..registry import registry
from .controls import not_ready
from .databases import alias, short_transaction
from .resolving import resolve
from .work import Work

__all__ = [
    "begin_tracked",
    "collect_changes",
    "dirty_keys",
    "end_tracked",
    "is_known_fresh",
    "mark_dirty",
    "needs_pass",
    "shorten_queues",
]

# On PostgreSQL, a tenth of 100,000 keys takes nearly as long as a full pass (`make bench`).
SHARE = 0.1
FEW = 1_000  # keys that are never too many
PART = 1_000  # keys in a row of `DirtyKeys`

Covers = list[Any] | None  # [changes, moment], as in `Stripe.covered`; None for nothing


def collect_changes() -> None:
    """Move what triggers have logged into the queues of the views; where nothing is, nothing is locked."""
    more = changes.is_logged()
    while more:
        with short_transaction():
            more = changes.move()


def shorten_queues() -> None:
    """Keep the queues of views that nobody refreshes short."""
    for view_id in changes.long_queues():
        with short_transaction():
            changes.shorten(view_id)


def needs_pass(work: Work, run: PhaseRun) -> bool:
    """Whether a derived phase has anything to do since it last succeeded. Takes the view's queue.

    Raises:
        ChangesLogged: the log is to be moved before this can be told.
        InvalidView: `source()` cannot be derived from.
    """
    run.covers = _claimed(work)
    if run.covers is None:
        return True
    run.since = _covered(work, run)
    if run.since is None or dirty_keys(run).exists():
        return True
    end_tracked(work, run)
    return False


def _claimed(work: Work) -> Covers:
    """What a pass that begins in this batch will cover; None if the changes are not tracked."""
    if work.claimed is None:
        work.claimed = (_claim(work),)
    return work.claimed[0]


def _claim(work: Work) -> Covers:
    tracking, stripe = changes.tracking_of(work.plan), work.stripe
    if tracking.reason:
        changes.take(stripe.view_id)  # each pass is a full one, whatever somebody has marked
        return None
    if work.logged:
        raise ChangesLogged
    if taken := changes.take(stripe.view_id):
        stripe.changes += 1
        _note_dirty(work, taken)
        _save(stripe)
    if not changes.is_watched(stripe.view_id, tracking, alias()):
        return None
    return [stripe.changes, work.plan.moment]


def _note_dirty(work: Work, taken: Collection[Taken]) -> None:
    """Keep the keys that changes concern for the phases, unless they may be any, or are too many."""
    stripe, plan = work.stripe, work.plan
    kept = DirtyKeys.objects.filter(stripe=stripe)
    waiting = kept.aggregate(keys=Sum("count"))["keys"] or 0
    keys = resolve(plan, taken, FEW - waiting)
    if keys is None:
        keys = resolve(plan, taken, _most_dirty(plan) - waiting)
    if keys is None:
        stripe.whole = stripe.changes
        kept.delete()
        return
    texts = sorted(to_json(plan.key_fields, key) for key in keys)
    DirtyKeys.objects.bulk_create(
        DirtyKeys(stripe=stripe, number=stripe.changes, keys=part, count=len(part))
        for part in (texts[at : at + PART] for at in range(0, len(texts), PART))
    )


def _most_dirty(plan: Plan) -> int:
    """The number of keys beyond which a full pass is cheaper."""
    model = plan.source.model
    rows = estimated_rows(alias()).get(model._meta.db_table, -1)
    if rows < 0 and connections[alias()].vendor == "sqlite":
        rows = model._base_manager.count()
    return max(FEW, int(SHARE * rows))


def _covered(work: Work, run: PhaseRun) -> int | None:
    """The number of changes after which dirty keys are all that a phase has to do; None for all keys."""
    number, moment = work.stripe.covered.get(run.phase, (-1, ""))
    known = moment == work.plan.moment and number >= work.stripe.whole
    return number if known else None


def dirty_keys(run: PhaseRun) -> QuerySet[DirtyKeys]:
    """The dirty keys that a run has to do."""
    assert run.covers is not None
    rows = DirtyKeys.objects.filter(stripe=run.stripe_id, number__lte=run.covers[0])
    return rows.filter(number__gt=run.since).order_by("pk")


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
    kept = {phase: known for phase, known in stripe.covered.items() if known[1] == moment}
    if kept != stripe.covered:
        stripe.covered = kept
        _save(stripe)


def _least(several: Iterable[Covers]) -> Covers:
    known = list(several)
    if not all(known) or len({covers[1] for covers in known if covers}) > 1:
        return None
    return min(known, key=lambda covers: covers[0] if covers else 0)


def end_tracked(work: Work, run: PhaseRun) -> None:
    """Note what a run that has succeeded covers; in the transaction of its last batch."""
    stripe = work.stripe
    if run.covers is None or run.covers[1] != work.plan.moment:
        return
    stripe.covered = {**stripe.covered, run.phase: run.covers}
    _save(stripe)
    done = min(number for number, _moment in stripe.covered.values())
    DirtyKeys.objects.filter(stripe=stripe, number__lte=done).delete()


def _save(stripe: Stripe) -> None:
    Stripe.objects.filter(pk=stripe.pk).update(
        changes=stripe.changes, whole=stripe.whole, covered=stripe.covered
    )


def is_known_fresh(definition: ViewDefinition, phase: Phase) -> bool:
    """Whether it is known, without looking at the source, that a phase has nothing to do.

    The log is read before the queue and the queue before the stripe: a change is moved that way.
    """
    if phase not in definition.derived:
        return False
    plan = plan_of(definition, alias())
    tracking = changes.tracking_of(plan)
    control = ViewControl.objects.filter(label=definition.label).first()
    if tracking.reason or control is None or changes.is_logged(set(tracking.tables)):
        return False
    if changes.is_queued(control.pk) or not changes.is_watched(control.pk, tracking, alias()):
        return False
    stripes = Stripe.objects.filter(view=control)
    return all(each.covered.get(phase) == [each.changes, plan.moment] for each in stripes)


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
            changes.enqueue({control.pk})
        return
    if not definition.has_source:
        raise InvalidRequest(f"{definition.label} has no source(), so nobody knows its key.")
    fields = plan_of(definition, alias()).key_fields
    texts = [_key_as_text(definition, fields, each) for each in keys]
    for at in range(0, len(texts), PART):
        changes.enqueue({control.pk}, texts[at : at + PART])


def _key_as_text(definition: ViewDefinition, fields: Sequence[Any], key: Any) -> list[str]:
    values = tuple(key) if isinstance(key, (tuple, list)) else (key,)
    names = ", ".join(field.name for field in fields)
    refusal = InvalidRequest(f"{key!r} is no key of {definition.label}: that is {names}.")
    if None in values:
        raise refusal
    try:
        return to_json(fields, from_json(fields, values))
    except (ValidationError, ValueError, TypeError) as error:
        raise refusal from error
