"""One bad row of a source that can only be computed as a whole: only its writing is split."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from django.db import connection, models
from django.db.models import Count, F, Window
from django.db.models.expressions import RawSQL

from benchmarks.statements import statements
from matviews import engine
from matviews.databases import StagingRefused
from matviews.engine.batches import full_refreshes
from matviews.models import ParkedKey, PhaseRun
from matviews.queryset import fill_stage, stages
from matviews.states import RefreshStrategy
from tests.helpers.poison import ON_SQLITE, WRITTEN, Poisoned

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

COUNT, MANY = 60, 100_000
BAD = 50_000  # among many
# A batch of at most 10,000 in halves, each with a savepoint, in two phases; and two stagings, of
# which one is refused. Those that involve others are tried again after other phases.
MOST_STATEMENTS = 500
# Of all keys, most on SQLite, which takes 1,000 at once: twelve or so, in three phases.
OF_BATCHES = 3_800
EVERYTHING = set(range(1, COUNT + 1))


def windowed(rows: Any) -> Any:
    return rows.annotate(place=Window(Count("pk")))


def sliced(rows: Any) -> Any:
    return rows.order_by("k")[: 2 * MANY]


def united(rows: Any) -> Any:
    return rows.filter(k__lte=COUNT / 2).union(rows.filter(k__gt=COUNT / 2), all=True)


def by_hand(rows: Any) -> Any:
    return rows.annotate(place=RawSQL("1 + 0", [], models.IntegerField()))


WHOLE = {"window": windowed, "slice": sliced, "union": united, "raw SQL": by_hand}


def source_of(whole: Any, **fields: Any) -> Poisoned:
    """A source that is computed as a whole, without tables."""
    return Poisoned(
        whole=whole,
        options={"tracking": False},
        fields={"place": models.IntegerField(null=True), **fields},
    )


@pytest.fixture(autouse=True)
def swept() -> Iterator[None]:
    """A staging that fails leaves its table on MariaDB, until the next maintenance."""
    yield
    engine.sweep_stages()


@pytest.fixture
def source() -> Iterator[Poisoned]:
    poisoned = source_of(sliced)
    with poisoned.ready(tracked=False):
        poisoned.fill(COUNT)
        yield poisoned


@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize("kind", WRITTEN)
def test_it_alone_is_left_out_until_the_data_is_healed(kind: str, whole: str) -> None:
    poisoned = source_of(WHOLE[whole])
    with poisoned.ready(tracked=False):
        poisoned.fill(COUNT)
        # at the first build
        poisoned.poison(kind, 40)
        refresh = poisoned.refresh()
        assert poisoned.right() == EVERYTHING - {40}
        assert poisoned.parked() == {40}
        assert {run.strategy for run in refresh.runs.all()} == {RefreshStrategy.FULL_STAGED}
        # when another one joins, and others change and go
        poisoned.poison(kind, 41)
        poisoned.change(1, 2, 3)
        poisoned.Row.objects.filter(k=50).delete()
        poisoned.refresh()
        assert poisoned.right() - {41} == EVERYTHING - {40, 41, 50}
        assert poisoned.parked() == {40, 41}
        assert poisoned.View.verify().equal
        # when the data is healed
        poisoned.heal(40, 41)
        ParkedKey.objects.update(retry_at=F("first_seen"))
        poisoned.refresh()
        assert (poisoned.right(), poisoned.parked()) == (EVERYTHING - {50}, set())
        assert not stages(engine.alias())


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "whole"),
    [*((WRITTEN[0], whole) for whole in WHOLE), *((kind, "slice") for kind in WRITTEN[1:])],
)
def test_one_of_100000(kind: str, whole: str, capsys: pytest.CaptureFixture[str]) -> None:
    poisoned = source_of(WHOLE[whole])
    with poisoned.ready(tracked=False):
        poisoned.fill(MANY)
        poisoned.poison(kind, BAD)
        costs = {"first build": refreshed(poisoned, {BAD})}
        costs["again"] = refreshed(poisoned, {BAD})
        poisoned.heal(BAD)
        ParkedKey.objects.update(retry_at=F("first_seen"))
        costs["healed"] = refreshed(poisoned, set())
    with capsys.disabled():
        print(f"\none of {MANY:,}, {whole}, {kind}, statements: {costs}")


def refreshed(poisoned: Poisoned, bad: set[int]) -> int:
    """Refresh a view of many rows; how many statements that took."""
    with statements() as found:
        poisoned.refresh()
    assert poisoned.parked() == bad
    assert poisoned.right() - bad == set(range(1, MANY + 1)) - bad
    assert len(found) < OF_BATCHES + MOST_STATEMENTS
    return len(found)


def test_the_key_is_named_with_what_is_wrong(source: Poisoned) -> None:
    source.poison("null", 40)
    source.refresh()
    [parked, *_others] = engine.list_parked(source.View)
    assert (parked.key, parked.columns) == ((40,), ("needed",))
    assert "is NULL" in parked.message


def test_a_source_without_bad_rows_is_staged_as_ever(source: Poisoned) -> None:
    with statements() as found:
        source.refresh()
    assert not any("_raw" in each for each in found)
    # and so it is again once nothing is parked
    source.poison("null", 40)
    source.refresh()
    source.heal(40)
    ParkedKey.objects.update(retry_at=F("first_seen"))
    with statements() as found:
        source.refresh()
    assert any("_raw" in each for each in found)
    source.change(1)
    with statements() as found:
        source.refresh()
    assert not any("_raw" in each for each in found)
    assert source.right() == EVERYTHING


def test_while_it_is_parked_the_source_is_computed_once(source: Poisoned) -> None:
    source.poison("null", 40)
    with mock.patch.object(full_refreshes, "fill_stage", wraps=fill_stage) as fill:
        source.refresh()
        assert fill.call_count == 2  # the first is refused
        source.change(*EVERYTHING)
        source.refresh(batch_size=10)
        assert fill.call_count == 3
    assert source.right() == EVERYTHING - {40}


def test_a_value_that_only_a_constraint_refuses_needs_no_other_table(source: Poisoned) -> None:
    source.poison("check", 40)
    with mock.patch.object(full_refreshes, "fill_stage", wraps=fill_stage) as fill:
        source.refresh()
        source.refresh()
    assert not any(call.args[0].endswith("_raw") for call in fill.call_args_list)
    assert source.parked() == {40}


def test_values_are_stored_as_without_bad_rows() -> None:
    """Rounded, cut and cast in the same way: otherwise each refresh would write them again."""
    poisoned = source_of(
        lambda rows: rows.annotate(exact=F("number") * 1.0 / 3).order_by("k")[:99],
        exact=models.DecimalField(max_digits=9, decimal_places=3),
    )
    with poisoned.ready(tracked=False):
        poisoned.fill(COUNT)
        poisoned.refresh()
        before = list(poisoned.View.objects.order_by("ref").values_list("ref", "exact"))
        poisoned.poison("null", 40)
        poisoned.refresh()
        refresh = poisoned.refresh()
        assert [run.rows for run in refresh.runs.all()] == [0, 0, 0]
        assert list(poisoned.View.objects.order_by("ref").values_list("ref", "exact")) == before
        poisoned.View.objects.all().delete()
        poisoned.refresh()
        after = list(poisoned.View.objects.order_by("ref").values_list("ref", "exact"))
        assert after == [row for row in before if row[0] != 40]


def test_two_rows_with_one_key_fail_the_phase_at_once() -> None:
    poisoned = source_of(lambda rows: rows.union(rows.filter(k=7).annotate(), all=True))
    with poisoned.ready(tracked=False):
        poisoned.fill(COUNT)
        with mock.patch.object(full_refreshes, "fill_stage", wraps=fill_stage) as fill:
            refresh = poisoned.failed(phases=["insert"])
        assert fill.call_count == 1
        assert "Two rows of source() have the same key" in refresh.error


def test_what_fails_while_it_is_computed_fails_the_phase(source: Poisoned) -> None:
    kind = "cast" if ON_SQLITE else "division"
    if connection.vendor == "mysql":
        pytest.skip("MariaDB gives NULL")
    source.poison(kind, 40)
    with mock.patch.object(full_refreshes, "fill_stage", wraps=fill_stage) as fill:
        source.failed(phases=["insert"])
    assert fill.call_count == 1
    assert source.parked() == set()
    assert not source.View.objects.exists()


def test_without_the_right_to_stage_it_fails_the_phase(source: Poisoned) -> None:
    source.poison("null", 40)
    with mock.patch.object(full_refreshes, "fill_stage", side_effect=StagingRefused("no right")):
        source.failed(phases=["insert"])
    assert source.parked() == set()


def test_a_failure_leaves_no_table(source: Poisoned) -> None:
    source.poison("null", *EVERYTHING)
    refresh = source.failed()
    assert "10 of 60 keys were tried alone" in refresh.error
    engine.sweep_stages()
    engine.sweep_stages()
    assert not stages(engine.alias())
    assert not PhaseRun.objects.filter(refresh=refresh, parked__gt=0).exists()
