"""Random histories of views whose keys are computed from a row: by keys alone, they miss none.

Texts are written by SQL, in sessions with unusual settings, and are such as collations, case
mappings and padding tell apart or do not.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection, models
from django.db.models import Case, Count, F, Func, Sum, Value, When
from django.db.models.functions import (
    Cast,
    Coalesce,
    Collate,
    Concat,
    ExtractMonth,
    ExtractYear,
    Left,
    Length,
    Lower,
    LPad,
    NullIf,
    Replace,
    Reverse,
    StrIndex,
    Substr,
    Trim,
    TruncMonth,
    Upper,
)

from matviews import changes, engine
from matviews.queryset.sql import lookups
from matviews.states import RefreshState
from tests.helpers import tables, view_classes
from tests.helpers.tables import derived_view, made, model
from tests.histories.conftest import RunRandom
from tests.histories.test_keys import SESSIONS

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

VENDOR = connection.vendor
# With a name for the session's, for texts that come from no column.
EXACT = {"mysql": "utf8mb4_bin", "postgresql": "C", "sqlite": "BINARY"}[VENDOR]

TEXTS = (
    None, "", " ", "a", "A", "a ", " a", "ab", "aB ", "Ä", "ä", "a\u0308", "ß", "SS", "\u0130",
    "i", "\ufb01", "\U0001f600", "10", "9", "'\"\\{}", "%s_", "100%", "x@y", "日本", "\x01", "0x",
)  # fmt: skip
NUMBERS = (None, -(2**31), -1, 0, 1, 2, 10, 2**31 - 1)
DATES = (None, "0001-01-01", "2023-12-31", "2024-01-01", "2024-02-29", "9999-12-31")


def text(**more: Any) -> Any:
    return models.CharField(max_length=200, **more)


def exact_text(**more: Any) -> Any:
    return models.CharField(max_length=200, db_collation=EXACT, **more)


@dataclass(frozen=True)
class Computed:
    """A part of a key.

    Attributes:
        expression: computes it.
        field: makes the view's field.
    """

    expression: Any
    field: Callable[..., Any] = text


SIZES = Case(
    When(number__gt=1, label__isnull=False, then=Value("big")),
    When(word__in=["a", "Ä"], then=Value("letter")),
    When(word__startswith="a", then=F("word")),
    default=Value("Big"),
    output_field=models.CharField(),
)
UPPER = Func("word", function="UPPER", output_field=models.CharField())
KEYS: dict[str, Computed] = {
    "Coalesce": Computed(Coalesce("word", Value(""))),
    "Coalesce of two": Computed(Coalesce("word", "label")),
    "Lower": Computed(Lower("word")),
    "Upper": Computed(Upper(Coalesce("word", Value("none")))),
    "Func": Computed(UPPER),
    "Trim": Computed(Trim("word")),
    "Substr": Computed(Substr("word", 1, 1)),
    "after a letter": Computed(Substr("word", StrIndex("word", Value("@")) + 1)),
    "Left": Computed(Left("word", 1)),
    "LPad": Computed(LPad("word", 3, Value("*"))),
    "Replace": Computed(Replace("word", Value("a"), Value("b"))),
    "Concat": Computed(Concat("word", Value("-"), "label")),
    "Concat of a number": Computed(
        Concat("word", Value("-"), "number", output_field=models.CharField())
    ),
    "NullIf": Computed(NullIf("word", Value("a"))),
    "Case": Computed(SIZES),
    "Collate": Computed(Collate(Lower("word"), EXACT), exact_text),
    "Cast": Computed(Collate(Cast("number", models.CharField(max_length=20)), EXACT), exact_text),
    "a constant per case": Computed(
        Collate(Case(When(number__lt=0, then=Value("<")), default=Value(">=")), EXACT), exact_text
    ),
    "Length": Computed(Length("word"), models.IntegerField),
    "remainder": Computed(F("number") % 3, models.IntegerField),
    "month": Computed(ExtractYear("day") * 100 + ExtractMonth("day"), models.IntegerField),
    "Case of numbers": Computed(
        Case(When(word__lt="a", then=F("number")), default=Value(0)), models.IntegerField
    ),
    "first of a month": Computed(Coalesce(TruncMonth("day"), "day"), models.DateField),
}
if VENDOR != "mysql":  # there, with the session's collation
    KEYS |= {
        "Cast to text": Computed(Cast("number", models.CharField(max_length=20))),
        "Cast of text": Computed(Cast("word", models.CharField(max_length=2))),
    }
if VENDOR != "sqlite":
    KEYS["Reverse"] = Computed(Reverse("word"))


class History:
    """A table, a view by a computed key, and what happens to them.

    Args:
        name: of the key.
        seed: what chooses.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.chance = random.Random(seed)
        computed = KEYS[name]
        self.Group = group = model("Group", label=text())
        self.Row = row = model(
            "Row", word=text(null=True), label=text(null=True),
            number=models.IntegerField(null=True), day=models.DateField(null=True),
            group=models.ForeignKey(group, models.DO_NOTHING, null=True),
            n=models.IntegerField(),
        )  # fmt: skip
        spread = self.chance.random() < 0.4
        more = {"group_label": F("group__label")} if spread else {}
        self.View = derived_view(
            lambda cls: row._base_manager.values(ref=computed.expression, **more).annotate(
                total=Sum("n"), rows=Count("pk")
            ),
            key=["ref", *more],
            meta=tables.unique("ref", *more),
            ref=computed.field(),
            **({"group_label": text()} if spread else {}),
            total=models.IntegerField(),
            rows=models.IntegerField(),
        )

    def sql(self, statement: str, *params: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement.replace("ROWS", self.Row._meta.db_table), params)

    def values(self) -> dict[str, Any]:
        return {
            "word": self.chance.choice(TEXTS),
            "label": self.chance.choice(TEXTS),
            "number": self.chance.choice(NUMBERS),
            "day": self.chance.choice(DATES),
            "group_id": self.chance.choice([None, 1, 2]),
            "n": self.chance.randrange(100),
        }

    def write(self) -> None:
        """What somebody commits."""
        kind, pk = self.chance.random(), self.chance.randrange(1, 12)
        if kind < 0.3:
            values = self.values()
            marks = ", ".join(["%s"] * len(values))
            self.sql(f"INSERT INTO ROWS ({', '.join(values)}) VALUES ({marks})", *values.values())
        elif kind < 0.75:
            name, value = self.chance.choice(list(self.values().items()))
            self.sql(f"UPDATE ROWS SET {name} = %s WHERE id %% 12 = %s", value, pk)
        elif kind < 0.9:
            self.sql("DELETE FROM ROWS WHERE id %% 12 = %s", pk)
        else:
            self.Group.objects.filter(pk=1 + pk % 2).update(label=self.chance.choice(TEXTS[1:]))

    def set_session(self, place: int) -> None:
        tables.execute(*(f"SET {name} = {values[place]}" for name, values in SESSIONS.items()))

    def step(self) -> None:
        strange = self.chance.random() < 0.3
        if strange:
            self.set_session(0)
        try:
            for _ in range(self.chance.randrange(1, 4)):
                self.write()
        finally:
            if strange:
                self.set_session(1)

    def run(self) -> None:
        with made(self.Group, self.Row, self.View):
            for pk in (1, 2):
                self.Group.objects.create(pk=pk, label="ab"[pk % 2])
            changes.install(engine.alias())
            try:
                self.refresh()
                for _ in range(6):
                    self.step()
                    assert self.refresh() <= {""}
            finally:
                changes.remove(engine.alias())

    def refresh(self) -> set[str]:
        """Refresh the view, and compare it; why its phases were full, "" where they were not."""
        refresh = view_classes.run(self.View, batch_size=self.chance.choice([1, 2, 50]))
        assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
        found = self.View.verify()
        assert found.equal, found.examples
        return {run.full_refresh_reason for run in refresh.runs.all()}


