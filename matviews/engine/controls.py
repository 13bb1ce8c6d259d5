"""The control and stripe rows of the views that the code defines."""

from django.db.models import Q

from ..definition import ViewDefinition
from ..models import Stripe, ViewControl
from ..registry import registry
from ..states import RefreshState
from .databases import lock_free, short_transaction

__all__ = ["sync_controls", "views_in_batch"]


def sync_controls() -> None:
    """Make the missing control and stripe rows of every registered view. Runs after `migrate`.

    Rows of views that are gone stay: they hold the history, and what an operator has set.
    """
    for definition in registry:
        control, _created = ViewControl.objects.get_or_create(
            label=definition.label, defaults=_first_values(definition)
        )
        _sync_stripes(control, most=None if definition.knows_stripes else 1)


def _first_values(definition: ViewDefinition) -> dict[str, object]:
    options = definition.options
    return {"include_in_batch": options.include_in_batch, "stripe_count": options.stripes}


def _sync_stripes(control: ViewControl, most: int | None) -> None:
    """Bring the stripes to the number that the control wants, once no refresh is open.

    One, for a view whose hooks do not declare `stripe`: each of them would do all the work.

    A refresh that is under way was told how many stripes share the keys; it goes on with these.
    """
    with short_transaction():
        free = {stripe.number: stripe.pk for stripe in lock_free(Q(view=control))}
        present = set(control.stripes.values_list("number", flat=True))
        wanted = set(range(most or max(1, control.stripe_count)))
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
    excluded = ViewControl.objects.exclude(enabled=True, include_in_batch=True)
    labels = set(excluded.values_list("label", flat=True))
    return [definition.label for definition in registry if definition.label not in labels]
