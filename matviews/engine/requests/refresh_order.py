"""Requests of several views in order: each refresh follows those of the views that it reads."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ...exceptions import MatviewsError
from ...logs import log
from ...models import Origin, Refresh, ViewControl
from ...phases import Phase
from ...registry import registry
from ..graph.view_graph import ViewGraph, in_order, reached, view_graph
from .requests import check_phases, request

__all__ = ["Neighbours", "Order", "neighbours", "request_with_neighbours"]

logger = logging.getLogger(__name__)


class Neighbours(NamedTuple):
    """The enabled views that some views read, and those that read them, directly or through others.

    Both are without the views themselves.
    """

    upstream: tuple[str, ...]
    downstream: tuple[str, ...]


def neighbours(labels: Sequence[str], *, upstream: bool, downstream: bool) -> Neighbours:
    """The views around some views, each kind in the order in which to refresh them, if wanted."""
    if not (upstream or downstream):
        return Neighbours((), ())
    graph = view_graph()
    above = reached(labels, graph.views_read) if upstream else set()
    below = reached(labels, graph.views_reading) if downstream else set()
    enabled = ViewControl.objects.filter(label__in=above | below, enabled=True)
    others = set(enabled.values_list("label", flat=True)) - set(labels)
    return Neighbours(*(tuple(in_order(sorted(each & others))) for each in (above, below)))


def request_with_neighbours(
    view: str | type,
    *,
    phases: Iterable[Phase | str] | None = None,
    upstream: bool = False,
    downstream: bool = False,
    requested_by: str = "",
    force: bool = False,
) -> list[Refresh]:
    """Request a refresh of a view, and of the views around it, each after those that it reads.

    Args:
        view: the view's class or label.
        phases: its phases; of the others, all.
        upstream: whether the views that it reads are refreshed.
        downstream: whether the views that read it are.
        requested_by: who requests it, for the history.
        force: whether all begin even while their views wait after a failure or are suspended.

    Returns:
        The request of the view, then the others.

    Raises:
        As `request` of the view. What is refused of the others is logged.
    """
    label = registry.usable(view).label
    check_phases(registry.find(label), phases)
    if upstream and ViewControl.objects.filter(label=label, enabled=False).exists():
        upstream = downstream = False  # nothing is requested for a view that is refused
    around = neighbours([label], upstream=upstream, downstream=downstream)
    order = Order([label, *around.upstream, *around.downstream])
    found = dict[str, Refresh]()
    for each in order.labels:
        origin = Origin.DEPENDENCY if each in around.downstream else Origin.API
        how: dict[str, Any] = {"requested_by": requested_by, "force": force, "origin": origin}
        try:
            how |= {"upstream_refreshes": order.follows(each), "waits_for_upstream": True}
            found[each] = request(each, phases=phases if each == label else None, **how)
        except MatviewsError as error:
            if each == label:
                raise
            log(logger, logging.WARNING, "refresh refused", view=each, error=error)
        else:
            order.add(each, found[each])
    return [found.pop(label), *found.values()]


class Order:
    """Requests of several views, from the first to the last, and which of them each follows.

    Args:
        labels: the views.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        #: The labels in the order in which to request them.
        self.labels = in_order(labels)
        self._requested = dict[str, Refresh]()
        self._graph: ViewGraph | None = None

    def follows(self, label: str) -> list[Refresh]:
        """The requests added so far that a view's refresh follows.

        They are those of the nearest views that it reads, through any number of other views.
        """
        if not self._requested:
            return []
        self._graph = self._graph or view_graph()
        above = self._above(label) & self._requested.keys()
        further = set[str]().union(*map(self._above, above))
        return [self._requested[each] for each in self.labels if each in above - further]

    def add(self, label: str, refresh: Refresh) -> None:
        """A view's refresh has been requested. If nothing had changed, nothing follows it."""
        if refresh.finished_at is None:
            self._requested[label] = refresh

    def _above(self, label: str) -> set[str]:
        read = self._graph.views_read if self._graph else {}
        return reached([label], read) - {label}
