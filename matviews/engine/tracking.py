"""What is known to be unchanged: views whose tables have logged no change since they succeeded.

*Take first, compute after*: the queue of a view is emptied before anything is computed from the
source, in the same transaction. What commits later is in the queue the next time.
"""

from collections.abc import Iterable
from typing import Any

from .. import changes
from ..changes import ChangesLogged
from ..definition import ViewDefinition
from ..models import PhaseRun, Stripe, ViewControl
from ..phases import Phase
from ..queryset import plan_of
from ..registry import registry
from .controls import not_ready
from .databases import alias, short_transaction
from .work import Work

__all__ = [
    "begin_tracked",
    "collect_changes",
    "end_tracked",
    "is_known_fresh",
    "mark_dirty",
    "needs_pass",
    "shorten_queues",
]

Covers = list[Any] | None  # [changes, moment], as in `Stripe.covered`; None for nothing


def collect_changes() -> None:
    """Move what triggers have logged into the queues of the views."""
    more = True
    while more:
        with short_transaction():
            more = changes.move()


def shorten_queues() -> None:
    """Keep the queues of views that nobody refreshes short."""
    with short_transaction():
        changes.shorten_queues()


def needs_pass(work: Work, run: PhaseRun) -> bool:
    """Whether a derived phase has anything to do since it last succeeded. Takes the view's queue.

    Raises:
        ChangesLogged: the log is to be moved before this can be told.
        InvalidView: `source()` cannot be derived from.
    """
    run.covers = _claimed(work)
    return run.covers is None or work.stripe.covered.get(run.phase) != run.covers


def _claimed(work: Work) -> Covers:
    """What a pass that begins in this batch will cover; None if the changes are not tracked."""
    if work.claimed is None:
        work.claimed = (_claim(work),)
    return work.claimed[0]


def _claim(work: Work) -> Covers:
    tracking = changes.tracking_of(work.plan)
    if tracking.reason:
        return None
    if work.logged:
        raise ChangesLogged
    stripe = work.stripe
    if changes.take(stripe.view_id):
        stripe.changes += 1
        _save(stripe)
    if not changes.is_watched(stripe.view_id, tracking, alias()):
        return None
    return [stripe.changes, work.plan.moment]


def begin_tracked(work: Work, run: PhaseRun) -> None:
    """Limit what a run that begins will cover, and note that what it is about to rewrite is not covered.

    It builds on what other runs of its refresh have found, and covers no more than they do.
    """
    stripe, moment = work.stripe, work.plan.moment
    leaders = [
        other.merged_into or other for other in work.runs if other.refresh_id == run.refresh_id
    ]
    run.covers = _least(
        each.covers for each in leaders if each is run or each.fingerprint == run.fingerprint
    )
    # Rows of another moment may go with this run, even if it does not come to its end.
    kept = {
        phase: known
        for phase, known in stripe.covered.items()
        if phase != run.phase and known[1] == moment
    }
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
    if run.covers is not None and run.covers[1] == work.plan.moment:
        work.stripe.covered = {**work.stripe.covered, run.phase: run.covers}
        _save(work.stripe)


def _save(stripe: Stripe) -> None:
    Stripe.objects.filter(pk=stripe.pk).update(changes=stripe.changes, covered=stripe.covered)


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
    return [each.covered.get(phase) for each in stripes] == [
        [each.changes, plan.moment] for each in stripes
    ]


def mark_dirty(view: str | type) -> None:
    """Have the next refresh of a view look at all of its rows, whatever is known of its tables.

    Raises:
        UnknownView, InvalidView, ViewNotReady.
    """
    label = registry.usable(view).label
    control = ViewControl.objects.filter(label=label).first()
    if control is None:
        raise not_ready(label)
    changes.enqueue({control.pk})
