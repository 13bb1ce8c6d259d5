"""Rows that take each other's value of a unique constraint, which no single update can do."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import models
from django.db.models import F

from matviews import changes, engine
from matviews.models import ParkedKey, ViewControl, ViewShard
from matviews.queryset import sharding
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.tables import derived_view, made, model

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

ROWS = 20


class Swapping:
    """Rows k with a second unique value s, and a view of them."""

    def __init__(self) -> None:
        self.Row: Any = model("Row", k=models.BigIntegerField(unique=True), s=models.IntegerField())
        self.View: Any = derived_view(
            lambda cls: self.Row._base_manager.values("s", ref=F("k")),
            key=["ref"],
            ref=models.BigIntegerField(unique=True),
            s=models.IntegerField(unique=True),
        )

    def change(self, values: dict[int, int]) -> None:
        for key, value in values.items():
            self.Row._base_manager.filter(k=key).update(s=value)

    def refresh(self) -> None:
        refresh = view_classes.run(self.View)
        assert refresh.state == RefreshState.SUCCEEDED, refresh.error

    def parked(self) -> list[int]:
        return sorted(key for [key] in ParkedKey.objects.values_list("key", flat=True))

    def is_right_but_for(self, *keys: int) -> bool:
        view = self.View._base_manager.exclude(ref__in=keys).values_list("ref", "s")
        source = self.Row._base_manager.exclude(k__in=keys).values_list("k", "s")
        return dict(view) == dict(source)


@pytest.fixture(params=[True, False], ids=["tracked", "untracked"])
def swapping(request: pytest.FixtureRequest) -> Iterator[Swapping]:
    swapping = Swapping()
    with made(swapping.Row, swapping.View):
        if request.param:
            changes.install(engine.alias())
        try:
            rows = [swapping.Row(k=key, s=key) for key in range(1, ROWS + 1)]
            swapping.Row._base_manager.bulk_create(rows)
            swapping.refresh()
            yield swapping
        finally:
            changes.remove(engine.alias())


def test_are_in_one_shard(swapping: Swapping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "MIN_ROWS", 1)
    label = swapping.View._meta.label
    ViewControl.objects.filter(label=label).update(shard_count=2)
    engine.sync_shards()
    swapping.change({1: ROWS, ROWS: 1})

    swapping.refresh()

    assert ViewShard.objects.filter(view__label=label).count() == 1
    assert not swapping.parked()
    assert swapping.is_right_but_for()


@pytest.mark.parametrize(
    "values", [{1: 2, 2: 1}, {1: 2, 2: 3, 3: 1}, {1: 2, 2: 1, 5: 6, 6: 5, 9: 90}], ids=str
)
def test_are_right_after_one_refresh(swapping: Swapping, values: dict[int, int]) -> None:
    swapping.change(values)

    swapping.refresh()

    assert not swapping.parked()
    assert swapping.is_right_but_for()


def test_beside_a_row_that_fails_for_good_only_that_is_parked(swapping: Swapping) -> None:
    swapping.change({1: 2, 2: 1, 7: 8})  # and 8 keeps its value

    swapping.refresh()

    assert swapping.parked() == [7]
    assert swapping.is_right_but_for(7)


def test_what_hangs_on_a_row_that_fails_is_parked_with_it(swapping: Swapping) -> None:
    swapping.change({1: 2, 2: 7, 7: 8})

    swapping.refresh()

    assert swapping.parked() == [1, 2, 7]
    assert swapping.is_right_but_for(1, 2, 7)
    swapping.change({8: 80})
    engine.retry_parked(swapping.View)
    swapping.refresh()
    assert not swapping.parked()
    assert swapping.is_right_but_for()


def test_rows_that_others_refer_to_are_not_deleted_for_it() -> None:
    swapping = Swapping()
    Note: Any = model(  # noqa: N806 - a model
        "Note",
        of=models.ForeignKey(swapping.View, models.CASCADE, to_field="ref", related_name="notes"),
    )
    with made(swapping.Row, swapping.View, Note):
        swapping.Row._base_manager.bulk_create(swapping.Row(k=key, s=key) for key in (1, 2, 3))
        swapping.refresh()
        before = set(swapping.View._base_manager.values_list("pk", flat=True))
        Note._base_manager.create(of_id=1)
        swapping.change({1: 2, 2: 1, 3: 30})

        swapping.refresh()

        assert swapping.parked() == [1, 2]
        assert set(swapping.View._base_manager.values_list("pk", flat=True)) == before
        assert Note._base_manager.count() == 1
        assert swapping.is_right_but_for(1, 2)


def test_a_new_row_that_takes_part_in_it(swapping: Swapping) -> None:
    swapping.change({1: 2, 2: 1})
    swapping.Row._base_manager.create(k=100, s=3)
    swapping.change({3: 300})

    swapping.refresh()

    assert not swapping.parked()
    assert swapping.is_right_but_for()
