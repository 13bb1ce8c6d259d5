"""A parked key is known again, however it is spelled: as the database compares the view's key."""

# ruff: noqa: N806 - variables that are models

import datetime as dt
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from django.db import DatabaseError, connection, models, transaction
from django.db.models import F

from benchmarks.statements import statements as counted
from matviews import changes, engine
from matviews.databases.keys import Keys
from matviews.databases.sql import joined
from matviews.models import ParkedKey, ViewShard
from matviews.queryset import as_key, equal_keys, plan_of
from matviews.registry import registry
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.keyed_views import Kept
from tests.helpers.tables import derived_view, execute, made, model
from tests.histories.test_keys import SORTS, Sort, collation_of, folding, typed

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

VENDOR = connection.vendor
MOMENT = dt.datetime(2024, 1, 31, 1, 2, 3, 120_000, tzinfo=dt.UTC)


def decimal(**more: Any) -> Any:
    return models.DecimalField(max_digits=9, decimal_places=2, **more)


@dataclass(frozen=True)
class Spelled:
    """A kind of keys.

    Attributes:
        field: makes their field.
        first: how a key is spelled first.
        other: how the same key is spelled later; the database may spell a third way.
        before: a statement that makes what the type needs.
    """

    field: Callable[..., Any]
    first: Any
    other: Any
    before: str = ""


SPELLED = {
    "case": Spelled(folding, "Key", "kEY"),
    "decimal": Spelled(decimal, Decimal("1.50"), Decimal("1.5")),
    "moment": Spelled(
        models.DateTimeField, MOMENT, MOMENT.astimezone(dt.timezone(dt.timedelta(hours=5)))
    ),
    "uuid": Spelled(
        models.UUIDField, "ABCDEF00000000000000000000000001", "abcdef00-0000-0000-0000-000000000001"
    ),
}
if VENDOR == "postgresql":
    SPELLED["case"] = Spelled(
        lambda **more: models.CharField(max_length=20, db_collation="made_ci", **more),
        "Key", "kEY", collation_of("made_ci", 2),
    )  # fmt: skip
    SPELLED |= {
        "citext": Spelled(typed("citext"), "Key", "kEY", "CREATE EXTENSION IF NOT EXISTS citext"),
        "padded": Spelled(typed("bpchar(8)"), "a", "a  "),
        "address": Spelled(models.GenericIPAddressField, "10.0.0.1", "10.0.0.1"),
        "boolean": Spelled(models.BooleanField, True, True),
        "time": Spelled(models.TimeField, dt.time(1, 2, 3, 500_000), "01:02:03.5"),
    }
elif VENDOR == "mysql":
    SPELLED["blanks at the end"] = Spelled(folding, "a", "a ")


class Bad:
    """A row with a key of a kind that cannot be written, beside one that can.

    Args:
        kind: the kind.
        staged: whether rows are groups, and no index serves the key.
    """

    def __init__(self, kind: Spelled, *, staged: bool = False) -> None:
        self.kind = kind
        of_row = {} if staged else {"unique": True}
        Row = model("Row", k=kind.field(**of_row), n=models.IntegerField(null=True))
        self.Row, columns = Row, {"n": models.Max("n") if staged else F("n")}
        self.View = derived_view(
            lambda cls: (
                Row._base_manager.values(ref=F("k")).annotate(total=columns["n"])
                if staged
                else Row._base_manager.values(ref=F("k"), total=columns["n"])
            ),
            ref=kind.field(unique=True),
            total=models.IntegerField(),
        )

    @contextmanager
    def ready(self) -> Iterator[None]:
        if self.kind.before:
            execute(self.kind.before)
        with made(self.Row, self.View):
            changes.install(engine.alias())
            try:
                self.Row._base_manager.create(k=self.kind.first, n=None)
                yield
            finally:
                changes.remove(engine.alias())

    def refresh(self) -> None:
        refresh = view_classes.run(self.View)
        assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")

    @property
    def tries(self) -> list[int]:
        """How often each parked key has failed."""
        return list(ParkedKey.objects.filter(phase="insert").values_list("tries", flat=True))


@pytest.mark.parametrize(
    ("kind", "staged"),
    [*((kind, False) for kind in SPELLED.values()), (SPELLED["case"], True)],
    ids=[*SPELLED, "case, staged"],
)
def test_a_key_is_parked_once_in_whatever_spelling_it_comes(kind: Spelled, *, staged: bool) -> None:
    bad = Bad(kind, staged=staged)
    with bad.ready():
        bad.refresh()
        assert bad.tries == [1]
        # when it is marked in another spelling, or in both, then it is tried once
        for tries, marked in ((2, [kind.other]), (3, [kind.other, kind.first])):
            bad.View.mark_dirty(marked)
            bad.refresh()
            assert bad.tries == [tries]
        # when its row is spelled otherwise
        bad.Row._base_manager.update(k=kind.other)
        bad.refresh()
        assert len(bad.tries) == 1
        tried = bad.tries
        # then a full refresh leaves it out, and so does verify
        changes.remove(engine.alias())
        bad.refresh()
        assert bad.tries == tried
        assert bad.View.verify().equal
        # when it is healed, then it is there, and is parked no longer
        bad.Row._base_manager.update(n=1)
        bad.View.mark_dirty([kind.first])
        bad.refresh()
        assert not ParkedKey.objects.exists()
        assert bad.View._base_manager.count() == 1
        assert not ViewShard.objects.filter(parked_count__gt=0).exists()


