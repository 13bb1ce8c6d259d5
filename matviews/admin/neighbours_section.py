"""What a view's page shows of the views that it reads and of those that read it."""

from typing import Any, NamedTuple

from django.urls import reverse
from django.utils.safestring import SafeString

from .. import engine
from ..models import ViewControl
from .addresses import page_of
from .badges import badge
from .presentation import state_text

__all__ = ["neighbours_context"]

MAX_LISTED = 20  # views in each of the two lists


class Neighbour(NamedTuple):
    """A view that another reads, or that reads it."""

    label: str
    #: The address of its page, "" if it has none yet.
    page: str
    badge: SafeString


class Group(NamedTuple):
    """Views that a view reads, or that read it."""

    views: list[Neighbour]
    #: How many more there are.
    more: int


def neighbours_context(control: ViewControl, site: str) -> dict[str, Any]:
    """The views that a view reads and that read it, with their states; {} without any.

    It takes the same number of statements, however many views there are.
    """
    graph = engine.view_graph()
    read = graph.views_read.get(control.label, ())
    readers = graph.views_reading.get(control.label, ())
    shown = [*read[:MAX_LISTED], *readers[:MAX_LISTED]]
    if not shown:
        return {}
    statuses = {each.label: each for each in engine.view_statuses(shown, counted=False)}
    keys = dict(ViewControl.objects.filter(label__in=shown).values_list("label", "pk"))

    def group(labels: tuple[str, ...]) -> Group:
        listed = [
            Neighbour(
                label=label,
                page=page_of(keys[label], site) if label in keys else "",
                badge=badge(statuses[label].state, state_text(statuses[label])),
            )
            for label in labels[:MAX_LISTED]
        ]
        return Group(listed, len(labels) - len(listed))

    graph_page = reverse("admin:matviews_viewcontrol_graph", current_app=site)
    return {"reads": group(read), "readers": group(readers), "graph": graph_page}
