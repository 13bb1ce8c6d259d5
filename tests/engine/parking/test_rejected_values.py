"""Values that a function rejects with the code of a faulty statement, and faulty statements."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import models
from django.db.models import F, Func, Value
from django.db.models.functions import Cast

from matviews import changes, engine
from matviews.models import ParkedKey
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.tables import derived_view, made, model

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

TEXT = models.TextField()
SECRET = "klingon"


@dataclass(frozen=True)
class Kind:
    """An expression over the texts t and u, and texts that it accepts and rejects."""

    name: str
    database: str
    expression: Callable[[], Any]
    good: tuple[str, str]
    bad: tuple[str, str]


def _of(template: str) -> Callable[[], Any]:
    return lambda: Cast(Func(F("t"), template=template, output_field=TEXT), TEXT)


def _of_both(template: str, joiner: str) -> Callable[[], Any]:
    return lambda: Cast(
        Func(F("t"), F("u"), template=template, arg_joiner=joiner, output_field=TEXT), TEXT
    )


KINDS = [
    Kind(
        "tsquery",
        "postgres",
        _of("CAST(%(expressions)s AS tsquery)"),
        ("a & b", ""),
        (f"{SECRET} b &", ""),
    ),
    Kind(
        "jsonpath",
        "postgres",
        _of("CAST(%(expressions)s AS jsonpath)"),
        ("$.a", ""),
        (f"$..[{SECRET}", ""),
    ),
    Kind(
        "regclass",
        "postgres",
        _of("CAST(%(expressions)s AS regclass)"),
        ("pg_class", ""),
        (SECRET, ""),
    ),
    Kind(
        "search configuration",
        "postgres",
        _of_both("to_tsvector(CAST(%(expressions)s)", " AS regconfig), "),
        ("simple", "a"),
        (SECRET, "a"),
    ),
    Kind(
        "deep JSON",
        "postgres",
        _of("(CAST(%(expressions)s AS json) ->> 0)"),
        ("[1]", ""),
        ("[" * 50_000 + "]" * 50_000, ""),
    ),
    Kind(
        "JSON path",
        "mariadb",
        _of_both("JSON_EXTRACT(%(expressions)s)", ", "),
        ("[1]", "$[0]"),
        ("[1]", f"$..[{SECRET}"),
    ),
    Kind(
        "JSON to set",
        "mariadb",
        _of_both("JSON_SET(%(expressions)s, 1)", ", "),
        ("[1]", "$[0]"),
        ("[1]", SECRET),
    ),
    Kind(
        "JSON path",
        "sqlite",
        _of_both("JSON_EXTRACT(%(expressions)s)", ", "),
        ("[1]", "$[0]"),
        ("[1]", SECRET),
    ),
    Kind(
        "JSON of bytes",
        "sqlite",
        _of_both("JSON_ARRAY(CASE WHEN %(expressions)s THEN x'00' ELSE 'a' END)", "="),
        ("a", "b"),
        ("a", "a"),
    ),
    Kind(
        "pattern",
        "sqlite",
        _of_both("(%(expressions)s)", " LIKE "),
        ("a", "a"),
        ("a", "%" * 60_000),
    ),
    Kind(
        "escape",
        "sqlite",
        _of_both("('a' LIKE %(expressions)s)", " ESCAPE "),
        ("a", "!"),
        ("a", "!!"),
    ),
]


class Rejecting:
    """A source whose expression rejects some texts, and a view of it."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.Row: Any = model(
            "Row", k=models.BigIntegerField(unique=True), t=models.TextField(), u=models.TextField()
        )
        self.View: Any = derived_view(
            lambda cls: self.Row._base_manager.values(ref=F("k")).annotate(x=kind.expression()),
            ref=models.BigIntegerField(unique=True),
            x=models.TextField(null=True),
        )

    def fill(self, keys: range) -> None:
        t, u = self.kind.good
        self.Row._base_manager.bulk_create(self.Row(k=key, t=t, u=u) for key in keys)

    def poison(self, key: int) -> None:
        t, u = self.kind.bad
        self.Row._base_manager.filter(k=key).update(t=t, u=u)


