"""Random histories of poison: rows are right unless parked, and all are in the end."""

from typing import Any

import hypothesis.strategies as st
import pytest
from django.db.models import F
from hypothesis import HealthCheck, given, settings

from matviews.models import ParkedKey
from matviews.phases import Phase
from tests.helpers.poison import KINDS, Poisoned
from tests.helpers.tables import alone

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

COUNT = 12
KEYS = st.lists(st.integers(1, COUNT), min_size=1, max_size=4, unique=True)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("poison"), st.sampled_from(KINDS), KEYS),
        st.tuples(st.sampled_from(["heal", "change", "remove", "add"]), st.just(""), KEYS),
        st.tuples(st.sampled_from(["mark", "later", "refresh"]), st.just(""), st.just([])),
        st.tuples(st.just("phase"), st.sampled_from(list(Phase)), st.just([])),
    ),
    min_size=3,
    max_size=14,
)


def take(step: tuple[str, Any, list[int]], source: Poisoned, batch_size: int) -> None:
    """One step of a history."""
    what, detail, keys = step
    if what == "poison":
        source.poison(detail, *keys)
    elif what == "heal":
        source.heal(*keys)
    elif what == "change":
        source.change(*keys)
    elif what == "remove":
        source.Row.objects.filter(k__in=keys).delete()
    elif what == "add":
        present = source.Row.objects.values_list("k", flat=True)
        source.add(*(set(keys) - set(present)))
    elif what == "mark":
        source.View.mark_dirty()
    elif what == "later":
        ParkedKey.objects.update(retry_at=F("first_seen"))
    else:
        phases = [detail] if what == "phase" else None
        source.refresh(phases=phases, batch_size=batch_size)


def check(source: Poisoned) -> None:
    """All keys but the parked ones are as in the source, and verify agrees."""
    in_source = set(source.Row.objects.values_list("k", flat=True))
    in_view = set(source.View.objects.values_list("ref", flat=True))
    parked = source.parked()
    assert source.right() - parked == in_source - parked
    assert in_view - parked == in_source - parked
    assert source.View.verify().equal


@pytest.mark.parametrize("staged", [False, True], ids=["windowed", "staged"])
@pytest.mark.parametrize("tracked", [False, True], ids=["untracked", "tracked"])
@settings(
    max_examples=3,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS, batch_size=st.sampled_from([2, 5, 100]))
def test_histories(*, steps: Any, batch_size: int, staged: bool, tracked: bool) -> None:
    with alone():
        source = Poisoned(staged=staged)
        with source.ready(tracked=tracked):
            source.fill(COUNT)
            for step in steps:
                take(step, source, batch_size)
                if step[0] == "refresh":
                    check(source)
            # When the data is healed and time has passed
            source.heal(*range(1, COUNT + 1))
            ParkedKey.objects.update(retry_at=F("first_seen"))
            source.refresh(batch_size=batch_size)
            # Then everything is right, at the latest after the rows that were in the way are gone
            if source.parked():
                ParkedKey.objects.update(retry_at=F("first_seen"))
                source.refresh(batch_size=batch_size)
            assert not source.parked()
            check(source)