@pytest.mark.parametrize("kind", [SPELLED["case"], SPELLED["decimal"]], ids=["case", "decimal"])
def test_a_present_row_of_a_key_in_another_spelling_is_left_out(kind: Spelled) -> None:
    # given a key that the view spells in one way, and its source in another
    bad = Bad(kind)
    with bad.ready():
        bad.Row._base_manager.update(n=1)
        bad.refresh()
        bad.Row._base_manager.update(k=kind.other, n=None)
        bad.refresh()
        assert ParkedKey.objects.get().tries == 1
        # when all keys are compared, then it is not tried again
        changes.remove(engine.alias())
        bad.refresh()
        assert ParkedKey.objects.get().tries == 1
        assert bad.View.verify().equal
        # when its row has gone, then so has the key
        bad.Row._base_manager.all().delete()
        bad.View.mark_dirty([kind.first])
        bad.refresh()
        assert not ParkedKey.objects.exists()
        assert not bad.View._base_manager.exists()


@pytest.mark.parametrize("kind", [SPELLED["case"], SPELLED["decimal"]], ids=["case", "decimal"])
def test_an_untracked_view_tries_a_key_that_is_marked_in_another_spelling(kind: Spelled) -> None:
    bad = Bad(kind)
    if kind.before:
        execute(kind.before)
    with made(bad.Row, bad.View):
        bad.Row._base_manager.create(k=kind.first, n=None)
        bad.refresh()
        bad.refresh()
        assert bad.tries == [1]
        bad.View.mark_dirty([kind.other])
        bad.refresh()
        assert bad.tries == [2]


def test_a_healthy_refresh_asks_for_no_spelling() -> None:
    bad = Bad(SPELLED["case"])
    with bad.ready():
        bad.Row._base_manager.update(n=1)
        bad.refresh()
        bad.Row._base_manager.update(n=2)
        with counted() as found:
            bad.refresh()
    assert not [sql for sql in map(str, found) if "matviews_others" in sql]


def spellings_of(sort: Sort, view: type[Any]) -> list[Any]:
    """Keys of a sort as a caller would give them, and as the database has them."""
    plan = plan_of(registry.find(view), engine.alias())
    statements, found = plan.key_batch_runner().statements, []
    for value in sort.spellings:
        with suppress(ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a time without a zone
            found.append(as_key(plan.key_fields, value, engine.alias()))
    name, table = statements.key[0], statements.table
    for value in sort.spellings:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} ({name}) VALUES (%s)", [value])
            cursor.execute(f"SELECT {statements.exact[0]} FROM {table} matviews_keys")
            found += cursor.fetchall()
            cursor.execute(f"DELETE FROM {table}")
    too_large = [
        key
        for key in found
        if isinstance(key[0], int) and abs(key[0]) >= 2 ** (64 if VENDOR == "mysql" else 63)
    ]
    return [key for key in dict.fromkeys(found) if key not in too_large]


@pytest.mark.parametrize("name", SORTS)
def test_keys_are_equal_if_the_columns_of_the_view_say_so(name: str) -> None:
    sort = SORTS[name]
    if sort.before:
        execute(sort.before)
    kept = Kept(sort.field)
    with kept.tracked():
        if not plan_of(registry.find(kept.View), engine.alias()).statements().exact:
            return  # such keys are never compared
        plan = plan_of(registry.find(kept.View), engine.alias())
        statements, keys = plan.key_batch_runner().statements, spellings_of(sort, kept.View)
        found = equal_keys(statements, keys, keys)
        for key in keys:
            first = next(other for other in keys if is_taken_for(statements, key, other))
            assert found[key] == first, (key, first)


def is_taken_for(statements: Any, key: Any, other: Any) -> bool:
    """Whether the view finds its row of one key when it looks for another."""
    name, table = statements.key[0], statements.table
    where = joined(" AND ", statements.of_view(Keys((other,), tuple(statements.kinds))))
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} ({name}) VALUES (%s)", key)
            cursor.execute(f"SELECT COUNT(*) FROM {table} WHERE {where.text}", where.params)
            count: int = cursor.fetchone()[0]
            cursor.execute(f"DELETE FROM {table}")
    except DatabaseError:
        return bool(key == other)
    return count > 0