@pytest.fixture(
    params=[
        pytest.param(kind, marks=pytest.mark.only_on(kind.database, reason=f"of {kind.database}"))
        for kind in KINDS
    ],
    ids=lambda kind: f"{kind.name} on {kind.database}",
)
def rejecting(request: pytest.FixtureRequest) -> Iterator[Rejecting]:
    rejecting = Rejecting(request.param)
    with made(rejecting.Row, rejecting.View):
        changes.install(engine.alias())
        try:
            rejecting.fill(range(1, 41))
            yield rejecting
        finally:
            changes.remove(engine.alias())


@pytest.mark.parametrize("built", [False, True], ids=["at the build", "by key"])
def test_park_one_key_and_stay_out_of_every_text(
    rejecting: Rejecting, caplog: pytest.LogCaptureFixture, *, built: bool
) -> None:
    if built:
        assert view_classes.run(rejecting.View).state == RefreshState.SUCCEEDED
    rejecting.poison(7)
    rejecting.fill(range(41, 42))

    with caplog.at_level(logging.DEBUG):
        refresh = view_classes.run(rejecting.View)

    assert refresh.state == RefreshState.SUCCEEDED, refresh.error
    parked = ParkedKey.objects.get()
    assert parked.key == [7]
    assert rejecting.View._base_manager.count() == (41 if built else 40)
    assert SECRET not in parked.message
    assert SECRET not in caplog.text


FAULTY = [
    pytest.param("no_such_function(%(expressions)s)", id="function"),
    pytest.param("(%(expressions)s +* 1)", id="syntax"),
]


@pytest.mark.parametrize("template", FAULTY)
def test_a_faulty_statement_fails_the_phase_with_few_statements(template: str) -> None:
    kind = Kind("", "", _of(template), ("a", "a"), ("a", "a"))
    faulty = Rejecting(kind)
    with made(faulty.Row, faulty.View):
        faulty.fill(range(1, 6))
        refresh = view_classes.run(faulty.View)
    assert refresh.state == RefreshState.FAILED
    assert not ParkedKey.objects.exists()


@pytest.mark.only_on("postgres", reason="only PostgreSQL has exclusion constraints")
@pytest.mark.parametrize("how", ["moved", "deleted"])
def test_a_range_that_another_row_leaves_is_taken_in_the_same_refresh(how: str) -> None:
    from django.contrib.postgres.constraints import ExclusionConstraint
    from django.contrib.postgres.fields import IntegerRangeField, RangeOperators

    row: Any = model("Row", k=models.BigIntegerField(unique=True), r=IntegerRangeField())
    apart = ExclusionConstraint(name="made_apart", expressions=[("r", RangeOperators.OVERLAPS)])
    view: Any = derived_view(
        lambda cls: row._base_manager.values("r", ref=F("k")),
        key=["ref"],
        ref=models.BigIntegerField(unique=True),
        r=IntegerRangeField(),
        meta={"constraints": [apart]},
    )
    with made(row, view):
        changes.install(engine.alias())
        try:
            for key in range(1, 6):
                row._base_manager.create(k=key, r=(key * 10, key * 10 + 10))
            view_classes.run(view)
            second = row._base_manager.filter(k=2)
            if how == "moved":
                second.update(r=(100, 110))
            else:
                second.delete()
            row._base_manager.filter(k=1).update(r=(20, 30))
            refresh = view_classes.run(view)
        finally:
            changes.remove(engine.alias())
        assert refresh.state == RefreshState.SUCCEEDED, refresh.error
        assert not ParkedKey.objects.exists()
        assert view._base_manager.get(ref=1).r.lower == 20


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("a", marks=pytest.mark.only_on("sqlite", reason="of SQLite")),
        pytest.param("$..[", marks=pytest.mark.only_on("mariadb", reason="of MariaDB")),
    ],
)
def test_a_constant_that_is_always_rejected_fails_the_phase(path: str) -> None:
    expression = Func(F("t"), Value(path), function="JSON_EXTRACT", output_field=TEXT)
    always = Rejecting(Kind("", "", lambda: Cast(expression, TEXT), ("[1]", ""), ("", "")))
    with made(always.Row, always.View):
        always.fill(range(1, 41))
        assert view_classes.run(always.View).state == RefreshState.FAILED
        assert not ParkedKey.objects.exists()
