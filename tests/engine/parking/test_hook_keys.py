"""Rows that a hook cannot write: their keys are parked, and all others are written."""

import logging
from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, models
from django.test import override_settings

from matviews import Batch, KeyFailed, MaterializedView, is_fresh
from matviews.definition import define
from matviews.engine import list_parked, retry_parked
from matviews.models import ParkedKey, Refresh
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.tables import made, model
from tests.management.test_command import command

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

ROWS = 60
LIMIT = 20
POISONED = (0, 13, 14, 40, 59)


def view(**members: Any) -> type[Any]:
    """A view that only inserts, by its own hooks."""
    options = type("MatviewMeta", (), view_classes.INSERT_ONLY)
    return model("Made", bases=(MaterializedView, models.Model), MatviewMeta=options, **members)


class Hooked:
    """A source of numbers, and a view whose hooks cannot write some of them."""

    def __init__(self, form: str = "limit") -> None:
        self.bad: dict[int, Exception] = {}
        self.tried: list[int] = []
        self.Row = model("Row", k=models.BigIntegerField(unique=True))
        forms = {"limit": self._finding, "cursor": self._walking, "whole phase": self._at_once}
        hooks = forms[form]()
        self.View: Any = view(
            ref=models.BigIntegerField(unique=True), **{k: classmethod(h) for k, h in hooks.items()}
        )

    def _finding(self) -> dict[str, Any]:
        def needs_insert(cls: Any, parked: Collection[Any]) -> bool:
            return bool(self._missing(cls, parked))

        def do_insert(cls: Any, limit: int, parked: Collection[Any]) -> int:
            return self._insert(cls, self._missing(cls, parked)[:limit])

        return {"needs_insert": needs_insert, "do_insert": do_insert}

    def _walking(self) -> dict[str, Any]:
        def needs_insert(cls: Any, parked: Collection[Any]) -> bool:
            return True

        def do_insert(cls: Any, limit: int, cursor: Any, parked: Collection[Any]) -> Batch:
            low = -1 if cursor is None else cursor
            keys = list(range(low + 1, ROWS))[:limit]
            missing = set(self._missing(cls, parked))
            rows = self._insert(cls, [key for key in keys if key in missing])
            return Batch(rows, keys[-1] if len(keys) == limit else None)

        return {"needs_insert": needs_insert, "do_insert": do_insert}

    def _at_once(self) -> dict[str, Any]:
        def do_insert(cls: Any, parked: Collection[Any]) -> int:
            return self._insert(cls, self._missing(cls, parked))

        return {**self._finding(), "do_insert": do_insert}

    def _missing(self, cls: Any, parked: Collection[Any]) -> list[int]:
        rows = self.Row._base_manager.exclude(k__in=cls.objects.values("ref"))
        return list(rows.exclude(k__in=parked).order_by("k").values_list("k", flat=True))

    def _insert(self, cls: Any, keys: list[int]) -> int:
        for key in keys:
            self.tried.append(key)
            if error := self.bad.get(key):
                raise KeyFailed(key) from error
            cls.objects.create(ref=key)
        return len(keys)

    def refresh(self) -> Refresh:
        refresh = view_classes.run(self.View, batch_size=LIMIT)
        self.last = refresh
        return refresh

    def parked(self) -> set[int]:
        return {key for [key] in ParkedKey.objects.values_list("key", flat=True)}

    def right(self) -> set[int]:
        return set(self.View.objects.values_list("ref", flat=True))


@pytest.fixture(params=["limit", "cursor", "whole phase"])
def hooked(request: pytest.FixtureRequest) -> Iterator[Hooked]:
    hooked = Hooked(request.param)
    with made(hooked.Row, hooked.View):
        hooked.Row._base_manager.bulk_create(hooked.Row(k=key) for key in range(ROWS))
        yield hooked


def test_are_parked_and_all_others_are_written_in_the_same_refresh(
    hooked: Hooked, caplog: pytest.LogCaptureFixture
) -> None:
    hooked.bad = {key: ValueError(f"no rate for {key}") for key in POISONED}

    with caplog.at_level(logging.WARNING, "matviews"):
        refresh = hooked.refresh()

    assert refresh.state == RefreshState.SUCCEEDED, refresh.error
    assert hooked.parked() == set(hooked.bad)
    assert hooked.right() == set(range(ROWS)) - set(hooked.bad)
    run = refresh.runs.get(phase="insert")
    assert run.parked == len(POISONED)
    assert not run.failed_batches
    assert not run.error
    assert not is_fresh(hooked.View)
    first = list_parked(hooked.View)[0]
    assert (first.key, first.error_class, first.message) == (
        (0,), "ValueError", "ValueError: no rate for 0",
    )  # fmt: skip
    assert sum("keys parked" in record.message for record in caplog.records) == len(POISONED)
    assert "13" in command("--parked", "--models", hooked.View._meta.label).out


