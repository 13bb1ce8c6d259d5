"""Refreshes that begin only when the refreshes of views that their view reads have ended.

A request records which refreshes it follows (`Refresh.upstream_refreshes`) and whether it waits for
those that are open (`Refresh.waits_for_upstream`). It does not wait for one that cannot go on,
because its view is held, waits after a failure or is suspended.
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

    It takes a statement only if one of them has `waits_for_upstream`.
    """
    waiting = [each for each in refreshes if each.waits_for_upstream and not each.stop_requested]
    if not waiting:
        return set()
    upstream = {pk for each in waiting for pk in each.upstream_refreshes}
    unfinished = Refresh.objects.using(alias()).filter(
        may_begin("view__") | Q(forced=True), pk__in=upstream, view__enabled=True,
        view__paused=False, state__in=(RefreshState.OPEN, RefreshState.MERGED),
    )  # fmt: skip
    waited = set(unfinished.order_by().values_list("pk", flat=True))
    return {each.pk for each in waiting if waited.intersection(each.upstream_refreshes)}


def views_of_waiting(ended: Iterable[Refresh]) -> list[int]:
    """The views with open refreshes that have waited for some that have ended now."""
    keys = {each.pk for each in ended}
    keys |= set(Refresh.objects.filter(merged_into__in=keys).values_list("pk", flat=True))
    waiting = Refresh.objects.filter(waits_for_upstream=True, state=RefreshState.OPEN)
    rows = waiting.order_by("pk").values_list("view", "upstream_refreshes")
    return list(dict.fromkeys(view for view, upstream in rows if keys.intersection(upstream)))
