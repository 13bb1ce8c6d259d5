"""A key has one form, whether it was marked, logged by a trigger or found by way of other rows.

Otherwise it would wait twice, and be looked at twice.
"""

# ruff: noqa: N806 - variables that are models

import datetime as dt
import zoneinfo
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection, models
from django.db.models import Count, F, Sum
from django.db.models.functions import TruncDay
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from matviews import changes, engine
from matviews.states import RefreshState
from tests.helpers import tables, view_classes
from tests.helpers.tables import derived_view, made, model, refreshed

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

VENDOR = connection.vendor


@dataclass(frozen=True)
class Kind:
    """A kind of keys.

    Attributes:
        field: makes their field.
        values: what a caller gives.
    """

    field: Callable[..., Any]
    values: st.SearchStrategy[Any]


class Padded(models.CharField):  # type: ignore[type-arg]
    """A text of a fixed length, which PostgreSQL fills up with blanks."""

    def db_type(self, connection: Any) -> str:
        return "bpchar(8)" if VENDOR == "postgresql" else "char(8)"


class BigUnsigned(models.BigIntegerField):  # type: ignore[type-arg]
    """A whole number that only MariaDB and MySQL can hold."""

    def db_type(self, connection: Any) -> str | None:
        return "bigint unsigned" if VENDOR == "mysql" else super().db_type(connection)


# What MariaDB takes for one text (case, accents, blanks at the end) is not the subject here.
LETTERS = st.text(st.sampled_from("abc019-{}\\\"',%"), min_size=1, max_size=8)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
KINDS = {
    "whole number": Kind(models.BigIntegerField, INTEGERS),
    "small number": Kind(models.SmallIntegerField, st.integers(-(2**15), 2**15 - 1)),
    "number given as text": Kind(models.BigIntegerField, INTEGERS.map(str)),
    "unsigned": Kind(BigUnsigned, st.integers(0, 2**63 - 1)),
    "text": Kind(lambda **more: models.CharField(max_length=20, **more), LETTERS),
    "padded text": Kind(lambda **more: Padded(max_length=8, **more), LETTERS),
    "number as text": Kind(lambda **more: models.CharField(max_length=20, **more), INTEGERS),
    "uuid": Kind(models.UUIDField, st.uuids(version=4)),
    "uuid given as text": Kind(
        models.UUIDField, st.uuids(version=4).map(lambda value: value.hex.upper())
    ),
    "date": Kind(models.DateField, st.dates(dt.date(1000, 1, 1))),
    "date given as text": Kind(models.DateField, st.dates(dt.date(1000, 1, 1)).map(str)),
}


def looked_at(view: type[Any], values: Iterable[Any]) -> int:
    """How many keys a refresh looks at that have been logged, and are marked now."""
    assert view.mark_dirty(values) == []
    refresh = view_classes.run(view)
    assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    runs = refresh.runs.all()
    assert {run.full_refresh_reason for run in runs} == {""}
    assert view.verify().equal
    return max(run.keys_scanned for run in runs)


examples = settings(
    max_examples=2,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Tracked(ExitStack):
    """Within, the tables are there, with triggers."""

    def __init__(self, *wanted: type[Any]) -> None:
        super().__init__()
        self.enter_context(made(*wanted))
        changes.install(engine.alias())
        self.callback(changes.remove, engine.alias())


def views_of(kind: Kind) -> tuple[list[type[Any]], dict[str, type[Any]]]:
    """Tables with keys of a kind or that lead to them, and views by how a change reaches theirs."""
    Row = model("Row", k=kind.field(unique=True), n=models.IntegerField(default=0))
    Child = model("Child", row=models.ForeignKey(Row, models.CASCADE), n=models.IntegerField())
    Mark = model("Mark", k=kind.field())
    sources: dict[str, tuple[Any, dict[str, Any]]] = {
        "Logged": (lambda cls: Row._base_manager.values(ref=F("k"), total=F("n")), {}),
        "LookedUp": (
            lambda cls: Child._base_manager.values(ref=F("row__k")).annotate(total=Sum("n")),
            {},
        ),
    }
    finds: dict[str, Any] = {
        "DependsOnColumns": ("k",),
        "DependsOnQueryset": lambda rows: rows.values_list("k"),
        "DependsOnValues": lambda rows: [mark.k for mark in rows],
    }
    for name, find in finds.items():
        sources[name] = (sources["Logged"][0], {"depends_on": {Mark: find}})
    views = {
        name: derived_view(
            source,
            name=name,
            ref=kind.field(unique=True),
            total=models.IntegerField(null=True),
            options=options,
        )
        for name, (source, options) in sources.items()
    }
    return [Row, Child, Mark], views


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_key_that_is_marked_is_the_one_that_is_logged(kind: Kind) -> None:
    with tables.alone():
        [Row, Child, Mark], views = views_of(kind)
        with Tracked(Row, Child, Mark, *views.values()):

            @examples
            @given(st.lists(kind.values, min_size=1, max_size=20, unique_by=str))
            def one_form(values: list[Any]) -> None:
                # given rows that are known, of which some changes lead to the keys
                for each in (Child, Mark, Row):
                    each._base_manager.all().delete()
                refreshed(views["Logged"])
                assert views["Logged"].mark_dirty(values) == values
                rows = [Row(k=value) for value in values]
                Row._base_manager.bulk_create(rows)
                for name, view in views.items():
                    if name != "Logged":
                        refreshed(view)
                ids = Row._base_manager.values_list("pk", flat=True)
                Child._base_manager.bulk_create([Child(row_id=pk, n=1) for pk in ids])
                Mark._base_manager.bulk_create([Mark(k=value) for value in values])

                # when all are marked as well, then they are as many as before
                found = {name: looked_at(view, values) for name, view in views.items()}
                assert found == dict.fromkeys(views, len(values))

            for view in views.values():
                refreshed(view)
            one_form()


def test_a_key_that_is_computed() -> None:
    with tables.alone():
        Row = model("Row", at=models.DateTimeField())
        View = derived_view(
            lambda cls: Row._base_manager.values(ref=TruncDay("at", tzinfo=dt.UTC)).annotate(
                total=Count("pk")
            ),
            ref=models.DateTimeField(unique=True),
            total=models.IntegerField(),
        )
        days = st.dates(dt.date(1000, 1, 1), dt.date(9998, 12, 31))
        zones = st.sampled_from([dt.UTC, zoneinfo.ZoneInfo("Asia/Kolkata")])
        with Tracked(Row, View):
            refreshed(View)

            @examples
            @given(st.sets(days, min_size=1, max_size=20), zones)
            def one_form(values: set[dt.date], zone: dt.tzinfo) -> None:
                Row._base_manager.all().delete()
                refreshed(View)
                moments = [dt.datetime.combine(day, dt.time(), dt.UTC) for day in values]
                Row._base_manager.bulk_create(
                    [Row(at=moment + dt.timedelta(hours=1.5)) for moment in moments]
                )
                assert looked_at(View, [each.astimezone(zone) for each in moments]) == len(values)

            one_form()
