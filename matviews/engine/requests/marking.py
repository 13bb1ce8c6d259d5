"""Marking keys as dirty by hand, for changes that no trigger could see."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import DataError, transaction

from ... import changes
from ...databases.keys import Key, to_json
from ...definition import ViewDefinition
from ...exceptions import InvalidRequest
from ...models import ViewControl
from ...queryset import Plan, as_key, plan_of
from ...registry import registry
from ..tracking.dirty_keys import KEYS_PER_ROW
from ..transactions import alias
from .controls import not_ready

__all__ = ["mark_dirty"]


def mark_dirty(view: str | type, keys: Iterable[Any] | None = None) -> list[Any]:
    """Make the next refresh of a view process these keys, or all, even if no change was logged.

    Returns:
        The keys, as they were given, that neither the view nor its source has now.

    Raises:
        UnknownView, InvalidView, ViewNotReady.
        InvalidRequest: a key is invalid, or the view has no `source()`.
    """
    definition = registry.usable(view)
    control = ViewControl.objects.filter(label=definition.label).first()
    if control is None:
        raise not_ready(definition.label)
    if keys is None:
        if definition.derived:  # every refresh calls hooks anyway
            changes.enqueue({control.pk}, "all keys were marked as dirty")
        return []
    if not definition.has_source:
        raise InvalidRequest(f"{definition.label} has no source(), so its keys are unknown.")
    plan = plan_of(definition, alias())
    given = {}
    for key in keys:
        given[_exact_key(definition, plan, key)] = key
    exact = list(given)
    unknown = _unknown(definition, plan, exact)
    for start in range(0, len(exact), KEYS_PER_ROW):
        part = exact[start : start + KEYS_PER_ROW]
        changes.enqueue({control.pk}, list(map(to_json, part)))
    return [given[key] for key in unknown]


def _exact_key(definition: ViewDefinition, plan: Plan, key: Any) -> Key:
    try:
        return as_key(plan.key_fields, key, alias())
    except ValueError as error:
        raise InvalidRequest(f"{definition.label}: {error}") from error


def _unknown(definition: ViewDefinition, plan: Plan, keys: Sequence[Key]) -> list[Key]:
    """The keys that neither view nor source has; none where every refresh is full anyway."""
    if plan.strategy.incremental_obstacle:
        return []
    try:
        # A savepoint, or PostgreSQL would refuse all that follows in the caller's transaction.
        with transaction.atomic(using=alias()):
            return plan.unknown_keys(keys)
    except DataError as error:
        raise InvalidRequest(
            f"The database rejects one of the keys of {definition.label}: {error}"
        ) from error
