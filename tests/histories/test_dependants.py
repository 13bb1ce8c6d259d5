"""Random histories of views on change that read each other: at rest, every row is right."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matviews.models import ViewControl
from tests.helpers.engine import travel
from tests.helpers.view_graphs import Views, built
from tests.histories.conftest import RunRandom

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

#: Two diamonds, one below the other, and a view that skips a level.
GRAPH = {"A": "", "B": "A", "C": "A", "D": "BC", "E": "D", "F": "AE"}
NAMES = st.sampled_from(sorted(GRAPH))
STEPS = st.one_of(
    st.tuples(st.just("change"), st.integers(1, 3)),
    st.tuples(st.just("add"), st.integers(0, 9)),
    st.tuples(st.just("delete"), st.integers(1, 3)),
    st.tuples(st.sampled_from(["pause", "resume", "request"]), NAMES),
    st.tuples(st.just("around"), NAMES),
    st.tuples(st.just("look"), st.just(0)),
    st.tuples(st.just("wait"), st.sampled_from([1, 20])),
)


@pytest.fixture
def views() -> Iterator[Views]:
    with built(GRAPH) as found:
        yield found


def step(views: Views, kind: str, value: Any) -> None:
    if kind == "change":
        views.change(value)
    elif kind == "add":
        views.base.objects.create(n=value)
    elif kind == "delete":
        views.base.objects.filter(pk=value).delete()
    elif kind in ("pause", "resume"):
        views.set(value, paused=kind == "pause")
    elif kind == "request":
        views.request(value)
    elif kind == "around":
        views.request(value, upstream=True, downstream=True)
    elif kind == "look":
        views.look_and_run()
    else:
        travel(timedelta(seconds=value))


def test_at_rest_every_row_is_right(views: Views, run_random: RunRandom) -> None:
    def run(examples: int) -> None:
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(STEPS, max_size=12))
        def history(steps: list[tuple[str, Any]]) -> None:
            for kind, value in steps:
                step(views, kind, value)
            ViewControl.objects.update(paused=False)
            views.finish()
            assert views.is_right()
            assert views.settle() == ""

        history()

    run_random(run, long=300)
