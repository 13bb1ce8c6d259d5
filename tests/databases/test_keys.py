"""Keys stay as the database has them, whatever a field of Django's makes of them.

Each source has a row that no field of its model would write: somebody else did, or older code.
"""

# ruff: noqa: N806 - variables that are models

import enum
from typing import Any

import pytest
from django.db import connection, models
from django.db.models import Count, F, Subquery
from django.db.models.functions import Coalesce
from django.test import override_settings

from benchmarks.statements import statements
from matviews import changes, engine
from matviews.databases import dialect_of
from matviews.databases.keys import Keys
from matviews.exceptions import InvalidRequest
from matviews.models import DirtyKeys, PhaseRun
from matviews.phases import Phase
from matviews.queryset import plan as plan_module
from matviews.states import RunState
from tests.helpers import view_classes
from tests.helpers.keyed_views import Kept
from tests.helpers.tables import derived_view, execute, made, model, refreshed

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]


class LowerEmail(models.EmailField):  # type: ignore[type-arg]
    def get_prep_value(self, value: Any) -> Any:
        return str(value).lower()


class UpperText(models.CharField):  # type: ignore[type-arg]
    def get_prep_value(self, value: Any) -> Any:
        return str(value).upper()


class Mirrored(models.CharField):  # type: ignore[type-arg]
    """Converted a second time, a value would be another one."""

    def get_prep_value(self, value: Any) -> Any:
        return str(value)[::-1]


class Phone(models.CharField):  # type: ignore[type-arg]
    """Numbers are written without blanks; what is read is spelt for a person."""

    def from_db_value(self, value: Any, *_args: Any) -> Any:
        return value and f"({value[:3]}) {value[3:]}"

    def get_prep_value(self, value: Any) -> Any:
        return "".join(filter(str.isalnum, str(value)))


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class ColorField(models.CharField):  # type: ignore[type-arg]
    def from_db_value(self, value: Any, *_args: Any) -> Any:
        return value and Color(value)

    def to_python(self, value: Any) -> Any:
        return value if isinstance(value, Color) else Color(value)

    def get_prep_value(self, value: Any) -> Any:
        return value.value if isinstance(value, Color) else value


UNHELD = {"postgresql": "infinity", "mysql": "0000-00-00", "sqlite": "never"}[connection.vendor]


