"""The parts in which a view is verified: together they have every key, wherever one goes on."""

from typing import Any

import pytest
from django.db import connection, models
from django.db.models import F

from matviews.databases.keys import Keys
from matviews.engine import alias
from matviews.engine.verification import key_parts
from matviews.engine.verification.key_parts import PASSES, Part, parts, statements_of
from matviews.queryset import compare, plan_of
from matviews.registry import registry
from tests.helpers.ledger import add_items
from tests.helpers.source_views import LABEL, sourced
from tests.helpers.tables import derived_view, made, model
from tests.helpers.view_classes import run
from tests.sample.models import Item

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

ROWS, SIZE = 23, 5
VENDOR = connection.vendor


@pytest.fixture(autouse=True)
def _small(own_views: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_parts, "KEYS_PER_RANGE", SIZE)
    view = sourced()
    add_items(ROWS)
    run(view)


def resumed(left_out: set[Any], sample: int | None = None) -> list[Part]:
    """Each part by a call of its own, as if each were the last of a slice."""
    definition, cursor, found = registry.find(LABEL), None, []
    while part := next(iter(parts(definition, sample, left_out, cursor)), None):
        found.append(part)
        cursor = part.cursor
    return found


def compared(found: list[Part]) -> int:
    plan = plan_of(registry.find(LABEL), alias()).checked()
    return sum(
        compare(plan, part.within, 0, statements_of(plan, part)).rows_compared for part in found
    )


def test_ranges_have_every_row_once() -> None:
    found = resumed(set())

    assert len(found) >= ROWS // SIZE
    assert compared(found) == ROWS


def test_lists_have_every_key_but_those_left_out_in_each_pass() -> None:
    keys = list(Item.objects.order_by("pk").values_list("pk", flat=True))
    left_out = {(keys[3],), (keys[-1],)}

    found = resumed(left_out)

    for _phase, kinds in PASSES:
        listed = [part.within for part in found if part.kinds == kinds]
        assert all(isinstance(each, Keys) for each in listed)
        of_pass = [key for each in listed for key in each.keys]  # type: ignore[union-attr]
        assert sorted(of_pass) == [(key,) for key in keys if (key,) not in left_out]


def test_keys_that_are_parked_meanwhile_change_ranges_to_lists() -> None:
    definition = registry.find(LABEL)
    first = next(iter(parts(definition, None, set())))

    rest = list(parts(definition, None, {(0,)}, first.cursor))

    assert {type(part.within) for part in rest} == {Keys}
    last_pass = [part for part in rest if part.kinds == PASSES[1][1]]
    assert compared([first, *last_pass]) == ROWS


@pytest.mark.only_on("sqlite", "mariadb", reason="PostgreSQL tells case apart by default")
@pytest.mark.usefixtures("alone")
def test_a_key_is_left_out_however_it_is_spelled() -> None:
    collation = {"mysql": "utf8mb4_general_ci", "sqlite": "NOCASE"}[VENDOR]
    text: dict[str, Any] = {"max_length": 20, "db_collation": collation}
    row = model("Row", k=models.CharField(**text, unique=True))
    view = derived_view(
        lambda _cls: row._base_manager.values(ref=F("k")),
        key=["ref"],
        ref=models.CharField(**text, unique=True),
    )
    with made(row, view):
        for key in ("Ann", "Bob"):
            row._base_manager.create(k=key)
        run(view)
        definition = registry.find(view._meta.label)
        found = list(parts(definition, None, {("ANN",)}))

    assert {key for part in found for key in part.within.keys} == {("Bob",)}  # type: ignore[union-attr]


def test_samples_see_everything_in_time() -> None:
    seen: set[Any] = set()
    for _time in range(200):
        found = resumed(set(), sample=SIZE)
        assert len(found) == 1
        seen.add(found[0].within[0])  # type: ignore[index]
        if len(seen) == ROWS - SIZE + 1:
            break

    assert len(seen) == ROWS - SIZE + 1
