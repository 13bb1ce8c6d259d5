"""Marking keys as dirty by hand: what changed where no trigger could see it."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import DataError, transaction

from .. import changes
from ..databases.keys import Key, to_json
from ..definition import ViewDefinition
from ..exceptions import InvalidRequest
from ..models import ViewControl
from ..queryset import Plan, as_key, plan_of
from ..registry import registry
from .controls import not_ready
from .transactions import alias

__all__ = ["PART", "mark_dirty"]


PART = 1_000  # keys in a row of `DirtyKeys`


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
