"""Refreshes that begin only when others have ended, those of views that their views read.

A request records which refreshes it follows (`Refresh.causes`) and whether it waits for those that
are open (`Refresh.ordered`). What cannot go on is not waited for: a refresh whose view is held,
waits after a failure or is suspended.
"""

from collections.abc import Iterable

from django.db.models import Q

from ...models import Refresh
from ...states import RefreshState
from ..failures.backoff import may_begin
from ..transactions import alias

__all__ = ["views_of_waiting", "waits_for_others"]


def waits_for_others(refreshes: Iterable[Refresh]) -> set[int]:
    """Those of the refreshes of a view that wait for others, by primary key.

    It takes a statement only if one of them is `ordered`.
    """
    ordered = [each for each in refreshes if each.ordered and not each.stop_requested]
    if not ordered:
        return set()
    causes = {cause for each in ordered for cause in each.causes}
    unfinished = Refresh.objects.using(alias()).filter(
        may_begin("view__") | Q(forced=True), pk__in=causes, view__enabled=True, view__paused=False,
        state__in=(RefreshState.OPEN, RefreshState.MERGED),
    )  # fmt: skip
    waited = set(unfinished.order_by().values_list("pk", flat=True))
    return {each.pk for each in ordered if waited.intersection(each.causes)}


def views_of_waiting(ended: Iterable[Refresh]) -> list[int]:
    """The views with open refreshes that have waited for some that have ended now."""
    keys = {each.pk for each in ended}
    keys |= set(Refresh.objects.filter(merged_into__in=keys).values_list("pk", flat=True))
    waiting = Refresh.objects.filter(ordered=True, state=RefreshState.OPEN).order_by("pk")
    rows = waiting.values_list("view", "causes")
    return list(dict.fromkeys(view for view, causes in rows if keys.intersection(causes)))
