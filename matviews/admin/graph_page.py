"""The graph of the views: an SVG without scripts or styles, and the same as a table."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from .. import engine
from ..databases.fields import model_of_table
from ..engine import ViewGraph, ViewStatus
from ..models import ViewControl
from .addresses import page_of
from .badges import badge, tone
from .layers import Layout, Node, lay_out
from .presentation import state_text

__all__ = ["graph_context"]

MAX_NODES = 400  # beyond that, a picture is unreadable, and only the table is shown
# In pixels. A character of a name takes less than CHARACTER.
WIDTH, HEIGHT, GAP, SPACE, MARGIN = 210, 44, 70, 14, 8
MAX_CHARACTERS = 23


def graph_context(label: str, site: str) -> dict[str, Any]:
    """What the page of the graph shows.

    Args:
        label: a view, to show only it, what it reads and what reads it; "" for all.
        site: the name of the admin site.
    """
    found = engine.view_graph()
    focus = label if label in found.views_read else ""
    if focus:
        found = found.part([focus], readers=True)
    statuses = {each.label: each for each in engine.view_statuses(found.views_read, counted=False)}
    keys = dict(ViewControl.objects.values_list("label", "pk"))
    pages = {view: page_of(keys[view], site) for view in found.views_read if view in keys}
    too_large = len(found.views_read) + len(found.tables) > MAX_NODES
    return {
        "focus": focus,
        "too_large": too_large,
        "picture": "" if too_large or not found.views_read else _picture(found, statuses, pages),
        "rows": list(_rows(found, statuses, pages)),
        "all_views": reverse("admin:matviews_viewcontrol_graph", current_app=site),
    }


def _rows(
    found: ViewGraph, statuses: Mapping[str, ViewStatus], pages: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """The lines of the table, which says the same as the picture."""
    readers = found.views_reading
    for view, read in found.views_read.items():
        yield {
            "view": _link(view, pages),
            "badge": badge(statuses[view].state, state_text(statuses[view])),
            "reads": [*(_link(each, pages) for each in read), *found.tables_read[view]],
            "read_by": [_link(each, pages) for each in readers[view]],
        }


def _link(view: str, pages: Mapping[str, str]) -> SafeString | str:
    return format_html('<a href="{}">{}</a>', pages[view], view) if view in pages else view


def _picture(
    found: ViewGraph, statuses: Mapping[str, ViewStatus], pages: Mapping[str, str]
) -> SafeString:
    nodes = [Node("table", table) for table in found.tables]
    nodes += [Node("view", view) for view in found.views_read]
    edges = [
        (Node(kind, source), Node("view", view))
        for kind, reads in (("table", found.tables_read), ("view", found.views_read))
        for view, sources in reads.items()
        for source in sources
    ]
    layout = lay_out(nodes, edges)
    layers, places = zip(*layout.places.values(), strict=True)
    return format_html(
        '<svg class="matviews-graph" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="group" '
        'aria-label="{2}"><g aria-hidden="true">{3}</g>{4}</svg>',
        2 * MARGIN + (max(layers) + 1) * WIDTH + max(layers) * GAP,
        f"{2 * MARGIN + (max(places) + 1) * (HEIGHT + SPACE) - SPACE:.0f}",
        _("Graph of the views"),
        format_html_join("", '<path d="{}"/>', ((_edge(path, layout),) for path in layout.paths)),
        format_html_join(
            "",
            "{}",
            (
                (_node(node, layout, statuses, pages),)
                for node in sorted(nodes, key=lambda each: layout.places[each])
            ),
        ),
    )


def _at(node: Node, layout: Layout) -> tuple[int, int]:
    layer, place = layout.places[node]
    return MARGIN + layer * (WIDTH + GAP), round(MARGIN + place * (HEIGHT + SPACE))


def _edge(path: tuple[Node, ...], layout: Layout) -> str:
    """A curve through the gaps between the layers, and straight through the layers it passes."""
    x, y = _at(path[0], layout)
    drawn = f"M{x + WIDTH} {y + HEIGHT // 2}"
    for node in path[1:]:
        x, y = _at(node, layout)
        middle = y + HEIGHT // 2
        drawn += (
            f"C{x - GAP // 2} {drawn.rsplit(maxsplit=1)[-1]} {x - GAP // 2} {middle} {x} {middle}"
        )
        if node.kind == "edge":
            drawn += f"L{x + WIDTH} {middle}"
    return drawn


def _node(
    node: Node, layout: Layout, statuses: Mapping[str, ViewStatus], pages: Mapping[str, str]
) -> SafeString:
    x, y = _at(node, layout)
    if node.kind == "table":
        model = model_of_table(node.name)
        detail, look = (model._meta.label if model else _("table")), "table"
    else:
        status = statuses[node.name]
        detail, look = state_text(status), tone(status.state)
    drawn = format_html(
        '<g transform="translate({} {})" class="{}"><title>{}: {}</title>'
        '<rect width="{}" height="{}" rx="{}"/>{}'
        '<text x="14" y="18" class="name">{}</text><text x="14" y="35">{}</text></g>',
        x, y, look, node.name, detail, WIDTH, HEIGHT, 2 if node.kind == "view" else 14,
        format_html('<rect width="6" height="{}" class="edge"/>', HEIGHT)
        if node.kind == "view"
        else "",
        _short(node.name), _short(str(detail)),
    )  # fmt: skip
    if node.name not in pages or node.kind == "table":
        return drawn
    name = f"{node.name}: {detail}"
    return format_html('<a href="{}" aria-label="{}">{}</a>', pages[node.name], name, drawn)


def _short(name: str) -> str:
    """The end of a long name says most: the beginning is the app."""
    if len(name) <= MAX_CHARACTERS:
        return name
    return f"{name[:8]}\N{HORIZONTAL ELLIPSIS}{name[-(MAX_CHARACTERS - 9) :]}"