def test_are_tried_again_when_they_are_due_and_unparked_when_written(hooked: Hooked) -> None:
    hooked.bad = {7: ValueError("no"), 8: ValueError("no")}
    hooked.refresh()
    hooked.tried.clear()

    hooked.refresh()
    assert not {7, 8} & set(hooked.tried)

    del hooked.bad[8]
    retry_parked(hooked.View)
    hooked.refresh()
    assert hooked.parked() == {7}
    assert ParkedKey.objects.get().tries == 2
    assert hooked.last.runs.get(phase="insert").parked == 1

    del hooked.bad[7]
    retry_parked(hooked.View)
    hooked.refresh()
    assert not hooked.parked()
    assert hooked.right() == set(range(ROWS))
    assert is_fresh(hooked.View) is (not hooked.View.needs_insert(parked=()))


def test_leave_when_the_source_has_them_no_more(hooked: Hooked) -> None:
    hooked.bad = {7: ValueError("no")}
    hooked.refresh()
    hooked.Row._base_manager.filter(k=7).delete()
    retry_parked(hooked.View)

    assert hooked.refresh().state == RefreshState.SUCCEEDED

    assert not hooked.parked()


@pytest.mark.parametrize("error", [MemoryError("full"), OperationalError("server has gone away")])
def test_are_not_parked_for_what_is_not_the_rows_fault(hooked: Hooked, error: Exception) -> None:
    hooked.bad = {7: error}

    assert hooked.refresh().state == RefreshState.FAILED

    assert not hooked.parked()
    assert type(error).__name__ in hooked.last.error


def test_too_many_fail_the_phase_and_leave_none_parked(hooked: Hooked) -> None:
    hooked.bad = {key: ValueError("no") for key in range(6)}

    with override_settings(MATVIEWS={"MAX_PARKED_KEYS": 5}):
        refresh = hooked.refresh()

    assert refresh.state == RefreshState.FAILED
    assert "More than 5 keys failed" in refresh.error
    assert not hooked.parked()


def test_a_limit_of_0_parks_none(hooked: Hooked) -> None:
    hooked.bad = {7: ValueError("no")}

    with override_settings(MATVIEWS={"MAX_PARKED_KEYS": 0}):
        refresh = hooked.refresh()

    assert refresh.state == RefreshState.FAILED
    assert not hooked.parked()


def _ignoring(hooked: Hooked) -> Any:
    return classmethod(lambda cls, limit, parked: hooked._insert(cls, [3]))


def test_a_hook_that_does_not_leave_out_what_it_is_told_fails() -> None:
    hooked = Hooked()
    hooked.bad = {3: ValueError("no")}
    hooked.View.do_insert = _ignoring(hooked)
    with made(hooked.Row, hooked.View):
        hooked.Row._base_manager.create(k=3)
        hooked.Row._base_manager.create(k=4)
        refresh = hooked.refresh()
        assert refresh.state == RefreshState.FAILED
        assert "did not leave out 3, which is in parked" in refresh.error


@pytest.mark.parametrize("key", [1.5, None, (), ("a", 2.0), True, [1]])
def test_a_key_that_json_does_not_hold_as_it_is_fails(hooked: Hooked, key: Any) -> None:
    def insert(cls: Any, keys: list[int]) -> int:
        raise KeyFailed(key)

    hooked._insert = insert  # type: ignore[method-assign]

    assert hooked.refresh().state == RefreshState.FAILED

    assert "use a string, an integer or a tuple of these" in hooked.last.error


def test_keys_of_several_parts_are_given_back_as_they_were() -> None:
    given: list[Any] = []

    def needs_insert(cls: Any, parked: Collection[Any]) -> bool:
        return ("a", 1) not in parked

    def do_insert(cls: Any, limit: int, parked: Collection[Any]) -> int:
        given.append(list(parked))
        raise KeyFailed(("a", 1), "too old")

    hooks = {"needs_insert": classmethod(needs_insert), "do_insert": classmethod(do_insert)}
    made_view = view(ref=models.BigIntegerField(), **hooks)
    with made(made_view):
        assert view_classes.run(made_view).state == RefreshState.SUCCEEDED
        assert given == [[]]
        assert list_parked(made_view)[0].message == "KeyFailed: too old"
        ParkedKey.objects.update(retry_at=ParkedKey.objects.get().retry_at + timedelta(hours=1))
        assert view_classes.run(made_view).state == RefreshState.SUCCEEDED
        assert given == [[]]


def test_a_pair_of_hooks_declares_parked_in_both() -> None:
    hooks = view_classes.six_hooks(do_insert=classmethod(lambda cls, limit, parked: 0))
    problem = define(view_classes.make_view(**hooks)).errors[0]
    assert problem.id == "matviews.W105"
    assert "Declare parked in needs_insert too" in str(problem.hint)
