"""Columns unlike what their models say: the view is refreshed in full, says why, and is right."""

# ruff: noqa: N806 - variables that are models

from dataclasses import dataclass
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connection, models
from django.db.models import F

from matviews import changes, engine, tasks
from matviews.queryset import explain, plan_of
from matviews.registry import registry
from tests.helpers.keyed_views import Kept
from tests.helpers.tables import derived_view, execute, made, model

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A column that somebody has given another type.

    Attributes:
        vendor: the database.
        statements: what does it.
        reason: what is said of it, in part.
    """

    vendor: str
    statements: tuple[str, ...]
    reason: str


CASES = {
    "char": Case(
        vendor="postgresql",
        statements=("ALTER TABLE ROWS ALTER k TYPE char(8)",),
        reason="k is character(8) in the database, but varchar(8) in its model",
    ),
    "citext": Case(
        vendor="postgresql",
        statements=(
            "CREATE EXTENSION IF NOT EXISTS citext",
            "ALTER TABLE ROWS ALTER k TYPE citext",
        ),
        reason="k is citext in the database, but varchar(8) in its model",
    ),
    "citext in the view": Case(
        vendor="postgresql",
        statements=(
            "CREATE EXTENSION IF NOT EXISTS citext",
            "ALTER TABLE VIEW ALTER ref TYPE citext",
        ),
        reason="ref is citext in the database, but varchar(8) in its model",
    ),
    "char in the view": Case(
        vendor="postgresql",
        statements=("ALTER TABLE VIEW ALTER ref TYPE char(8)",),
        reason="ref is character(8) in the database, but varchar(8) in its model",
    ),
    "collation": Case(
        vendor="postgresql",
        statements=('ALTER TABLE ROWS ALTER k TYPE varchar(8) COLLATE "POSIX"',),
        reason="k has the collation POSIX in the database, but the default in its model",
    ),
    "old collation": Case(
        vendor="mysql",
        statements=("ALTER TABLE ROWS MODIFY k varchar(8) CHARACTER SET latin1 NOT NULL",),
        reason="have different collations in the database",
    ),
    "old collation in the view": Case(
        vendor="mysql",
        statements=("ALTER TABLE VIEW MODIFY ref varchar(8) COLLATE utf8mb4_bin NOT NULL",),
        reason="have different collations in the database",
    ),
    "bytes": Case(
        vendor="mysql",
        statements=("ALTER TABLE ROWS MODIFY k varbinary(8) NOT NULL",),
        reason="k is varbinary(8) in the database, but varchar(8) in its model",
    ),
    "affinity": Case(
        vendor="sqlite",
        statements=(
            "DROP TABLE ROWS",
            "CREATE TABLE ROWS (id integer PRIMARY KEY, k varbinary, n integer)",
        ),
        reason="k is varbinary in the database, but varchar(8) in its model",
    ),
    "nocase": Case(
        vendor="sqlite",
        statements=(
            "DROP TABLE ROWS",
            "CREATE TABLE ROWS (id integer PRIMARY KEY, k varchar(8) COLLATE NOCASE, n integer)",
        ),
        reason="k has the collation NOCASE in the database, but the default in its model",
    ),
}
HERE = [
    pytest.param(case, id=name) for name, case in CASES.items() if case.vendor == connection.vendor
]


@pytest.fixture(params=[True, False], ids=["groups", "rows"])
def kept(request: pytest.FixtureRequest) -> Kept:
    return Kept(lambda **more: models.CharField(max_length=8, **more), grouped=request.param)


def retype(kept: Kept, case: Case) -> None:
    for each in (kept.Row, kept.View) if connection.vendor == "postgresql" else ():
        with connection.cursor() as cursor:
            found = connection.introspection.get_constraints(cursor, each._meta.db_table)
        # Django's index for LIKE is of texts alone
        execute(*(f'DROP INDEX "{name}"' for name in found if name.endswith("_like")))
    for statement in case.statements:
        kept.sql(statement)


def rows(kept: Kept) -> dict[Any, int]:
    return {key.strip(): total for key, total in kept.rows.items()}


@pytest.mark.parametrize("case", HERE)
def test_a_full_refresh_is_right_and_says_why(case: Case, kept: Kept) -> None:
    with kept.tracked(lambda: retype(kept, case)):
        kept.insert(("ab", 1), ("cd", 2))
        [reason] = kept.refresh(batch_size=1)
        assert case.reason in reason
        assert rows(kept) == {"ab": 1, "cd": 2}

        kept.sql("DELETE FROM ROWS WHERE n = 1")
        kept.insert(("ef", 3), ("Zz", 4))
        assert kept.refresh(batch_size=1) == {reason}
        assert rows(kept) == {"cd": 2, "ef": 3, "Zz": 4}
        assert kept.View.verify().equal
        kept.sql("UPDATE ROWS SET n = 7")
        assert kept.View.verify(repair=True).repaired == 3

        # and it is known in advance
        told = [each for each in run_checks(databases=["default"]) if each.id == "matviews.W018"]
        assert len(told) == 1
        assert reason in told[0].msg
        found = explain(registry.find(kept.View), engine.alias())
        assert (found.strategy, found.reason) == ("staged", reason)


@pytest.mark.only_on("postgres", "mariadb", reason="SQLite has no ALTER of a column")
@pytest.mark.parametrize("kind", ["numeric(20, 2)", "double precision"])
def test_a_key_of_the_view_that_is_another_number_in_the_database(kind: str) -> None:
    kept = Kept(models.BigIntegerField)
    how = "MODIFY ref {} NOT NULL" if connection.vendor == "mysql" else "ALTER ref TYPE {}"
    with kept.tracked(lambda: kept.sql(f"ALTER TABLE VIEW {how.format(kind)}")):
        kept.insert((1, 1), (2, 2), (10, 3))
        [reason] = kept.refresh(batch_size=1)
        kept.sql("DELETE FROM ROWS WHERE n = 1")
        kept.insert((7, 4), (3, 5))

        assert kept.refresh(batch_size=1) == {reason}

        assert "in the database, but bigint in its model" in reason
        assert sorted(map(float, kept.rows)) == [2, 3, 7, 10]


@pytest.mark.only_on("postgres", reason="SQLite and MariaDB have no schemas")
def test_columns_of_a_table_that_is_named_with_its_schema() -> None:
    Row = model(
        "Row",
        k=models.CharField(max_length=8, unique=True),
        n=models.IntegerField(),
        meta={"db_table": 'mistyped"."row', "managed": False},
    )
    View = derived_view(
        lambda cls: Row._base_manager.values(ref=F("k"), total=F("n")),
        ref=models.CharField(max_length=8, unique=True),
        total=models.IntegerField(),
    )
    execute(
        "CREATE SCHEMA mistyped",
        "CREATE TABLE mistyped.row (id bigserial PRIMARY KEY, k char(8) UNIQUE, n integer)",
    )
    try:
        with made(View):
            fault = plan_of(registry.find(View), engine.alias()).mismatch()
    finally:
        execute("DROP SCHEMA mistyped CASCADE")

    assert "k is character(8) in the database, but varchar(8) in its model" in fault


@pytest.mark.parametrize("case", HERE)
def test_a_column_that_gets_another_type_later_is_noticed_within_a_minute(
    case: Case, kept: Kept
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip(
            "SQLite has no ALTER of a column: its table is dropped, and its triggers with it"
        )
    with kept.tracked():
        kept.insert(("ab", 1), ("cd", 2))
        kept.refresh()
        retype(kept, case)

        tasks.maintain()

        kept.sql("DELETE FROM ROWS WHERE n = 1")
        [reason] = kept.refresh()
        assert case.reason in reason
        assert rows(kept) == {"cd": 2}
        # its triggers are not to blame: none would help
        [status] = engine.view_statuses([registry.find(kept.View).label])
        assert (status.on_time, status.not_logged) == (True, ())
        # nor does `migrate` believe the triggers
        changes.install(engine.alias())
        kept.sql("UPDATE ROWS SET n = 5")
        assert kept.refresh() == {reason}
        assert rows(kept) == {"cd": 5}


def test_columns_as_the_models_have_them_are_believed(kept: Kept) -> None:
    with kept.tracked():
        kept.insert(("ab", 1))
        kept.refresh()
        tasks.maintain()
        kept.sql("UPDATE ROWS SET n = 2")
        kept.change()

        assert rows(kept) == {"ab": 2}
        assert not [e for e in run_checks(databases=["default"]) if e.id == "matviews.W018"]