def check(name: str, seed: int) -> None:
    with tables.alone():
        try:
            History(name, seed).run()
        except AssertionError as error:
            raise AssertionError(f"{name}, seed {seed}: {error}") from error


def check_many(name: str, count: int) -> None:
    for seed in range(count):
        check(name, seed)


@pytest.fixture(autouse=True)
def _by_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No refresh is full only because that is cheaper."""
    monkeypatch.setattr(
        "matviews.engine.tracking.dirty_keys.max_worthwhile_keys", lambda _work: 10_000
    )


@pytest.mark.usefixtures("alone")
def test_no_computed_key_is_missed(run_random: RunRandom) -> None:
    names = itertools.cycle(random.sample(list(KEYS), len(KEYS)))

    def run(count: int) -> None:
        for name in itertools.islice(names, count):
            check(name, random.randrange(10**9))

    run_random(run, long=20 * len(KEYS))


@pytest.mark.finds_fault
@pytest.mark.usefixtures("alone")
def test_the_histories_find_keys_that_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = lookups._looked_up

    def missing(*arguments: Any) -> Any:
        found = sorted(looked_up(*arguments), key=repr)
        return set(found[1:])

    monkeypatch.setattr(lookups, "_looked_up", missing)

    with pytest.raises(AssertionError, match="Lower, seed"):
        check_many("Lower", 50)
