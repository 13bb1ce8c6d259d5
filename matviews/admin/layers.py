"""A layout of the graph of views: what is read is to the left of what reads it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import NamedTuple

__all__ = ["Layout", "Node", "lay_out"]

MAX_DROP = 3  # places that a layer begins lower than the longest one, to be in the middle
SWEEPS = 4  # over the layers, each of which brings nodes closer to what they are joined to


class Node(NamedTuple):
    """A view or a table, or a place where a long edge passes a layer."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the nodes are, in whole places."""

    #: By node, its layer and its place there, from 0; places of a layer may be apart.
    places: Mapping[Node, tuple[int, float]]
    #: The nodes that each edge passes, from what is read to what reads it.
    paths: Sequence[tuple[Node, ...]]


def lay_out(nodes: Sequence[Node], edges: Iterable[tuple[Node, Node]]) -> Layout:
    """Layers by the longest path from nodes that read nothing, in an order with few crossings.

    Args:
        nodes: in the order that is kept where nothing speaks against it.
        edges: from what is read to what reads it. In a cycle, one of them leads back.
    """
    read_by = defaultdict[Node, list[Node]](list)
    for source, target in edges:
        read_by[target].append(source)
    depths = _depths(nodes, read_by)
    paths = [
        _path(source, target, depths, number)
        for number, (source, target) in enumerate(
            (source, target) for target in nodes for source in read_by[target]
        )
    ]
    layers: list[list[Node]] = [[] for _layer in range(max(depths.values(), default=0) + 1)]
    for node in nodes:
        layers[depths[node]].append(node)
    for path in paths:
        for place, node in enumerate(path[1:-1], start=1):
            layers[depths[path[0]] + place].append(node)
    _order(layers, paths)
    height = max(map(len, layers), default=0)
    return Layout(
        places={
            node: (layer, place + min((height - len(column)) / 2, MAX_DROP))
            for layer, column in enumerate(layers)
            for place, node in enumerate(column)
        },
        paths=paths,
    )


def _depths(nodes: Sequence[Node], read_by: Mapping[Node, list[Node]]) -> dict[Node, int]:
    """The layer of each node."""
    depths: dict[Node, int] = {}

    def depth(node: Node, above: frozenset[Node]) -> int:
        if node not in depths:
            sources = [each for each in read_by[node] if each not in above]
            inner = above | {node}
            found = 1 + max((depth(each, inner) for each in sources), default=-1)
            depths.setdefault(node, found)
        return depths[node]

    for node in nodes:
        depth(node, frozenset((node,)))
    return depths


def _path(source: Node, target: Node, depths: Mapping[Node, int], number: int) -> tuple[Node, ...]:
    """An edge with a place in each layer that it passes."""
    passed = range(depths[source] + 1, depths[target])
    return (source, *(Node("edge", f"{number} {layer}") for layer in passed), target)


def _order(layers: list[list[Node]], paths: Iterable[tuple[Node, ...]]) -> None:
    """Sort each layer by the mean place of what its nodes are joined to in the one before it."""
    left, right = defaultdict[Node, list[Node]](list), defaultdict[Node, list[Node]](list)
    for path in paths:
        for first, second in pairwise(path):
            left[second].append(first)
            right[first].append(second)

    def alone(node: Node) -> bool:
        return not (left[node] or right[node])

    for sweep in range(SWEEPS):
        backwards = sweep % 2 == 0
        joined = right if backwards else left
        for before, layer in pairwise(layers[::-1] if backwards else layers):
            place = {node: number / len(before) for number, node in enumerate(before)}
            own = {node: number / len(layer) for number, node in enumerate(layer)}
            layer.sort(
                key=lambda node: mean(
                    [place[each] for each in joined[node] if each in place]
                    or [own[node] + alone(node)]
                )
            )
