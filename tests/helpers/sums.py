"""The sums of additive views, as tests look at them."""

from typing import Any

from matviews import engine
from matviews.models import ViewSums
from matviews.queryset import GroupSums, count_differing, plan_of
from matviews.registry import registry

__all__ = ["additive_of", "kept_of", "sums_differ"]


def additive_of(view: type[Any]) -> GroupSums | None:
    """The sums of a view, if it is additive."""
    return plan_of(registry.find(view), engine.alias()).additive


def kept_of(view: type[Any]) -> ViewSums:
    """The record of a view's sums."""
    return ViewSums.objects.get(view__label=view._meta.label)


def sums_differ(view: type[Any]) -> int:
    """In how many groups the sums with what is logged differ from the source."""
    sums, kept = additive_of(view), kept_of(view)
    assert sums is not None
    return count_differing(sums, kept.log, kept.table)
