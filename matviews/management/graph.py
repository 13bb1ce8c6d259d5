"""`--graph`: which views read which tables and views, for programs that draw it."""

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from matviews import engine
from matviews.engine import ViewGraph

from .targets import Targets

__all__ = ["graph"]


def graph(targets: Targets) -> None:
    """Show the views, or the named ones with whatever they read, from left to right."""
    found, output = engine.view_graph(), targets.output
    if targets.options.labels:
        found = found.part(targets.options.labels)
    output.entries += [
        {"view": label, "reads_views": list(read), "reads_tables": list(found.tables_read[label])}
        for label, read in found.views_read.items()
    ]
    for line in _NOTATIONS[targets.options.graph or "mermaid"].lines(found):
        output.say(line)


class _Notation(NamedTuple):
    """How a graph is written: a table, a view and an edge, in lines between the first and last."""

    first: str
    table: Callable[[str, str], str]
    view: Callable[[str, str], str]
    edge: Callable[[str, str], str]
    last: str = ""

    def lines(self, found: ViewGraph) -> Iterator[str]:
        """The lines of a graph."""
        ids = _ids(found)
        yield from self.first.splitlines()
        for table in found.tables:
            yield f"    {self.table(ids[table, 'table'], table)}"
        for view in found.views_read:
            yield f"    {self.view(ids[view, 'view'], view)}"
        for source, target in _edges(found):
            yield f"    {self.edge(ids[source], ids[target])}"
        yield from self.last.splitlines()


def _ids(found: ViewGraph) -> dict[tuple[str, str], str]:
    """Identifiers of the nodes: a table may have the name of a view."""
    tables = {(table, "table"): f"t{number}" for number, table in enumerate(found.tables)}
    return tables | {(view, "view"): f"v{number}" for number, view in enumerate(found.views_read)}


def _edges(found: ViewGraph) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """What is read, and by which view."""
    for view, read in found.views_read.items():
        yield from (((table, "table"), (view, "view")) for table in found.tables_read[view])
        yield from (((other, "view"), (view, "view")) for other in read)


def _escaped(text: str) -> str:
    """Text in a quoted label of Mermaid."""
    return text.replace("#", "#35;").replace('"', "#quot;")


def _quoted(text: str) -> str:
    """Text as a quoted label of DOT, whose escapes are JSON's but for those of characters."""
    return json.dumps(text, ensure_ascii=False)


_NOTATIONS = {
    "mermaid": _Notation(
        first="flowchart LR",
        table=lambda node, name: f'{node}[("{_escaped(name)}")]',
        view=lambda node, name: f'{node}["{_escaped(name)}"]',
        edge=lambda source, target: f"{source} --> {target}",
    ),
    "dot": _Notation(
        first="digraph views {\n    rankdir=LR;",
        table=lambda node, name: f"{node} [shape=cylinder, label={_quoted(name)}];",
        view=lambda node, name: f"{node} [shape=box, label={_quoted(name)}];",
        edge=lambda source, target: f"{source} -> {target};",
        last="}",
    ),
}
