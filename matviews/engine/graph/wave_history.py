"""Which refreshes belong to one wave: those that one has followed, and those that it led to."""

from collections.abc import Iterable
from typing import Any

from django.db.models import OuterRef, QuerySet, Subquery, Sum

from ...models import PhaseRun, Refresh
from .view_graph import reached, view_graph

__all__ = ["MAX_IN_WAVE", "wave_of"]

MAX_IN_WAVE = 50  # refreshes
MAX_SCANNED = 1_000  # refreshes among which those that followed are looked for


def wave_of(refresh: Refresh) -> list[Any]:
    """The refreshes of the wave that one belongs to, itself included, in order of their requests.

    Each has its `view`, and `rows_written`. Those that maintenance has deleted are missing.
    """
    members = {each.pk: each for each in _with_rows(Refresh.objects.filter(pk=refresh.pk))}
    _add_upstream(members)
    followed = _followed_by(members)
    for each in followed:
        if len(members) < MAX_IN_WAVE and members.keys() & set(each.upstream_refreshes):
            members[each.pk] = each
    _add_upstream(members)
    return sorted(members.values(), key=lambda each: each.pk)


def _followed_by(members: dict[int, Any]) -> QuerySet[Any]:
    """The refreshes that may have followed: their primary keys are higher than what they follow."""
    if not members:
        return Refresh.objects.none()
    own = {each.view.label for each in members.values()}
    labels = reached(own, view_graph().views_reading)
    later = Refresh.objects.filter(view__label__in=labels, pk__gt=min(members))
    return _with_rows(later.exclude(pk__in=members))[:MAX_SCANNED]


def _add_upstream(members: dict[int, Any]) -> None:
    """Add what the members have followed, over any number of refreshes."""
    while missing := _upstream(members.values()) - members.keys():
        found = {each.pk: each for each in _with_rows(Refresh.objects.filter(pk__in=missing))}
        if not found or len(members) + len(found) > MAX_IN_WAVE:
            return
        members |= found


def _upstream(refreshes: Iterable[Any]) -> set[int]:
    return {pk for each in refreshes for pk in each.upstream_refreshes}


def _with_rows(refreshes: QuerySet[Refresh]) -> QuerySet[Any]:
    runs = PhaseRun.objects.filter(refresh=OuterRef("pk")).order_by().values("refresh")
    total = Subquery(runs.values(total=Sum("rows")))
    return refreshes.select_related("view").annotate(rows_written=total).order_by("pk")