@pytest.fixture(params=[False, True], ids=["rows", "groups"])
def grouped(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_rows_in_a_spelling_that_the_field_does_not_write(grouped: bool) -> None:
    kept = Kept(LowerEmail, grouped=grouped)
    with kept.tracked():
        kept.insert(("Ann@example.org", 1), ("eve@example.org", 2))
        refreshed(kept.View, batch_size=1)
        assert kept.rows == {"Ann@example.org": 1, "eve@example.org": 2}

        # when they are changed, deleted and inserted by SQL
        kept.sql("UPDATE ROWS SET n = 10 WHERE k = 'Ann@example.org'")
        kept.insert(("Bob@example.org", 3))
        kept.change(batch_size=1)
        assert kept.rows == {"Ann@example.org": 10, "eve@example.org": 2, "Bob@example.org": 3}
        kept.sql("DELETE FROM ROWS WHERE k = 'Ann@example.org'")
        kept.sql("UPDATE ROWS SET k = 'EVE@example.com' WHERE k = 'eve@example.org'")
        kept.change(batch_size=1)

        # then the view has followed
        assert kept.rows == {"EVE@example.com": 2, "Bob@example.org": 3}
        assert kept.View.verify().equal


def test_rows_that_the_field_reads_otherwise_than_it_writes(grouped: bool) -> None:
    kept = Kept(lambda **more: Phone(max_length=20, **more), grouped=grouped)
    with kept.tracked():
        kept.insert(("555 0001", 1), ("5550002", 2))
        refreshed(kept.View, batch_size=1)
        kept.sql("UPDATE ROWS SET n = n + 10")
        kept.insert(("555-0003", 3))
        kept.change()
        assert kept.rows == {"555 0001": 11, "5550002": 12, "555-0003": 3}
        kept.sql("DELETE FROM ROWS WHERE n > 10")
        kept.change()

        assert kept.rows == {"555-0003": 3}
        assert kept.View.verify().equal


def test_values_that_python_cannot_order(grouped: bool) -> None:
    kept = Kept(lambda **more: ColorField(max_length=8, **more), grouped=grouped)
    with kept.tracked():
        kept.insert(("red", 1), ("blue", 2))
        refreshed(kept.View, batch_size=1)
        kept.Row._base_manager.update(n=5)
        kept.change(batch_size=1)
        assert kept.rows == {"red": 5, "blue": 5}
        kept.Row._base_manager.filter(k=Color.RED).delete()
        assert kept.View.mark_dirty([Color.BLUE, Color.RED]) == []
        kept.change()

        assert kept.rows == {"blue": 5}
        assert kept.View.verify().equal


def test_a_value_that_its_field_cannot_read() -> None:
    kept = Kept(lambda **more: ColorField(max_length=8, **more))
    with kept.tracked():
        kept.insert(("mauve", 1))
        refreshed(kept.View)
        kept.View._base_manager.update(total=7)

        [found] = kept.View.verify().examples
        assert (found.key, found.in_view) == ({"ref": "mauve"}, {"ref": "mauve", "total": 7})
        assert kept.View.verify(repair=True).repaired == 1
        kept.sql("DELETE FROM ROWS")
        kept.change()

        assert kept.rows == {}


def test_keys_that_depends_on_finds_are_those_of_the_database() -> None:
    Row = model("Row", k=LowerEmail(unique=True), n=models.IntegerField())
    Mark = model("Mark", row=models.ForeignKey(Row, models.CASCADE))
    marks = Mark._base_manager.order_by().values("row__n").annotate(n=Count("pk")).values("n")
    View = derived_view(
        lambda cls: Row._base_manager.values(ref=F("k"), total=Coalesce(Subquery(marks[:1]), 0)),
        ref=LowerEmail(unique=True),
        total=models.IntegerField(),
        options={"depends_on": {Mark: lambda rows: rows.values_list("row__k")}},
    )
    with made(Row, Mark, View):
        changes.install(engine.alias())
        execute(f"INSERT INTO {Row._meta.db_table} (id, k, n) VALUES (1, 'Ann@example.org', 1)")
        refreshed(View)
        Mark._base_manager.create(row_id=1)

        [run] = view_classes.run(View, phases=[Phase.UPDATE]).runs.all()

        assert (run.full_refresh_reason, View._base_manager.get().total) == ("", 1)
        changes.remove(engine.alias())


def test_a_walk_through_keys_that_the_field_writes_in_upper_case_ends() -> None:
    kept = Kept(lambda **more: UpperText(max_length=8, **more))
    with kept.tracked():
        kept.insert(*((f"{'ab'[n % 2]}{n}", n) for n in range(20)))
        kept.Row._base_manager.create(k="c0", n=0)
        written = refreshed(kept.View, batch_size=3)

        assert written == {Phase.INSERT: 21, Phase.UPDATE: 0, Phase.DELETE: 0}
        assert {run.batches for run in PhaseRun.objects.filter(phase=Phase.INSERT)} == {8}
        assert kept.View.verify().equal


@pytest.mark.parametrize(
    ("phase", "values", "named"),
    [
        (Phase.INSERT, "keys", "key B"),
        (Phase.DELETE, "keys", "key B"),
        (Phase.DELETE, "none", "key (values left out"),
    ],
)
def test_a_walk_that_does_not_get_on_ends_as_not_converging(
    phase: Phase, values: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(lambda **more: models.CharField(max_length=8, **more))
    with kept.tracked():
        kept.insert(("a", 1), ("Bb", 2), ("c", 3))
        refreshed(kept.View)
        # given a database that gives back another key than it was asked for
        monkeypatch.setattr(
            type(dialect_of(engine.alias())),
            "exact",
            lambda _self, _kind, value: f"substr({value}, 1, 1)",
        )
        plan_module._plan_of.cache_clear()
        kept.View.mark_dirty()

        with override_settings(MATVIEWS={"VALUES_IN_ERRORS": values}):
            refresh = view_classes.run(kept.View, batch_size=1, phases=[phase])

        run = view_classes.only_run(refresh)
        assert (run.state, run.batches < 4) == (RunState.NOT_CONVERGING, True)
        assert f"Not converging: the database returns the {named}" in run.error
        assert kept.rows == {"a": 1, "Bb": 2, "c": 3}


def test_dates_that_python_cannot_hold(grouped: bool) -> None:
    kept = Kept(models.DateField, grouped=grouped)
    days = {
        "postgresql": ["-infinity", "0044-03-15 BC", "2024-01-31", "12024-01-31", "infinity"],
        "mysql": ["0000-00-00", "2024-00-00", "2024-01-31"],
        "sqlite": ["0000-00-00", "12024-01-31", "2024-01-31", "never"],
    }[connection.vendor]
    with kept.tracked():
        kept.insert(*((day, n) for n, day in enumerate(days)))
        refreshed(kept.View, batch_size=1)
        assert set(kept.rows) == set(days)
        refreshed(kept.View)
        # each is changed, marked, repaired
        kept.sql("UPDATE ROWS SET n = n + 10")
        kept.change(batch_size=1)
        assert kept.rows == {day: n + 10 for n, day in enumerate(days)}
        kept.View._base_manager.update(total=-1)
        if connection.vendor != "sqlite":
            assert kept.View.mark_dirty([days[0]]) == []
            kept.change()
            assert kept.rows[days[0]] == 10
        found = kept.View.verify(repair=True)
        assert {found.missing, found.surplus} == {0}
        assert days[1] in {each.key["ref"] for each in found.examples}
        kept.View.mark_dirty()
        assert refreshed(kept.View, batch_size=2)[Phase.UPDATE] == 0
        # and goes
        kept.sql(f"DELETE FROM ROWS WHERE k = '{UNHELD}'")
        kept.change()
        assert set(kept.rows) == set(days) - {UNHELD}
        kept.sql("DELETE FROM ROWS")
        kept.View.mark_dirty()
        refreshed(kept.View, batch_size=1)

        assert kept.rows == {}
        assert kept.View.verify().equal


@pytest.mark.only_on("postgres", reason="PostgreSQL's own")
def test_keys_are_read_alike_whatever_the_session_of_the_writer() -> None:
    kept = Kept(models.DateField)
    with kept.tracked():
        kept.insert(("2024-02-01", 1), ("2024-01-02", 2), ("2024-03-04", 3))
        refreshed(kept.View, batch_size=1)
        with connection.cursor() as cursor:
            cursor.execute("SET DateStyle = 'SQL, DMY'")
        kept.sql("UPDATE ROWS SET n = n + 10 WHERE k = '2024-01-02'")
        kept.sql("DELETE FROM ROWS WHERE k = '2024-03-04'")
        with connection.cursor() as cursor:
            cursor.execute("SET DateStyle = 'ISO, MDY'")
        kept.change()

        assert kept.rows == {"2024-02-01": 1, "2024-01-02": 12}


@pytest.mark.only_on("postgres", reason="PostgreSQL's own")
@pytest.mark.parametrize(
    ("field", "kind"),
    [
        (models.SmallIntegerField, "smallint"),
        (models.IntegerField, "integer"),
        (models.BigIntegerField, "bigint"),
    ],
)
def test_an_array_of_keys_has_the_type_of_the_column(field: Any, kind: str) -> None:
    """Otherwise the array is not hashed, and without an index each row is compared with all."""
    kept = Kept(field, grouped=True)
    with kept.tracked():
        kept.insert((1, 1), (2, 2))
        kept.refresh()
        kept.sql("UPDATE ROWS SET n = 5 WHERE k = 1")
        with statements() as found:
            kept.change()
        assert kept.rows == {"1": 5, "2": 2}
    arrays = {part.split("[]")[0] for sql in found for part in sql.split('ref" = ANY(%s::')[1:]}
    arrays |= {part.split("[]")[0] for sql in found for part in sql.split('"k" = ANY(%s::')[1:]}
    assert arrays == {kind}


@pytest.mark.only_on("postgres", reason="PostgreSQL's own")
@pytest.mark.parametrize(
    ("field", "number"),
    [(models.SmallIntegerField(), 2**15), (models.IntegerField(), -(2**31) - 1)],
)
def test_a_key_that_the_column_cannot_hold_selects_no_row(field: Any, number: int) -> None:
    keys = Keys(tuple((value,) for value in (1, number, *range(10, 1_000))))
    among = dialect_of(connection.alias).among(["held.id"], keys, [field])
    held = f"(SELECT CAST(1 AS {field.rel_db_type(connection)}) AS id) held"

    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM {held} WHERE {among.text}", among.params)
        assert cursor.fetchone() == (1,)


@pytest.mark.only_on("sqlite", reason="SQLite's own")
def test_what_sqlite_keeps_in_columns_of_another_type() -> None:
    kept = Kept(models.BigIntegerField)
    with kept.tracked():
        kept.insert(("abc", 1), (7, 2), (b"\x00\xff", 3), (1.5, 4), ("12x", 5))
        refreshed(kept.View, batch_size=1)
        assert kept.View.verify().equal
        kept.sql("UPDATE ROWS SET n = n + 10 WHERE k IN ('abc', 7)")
        kept.sql("DELETE FROM ROWS WHERE k = '12x'")
        kept.change()
        assert kept.View.verify().equal
        kept.sql("DELETE FROM ROWS")
        refreshed(kept.View, batch_size=1)

        assert kept.rows == {}


def test_a_mark_tells_which_keys_nobody_has() -> None:
    kept = Kept(LowerEmail)
    with kept.tracked():
        kept.insert(("Ann@example.org", 1), ("eve@example.org", 2))
        refreshed(kept.View)
        kept.insert(("new@example.org", 3))
        kept.sql("DELETE FROM ROWS WHERE n = 2")

        # the key that has gone from the source, and the one that has not come yet, are known
        given = ["eve@example.org", "NEW@example.org", "Ann@example.org", "nobody@example.org"]
        unknown = kept.View.mark_dirty(given)

        # as a filter would, the field looks for the older row in its own spelling
        same = connection.vendor == "mysql"  # whose collation takes both for one
        assert unknown == (["nobody@example.org"] if same else given[2:])
        kept.change()
        assert DirtyKeys.objects.count() == 0
        assert kept.View.verify().equal


def test_a_mark_converts_a_key_once(grouped: bool) -> None:
    kept = Kept(lambda **more: Mirrored(max_length=8, **more), grouped=grouped)
    with kept.tracked():
        kept.insert(("abc", 1), ("xyz", 2))
        refreshed(kept.View)
        kept.sql("UPDATE VIEW SET total = 9")

        assert kept.View.mark_dirty(["cba", "xyz"]) == ["xyz"]
        kept.change()

        assert kept.rows == {"abc": 1, "xyz": 9}


def test_a_mark_by_what_the_database_takes_for_no_key_leaves_the_transaction_alone() -> None:
    kept = Kept(models.BigIntegerField)
    with kept.tracked():
        if connection.vendor == "postgresql":
            with pytest.raises(InvalidRequest, match=r"rejects one of the keys of"):
                kept.View.mark_dirty([10**30])
        assert kept.View.mark_dirty([5]) == [5]
        kept.insert((5, 1))
        refreshed(kept.View)

        assert kept.rows == {"5": 1}


class CIText(models.TextField):  # type: ignore[type-arg]
    """Texts that are equal to PostgreSQL whatever their case."""

    def db_type(self, connection: Any) -> str:
        return "citext"


@pytest.mark.only_on("postgres", reason="PostgreSQL's own")
def test_a_key_and_a_value_of_which_the_case_alone_changes() -> None:
    execute("CREATE EXTENSION IF NOT EXISTS citext")
    Row = model("Row", k=CIText(unique=True), word=CIText())
    View = derived_view(
        lambda cls: Row._base_manager.values("word", ref=F("k")),
        ref=CIText(unique=True),
        word=CIText(),
    )
    with made(Row, View):
        changes.install(engine.alias())
        Row._base_manager.bulk_create([Row(k="ann", word="one"), Row(k="bob", word="two")])
        refreshed(View)

        Row._base_manager.filter(k="ann").update(k="ANN")
        Row._base_manager.filter(k="bob").update(word="TWO")
        assert len(View.verify().examples) == 2
        assert refreshed(View)[Phase.UPDATE] == 2

        assert set(View._base_manager.values_list("ref", "word")) == {
            ("ANN", "one"),
            ("bob", "TWO"),
        }
        changes.remove(engine.alias())


@pytest.mark.only_on("postgres", "mariadb", reason="SQLite's decimals are floats")
def test_decimals_with_more_digits_than_a_float() -> None:
    """MariaDB and MySQL compare a list of texts with them as floats."""
    kept = Kept(lambda **more: models.DecimalField(max_digits=20, decimal_places=2, **more))
    keys = [f"123456789012345678.0{digit}" for digit in range(1, 5)]
    dialect, field = dialect_of(engine.alias()), kept.Row._meta.get_field("k")
    some = Keys(tuple((key,) for key in keys[1:3]), (dialect.kind_of(field),))
    with kept.tracked(), connection.cursor() as cursor:
        kept.insert(*((key, 1) for key in keys))
        among = dialect.among(["k"], some)
        cursor.execute(
            f"SELECT k FROM {kept.Row._meta.db_table} WHERE {among.text} ORDER BY k", among.params
        )
        assert [str(key) for (key,) in cursor.fetchall()] == keys[1:3]
