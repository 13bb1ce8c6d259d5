"""Which view reads which tables and views: the order of refreshes, and the graph of all.

What hooks read is known if `MatviewMeta.depends_on` declares it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from django.db.models import Model

from ...definition import ViewDefinition
from ...queryset import declared_tables, tables_read
from ...registry import registry
from ..transactions import alias

__all__ = [
    "ViewGraph", "find_cycle", "in_order", "in_order_of_reading", "reached", "view_graph",
    "views_read", "views_upstream",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewGraph:
    """Which view reads which tables and views."""

    #: By label of a view, the labels of the views that it reads.
    views_read: Mapping[str, tuple[str, ...]]
    #: By label of a view, the names of the tables that it reads and that are not of views.
    tables_read: Mapping[str, tuple[str, ...]]

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that are read and are not of views."""
        return tuple(sorted(set[str]().union(*self.tables_read.values())))

    @property
    def views_reading(self) -> dict[str, tuple[str, ...]]:
        """By label of a view, the labels of the views that read it."""
        readers: dict[str, list[str]] = {label: [] for label in self.views_read}
        for label, read in self.views_read.items():
            for other in read:
                readers[other].append(label)
        return {label: tuple(others) for label, others in readers.items()}

    def part(self, labels: Iterable[str], *, readers: bool = False) -> "ViewGraph":
        """The part with some views and whatever they read, directly or through others.

        Args:
            labels: the views.
            readers: whether the views that read them belong to it, directly or through others.
        """
        wanted = reached(labels, self.views_read)
        if readers:
            wanted |= reached(labels, self.views_reading)
        return ViewGraph(
            views_read={
                label: tuple(other for other in read if other in wanted)
                for label, read in self.views_read.items()
                if label in wanted
            },
            tables_read={
                label: read for label, read in self.tables_read.items() if label in wanted
            },
        )


def reached(labels: Iterable[str], leads_to: Mapping[str, Collection[str]]) -> set[str]:
    """Views, and those to which they lead, directly or through others."""
    found, left = set[str](), list(labels)
    while left:
        if (label := left.pop()) in leads_to and label not in found:
            found.add(label)
            left += leads_to[label]
    return found


def views_upstream(*labels: str) -> dict[str, set[str]]:
    """The views that some views read, directly or not, each with the views that it reads.

    Only their sources are compiled, not those of all views. The views themselves are included.
    """
    labels_of = defaultdict(set)
    for definition in registry:
        labels_of[definition.model._meta.db_table].add(definition.label)
    found, left = dict[str, set[str]](), [label for label in labels if label in registry]
    while left:
        if (each := left.pop()) not in found:
            tables = _known_tables(registry.find(each))
            found[each] = set[str]().union(*(labels_of.get(name, ()) for name in tables)) - {each}
            left += found[each]
    return found


def view_graph() -> ViewGraph:
    """The graph of the views in the code."""
    by_label = {definition.label: definition for definition in registry}
    own_tables = {definition.model._meta.db_table for definition in by_label.values()}
    tables_of = {label: _known_tables(definition) for label, definition in by_label.items()}
    return ViewGraph(
        views_read={
            label: tuple(sorted(read))
            for label, read in sorted(_views_read(by_label, tables_of).items())
        },
        tables_read={
            label: tuple(sorted(tables_of[label] - own_tables)) for label in sorted(by_label)
        },
    )


def _known_tables(definition: ViewDefinition) -> set[str]:
    """The tables that a view reads, as this process first saw it.

    For pages that show many views: compiling a queryset takes milliseconds.
    """
    known = _KNOWN.get((definition.model, alias()))
    if known is None:
        known = _tables_read(definition)
        if known:  # a source that cannot be compiled now may be later
            _KNOWN[definition.model, alias()] = known
    return known


_KNOWN: dict[tuple[type[Model], str], set[str]] = {}


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels in the order in which to refresh the views: each once, after the views that it reads.

    A view may read another through views that are not named. Views that do not read each other keep
    their order.
    """
    requested = dict.fromkeys(labels)
    if len(requested) < 2:
        return list(requested)
    named = [registry.find(label) for label in requested]
    unnamed = [definition for definition in registry if definition.label not in requested]
    ordered = (definition.label for definition in in_order_of_reading([*named, *unnamed]))
    return [label for label in ordered if label in requested]


def in_order_of_reading(definitions: Iterable[ViewDefinition]) -> list[ViewDefinition]:
    """The definitions of views, each after those that it reads."""
    by_label = {definition.label: definition for definition in definitions}
    views_read = _views_read(by_label, _tables_of(by_label))
    # No order lets one refresh of each bring all views of a cycle up to date, so any edge may be
    # dropped.
    while cycle := _cycle(views_read):
        views_read[cycle[1]].remove(cycle[0])
    return [by_label[label] for label in TopologicalSorter(views_read).static_order()]


def _cycle(views_read: Mapping[str, Collection[str]]) -> list[str]:
    """Labels of views that read each other in a cycle, the first again at the end; else empty."""
    try:
        TopologicalSorter(views_read).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def _views_read(
    by_label: Mapping[str, ViewDefinition], tables_of: Mapping[str, Collection[str]]
) -> dict[str, set[str]]:
    """The labels of the other views that each view reads."""
    labels_of = defaultdict(set)
    for label, view in by_label.items():
        labels_of[view.model._meta.db_table].add(label)
    return {
        label: set[str]().union(*(labels_of.get(table, ()) for table in tables)) - {label}
        for label, tables in tables_of.items()
    }


def views_read() -> dict[str, set[str]]:
    """The labels of the other views that each view reads."""
    by_label = {definition.label: definition for definition in registry}
    return _views_read(by_label, {label: _known_tables(view) for label, view in by_label.items()})


def find_cycle() -> list[str]:
    """Labels of views that read each other in a cycle, the first again at the end; else empty."""
    by_label = {definition.label: definition for definition in registry}
    return _cycle(_views_read(by_label, _tables_of(by_label)))


def _tables_of(by_label: Mapping[str, ViewDefinition]) -> dict[str, set[str]]:
    return {label: _tables_read(view) for label, view in by_label.items()}


def _tables_read(definition: ViewDefinition) -> set[str]:
    if definition.has_source:
        return tables_read(definition, alias())
    return declared_tables(definition)
