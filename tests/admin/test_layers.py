"""The layout of the graph of views."""

from hypothesis import given
from hypothesis import strategies as st

from matviews.admin.layers import Node, lay_out

NUMBERS = st.integers(0, 9)
EDGES = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=25, unique=True)


def node(number: int) -> Node:
    return Node("view", str(number))


def laid_out(*edges: tuple[int, int], nodes: int = 10) -> dict[int, int]:
    """The layer of each node."""
    layout = lay_out([*map(node, range(nodes))], [(node(a), node(b)) for a, b in edges])
    return {number: layout.places[node(number)][0] for number in range(nodes)}


@given(EDGES)
def test_what_is_read_is_to_the_left_and_no_two_share_a_place(edges: list[tuple[int, int]]) -> None:
    forward = [(min(edge), max(edge)) for edge in edges if edge[0] != edge[1]]
    layout = lay_out(
        [*map(node, range(10))], [(node(a), node(b)) for a, b in dict.fromkeys(forward)]
    )

    for path in layout.paths:
        layers = [layout.places[each][0] for each in path]
        assert layers == list(range(layers[0], layers[0] + len(path)))
        assert len(path) > 1
    assert len(set(layout.places.values())) == len(layout.places)


@given(EDGES)
def test_a_cycle_has_a_layout_too(edges: list[tuple[int, int]]) -> None:
    layout = lay_out([*map(node, range(10))], [(node(a), node(b)) for a, b in edges])

    assert {node(number) for number in range(10)} <= layout.places.keys()
    assert all(each in layout.places for path in layout.paths for each in path)


def test_a_node_is_right_of_the_longest_way_to_it() -> None:
    assert laid_out((0, 1), (1, 2), (0, 2), nodes=4) == {0: 0, 1: 1, 2: 2, 3: 0}


def test_neighbours_are_sorted_to_what_they_read() -> None:
    layout = lay_out(
        [*map(node, range(6))], [(node(a), node(b)) for a, b in ((0, 5), (1, 4), (2, 3))]
    )

    order = sorted(range(6), key=lambda number: layout.places[node(number)])
    left, right = order[:3], order[3:]
    assert [{0: 5, 1: 4, 2: 3}[number] for number in left] == right


def test_nothing_has_a_layout() -> None:
    assert lay_out([], []).places == {}
