"""The control, stripe and first schedule rows of the views that the code defines."""

from datetime import timedelta

from django.db.models import Count, F, Q

from ..definition import ViewDefinition
from ..models import Period, RefreshSchedule, Stripe, ViewControl
from ..registry import registry
from ..states import RefreshState
from .databases import lock_free, short_transaction

__all__ = ["sync_controls", "sync_stripes", "views_in_batch"]


def sync_controls() -> None:
    """Make the missing control and stripe rows of every registered view. Runs after `migrate`.

    Rows of views that are gone stay: they hold the history, and what an operator has set.
    """
    for definition in registry:
        control, _created = ViewControl.objects.get_or_create(
            label=definition.label, defaults=_first_values(definition)
        )
        _sync_stripes(control)
        if definition.options.refresh_every and not control.default_scheduled:
            _schedule(control, definition)


def sync_stripes() -> None:
    """Bring the stripes of every view to the number that its control wants.

    A view with an open refresh has to wait: that was told how many stripes share the keys.
    """
    counted = ViewControl.objects.annotate(present=Count("stripes"))
    for control in counted.exclude(present=F("stripe_count")):
        if control.definition and control.present != _stripes_wanted(control):
            _sync_stripes(control)


def _first_values(definition: ViewDefinition) -> dict[str, object]:
    options = definition.options
    return {"include_in_batch": options.include_in_batch, "stripe_count": options.stripes}


def _schedule(control: ViewControl, definition: ViewDefinition) -> None:
    """Make the schedules that the code proposes: once, and not beside an operator's own."""
    with short_transaction():
        first = ViewControl.objects.filter(pk=control.pk, default_scheduled=False)
        if first.update(default_scheduled=True) and not control.schedules.exists():
            RefreshSchedule.objects.bulk_create(
                RefreshSchedule(view=control, phases=list(phases), every=every, period=period)
                for phases, interval in definition.options.intervals.items()
                for every, period in [_in_units(interval)]
            )


def _in_units(interval: timedelta) -> tuple[int, Period]:
    """An interval in the largest unit that it is a whole number of."""
    period = next(period for period in reversed(Period) if not interval % period.length)
    return interval // period.length, period


def _stripes_wanted(control: ViewControl) -> int:
    """One, for a view whose hooks do not declare `stripe`: each of them would do all the work."""
    knows = control.definition is not None and control.definition.knows_stripes
    return max(1, control.stripe_count) if knows else 1


def _sync_stripes(control: ViewControl) -> None:
    with short_transaction():
        free = {stripe.number: stripe.pk for stripe in lock_free(Q(view=control))}
        present = set(control.stripes.values_list("number", flat=True))
        wanted = set(range(_stripes_wanted(control)))
        busy = present - set(free) or control.refreshes.filter(state=RefreshState.OPEN).exists()
        if present == wanted or (present and busy):
            return
        control.stripes.filter(pk__in=[free[number] for number in present - wanted]).delete()
        Stripe.objects.bulk_create(
            [Stripe(view=control, number=number) for number in sorted(wanted - present)]
        )


def views_in_batch() -> list[str]:
    """Labels of the views that a refresh of everything includes.

    A view without a control row is among them: asking for its refresh says what is missing.
    """
    excluded = ViewControl.objects.exclude(enabled=True, paused=False, include_in_batch=True)
    labels = set(excluded.values_list("label", flat=True))
    return [definition.label for definition in registry if definition.label not in labels]
