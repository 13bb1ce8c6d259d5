"""Tables whose triggers would miss changes: they are named, and full passes keep the view right."""

from dataclasses import dataclass
from typing import Any

import pytest
from django.core.checks import Tags, run_checks
from django.db.models import F

from matviews import changes, engine, tasks
from matviews.models import TrackedTable
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.tables import (
    defined,
    derived_view,
    execute,
    key,
    made,
    refreshed,
    tracked_view_of,
)
from tests.shapes.models import Region

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

ORDINARY = "it is not an ordinary table"
INHERITS = (
    "it is a parent or child by INHERITS: make it a partitioned table, or detach it with NO INHERIT"
)
PARTLY_UNLOGGED = "one of its partitions is unlogged or a foreign table"
UNLOGGED = "it is unlogged: a crash empties it without firing a trigger"
ENGINE = "its engine is not InnoDB, so a rollback undoes the log entry but not the change"
PARTITIONED = "it is partitioned, and truncating or dropping a partition fires no trigger here"

on_postgres = pytest.mark.only_on("postgres", reason="PostgreSQL's own")
on_mysql = pytest.mark.only_on("mariadb", reason="MariaDB's and MySQL's own")
on_sqlite = pytest.mark.only_on("sqlite", reason="SQLite's own")


def contents(view: type[Any]) -> dict[int, int | None]:
    """Refresh a view, which has to look at all keys; its rows."""
    refresh = view_classes.run(view)
    assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    (reason,) = {each.full_refresh_reason for each in refresh.runs.all()}
    assert reason in (
        f"no triggers log all changes of {view.source().model._meta.db_table}",
        "made_rows.id is without a type in the database, but bigint in its model",  # if virtual
    )
    return dict(view.objects.values_list("ref", "n"))


FIRST = "INSERT INTO made_rows VALUES (1, 1)"
PLAIN = "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer)"
SECOND = "UPDATE made_rows SET n = 2"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A table of which no trigger tells all, with the row (1, 1).

    Attributes:
        made: what makes it.
        gone: what undoes that.
        table: its name.
        why: what is said of it.
        changed: statements that change it.
        rows: what it has then.
    """

    made: tuple[str, ...]
    gone: tuple[str, ...] = ("DROP TABLE made_rows",)
    table: str = "made_rows"
    why: str
    changed: tuple[str, ...]
    rows: dict[int, int | None]


VIEW = Case(
    made=(PLAIN, FIRST, "CREATE VIEW made_view AS SELECT id, n FROM made_rows WHERE n < 10"),
    gone=("DROP VIEW made_view", "DROP TABLE made_rows"),
    table="made_view",
    why=ORDINARY,
    changed=("INSERT INTO made_rows VALUES (2, 2)", "UPDATE made_rows SET n = 11 WHERE id = 1"),
    rows={2: 2},
)
MATERIALIZED = Case(
    made=(PLAIN, FIRST, "CREATE MATERIALIZED VIEW made_view AS SELECT id, n FROM made_rows"),
    gone=("DROP TABLE made_rows CASCADE",),
    table="made_view",
    why=ORDINARY,
    changed=(SECOND, "REFRESH MATERIALIZED VIEW made_view"),
    rows={1: 2},
)
UNLOGGED_PARTITION = Case(
    made=(
        "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer) PARTITION BY RANGE (id)",
        "CREATE UNLOGGED TABLE made_part PARTITION OF made_rows DEFAULT",
        FIRST,
    ),
    why=PARTLY_UNLOGGED,
    changed=("UPDATE made_part SET n = 2", "INSERT INTO made_part VALUES (3, 3)"),
    rows={1: 2, 3: 3},
)
INHERITED = (
    "CREATE TABLE made_rows (id bigint, n integer)",
    "CREATE TABLE made_child () INHERITS (made_rows)",
    "INSERT INTO made_child VALUES (1, 1)",
)
PARENT = Case(
    made=INHERITED,
    gone=("DROP TABLE made_rows CASCADE",),
    why=INHERITS,
    changed=("UPDATE made_child SET n = 2", "INSERT INTO made_child VALUES (3, 3)"),
    rows={1: 2, 3: 3},
)
CHILD = Case(
    made=INHERITED,
    gone=("DROP TABLE made_rows CASCADE",),
    table="made_child",
    why=INHERITS,
    changed=(SECOND,),
    rows={1: 2},
)
UNLOGGED_TABLE = Case(
    made=(PLAIN.replace("TABLE", "UNLOGGED TABLE"), FIRST),
    why=UNLOGGED,
    changed=(SECOND,),
    rows={1: 2},
)
SUBSCRIBED = Case(
    made=(
        PLAIN,
        FIRST,
        (
            "CREATE SUBSCRIPTION made_subscription CONNECTION 'dbname=made_nowhere' "
            "PUBLICATION made_nothing WITH (connect = false, slot_name = NONE)"
        ),
        (
            "INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate) "
            "SELECT oid, 'made_rows'::regclass, 'r' FROM pg_subscription "
            "WHERE subname = 'made_subscription'"
        ),
    ),
    gone=("DROP SUBSCRIPTION made_subscription", "DROP TABLE made_rows"),
    why="a subscription writes to it, and logical replication fires no statement trigger",
    changed=(SECOND,),
    rows={1: 2},
)
FOREIGN = Case(
    made=(
        "CREATE EXTENSION file_fdw",
        "CREATE SERVER made_files FOREIGN DATA WRAPPER file_fdw",
        (
            "CREATE FOREIGN TABLE made_rows (id bigint, n integer) SERVER made_files "
            "OPTIONS (format 'csv', program $$printf '1,1\\n'$$)"
        ),
    ),
    gone=("DROP EXTENSION file_fdw CASCADE",),
    why=ORDINARY,
    changed=("ALTER FOREIGN TABLE made_rows OPTIONS (SET program $$printf '1,2\\n3,3\\n'$$)",),
    rows={1: 2, 3: 3},
)
PARTS_THAT_GO = Case(
    made=(
        (
            "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer) PARTITION BY RANGE (id) "
            "(PARTITION old VALUES LESS THAN (5), PARTITION new VALUES LESS THAN MAXVALUE)"
        ),
        FIRST,
    ),
    why=PARTITIONED,
    changed=("INSERT INTO made_rows VALUES (7, 7)", "ALTER TABLE made_rows DROP PARTITION old"),
    rows={7: 7},
)
VIRTUAL = Case(
    made=("CREATE VIRTUAL TABLE made_rows USING fts5 (id, n)", FIRST),
    why=ORDINARY,
    changed=(SECOND, "INSERT INTO made_rows VALUES (3, 3)"),
    rows={1: 2, 3: 3},
)
ROLLS_NOTHING_BACK = Case(
    made=(f"{PLAIN} ENGINE = MyISAM", FIRST),
    why=ENGINE,
    changed=("START TRANSACTION", SECOND, "ROLLBACK"),
    rows={1: 2},
)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(VIEW, id="a view of the database"),
        pytest.param(MATERIALIZED, marks=on_postgres, id="a materialized view of the database"),
        pytest.param(UNLOGGED_PARTITION, marks=on_postgres, id="an unlogged partition"),
        pytest.param(PARENT, marks=on_postgres, id="a table that another inherits from"),
        pytest.param(CHILD, marks=on_postgres, id="a table that inherits from another"),
        pytest.param(UNLOGGED_TABLE, marks=on_postgres, id="an unlogged table"),
        pytest.param(SUBSCRIBED, marks=on_postgres, id="a table that is replicated to"),
        pytest.param(FOREIGN, marks=on_postgres, id="a foreign table"),
        pytest.param(PARTS_THAT_GO, marks=on_mysql, id="a table of which partitions may go"),
        pytest.param(ROLLS_NOTHING_BACK, marks=on_mysql, id="a table that rolls nothing back"),
        pytest.param(VIRTUAL, marks=on_sqlite, id="a virtual table"),
    ],
)
def test_it_is_named_and_each_refresh_looks_at_all_keys(case: Case) -> None:
    with defined(*case.made, undone=case.gone), tracked_view_of(case.table) as view:
        # given that the check names it with the reason, and no trigger is believed
        messages = run_checks(tags=[Tags.database], databases=["default"])
        assert [each.msg for each in messages if each.id == "matviews.W011"] == [
            f"Changes to {case.table} (read by shapes.Made) cannot be logged: {case.why}."
        ]
        assert not TrackedTable.objects.filter(table=case.table).exists()
        assert not view.is_fresh()
        assert contents(view) == {1: 1}
        # when something changes
        execute(*case.changed)
        # then the next refresh finds it
        assert contents(view) == case.rows


@pytest.mark.parametrize(
    ("becomes", "write", "mends", "why"),
    [
        pytest.param(
            "CREATE TABLE made_child () INHERITS (made_rows)",
            "INSERT INTO made_child VALUES (2, 2)",
            "DROP TABLE made_child",
            INHERITS,
            marks=on_postgres,
            id="inherited",
        ),
        pytest.param(
            "ALTER TABLE made_rows SET UNLOGGED",
            "INSERT INTO made_rows VALUES (2, 2)",
            "ALTER TABLE made_rows SET LOGGED",
            UNLOGGED,
            marks=on_postgres,
            id="unlogged",
        ),
        pytest.param(
            "ALTER TABLE made_rows ENGINE = MyISAM",
            "INSERT INTO made_rows VALUES (2, 2)",
            "ALTER TABLE made_rows ENGINE = InnoDB",
            ENGINE,
            marks=on_mysql,
            id="engine",
        ),
    ],
)
def test_a_table_that_becomes_so_is_noticed_by_maintenance(
    becomes: str, write: str, mends: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        defined(PLAIN, FIRST, undone="DROP TABLE made_rows"),
        tracked_view_of("made_rows") as view,
    ):
        refreshed(view)
        assert view.is_fresh()
        with defined(becomes, undone=mends):
            tasks.maintain()

            execute(write)

            assert f'table=made_rows reason="{why}' in caplog.text
            assert not view.is_fresh()
            assert contents(view) == {1: 1, 2: 2}
            caplog.clear()
            tasks.maintain()
            assert "made_rows" not in caplog.text
        changes.install(engine.alias())
        refreshed(view)
        assert view.is_fresh()


def test_a_table_that_is_not_there() -> None:
    with tracked_view_of("made_rows"):
        assert list(changes.find_problems(engine.alias())) == [
            (
                "Changes to made_rows (read by shapes.Made) cannot be logged: there is no such "
                "table: run `manage.py makemigrations` and `manage.py migrate`."
            )
        ]


@on_postgres
def test_other_tables_are_watched_all_the_same() -> None:
    """A foreign table that nobody can read, for lack of a handler, stops no other's triggers."""
    other = derived_view(lambda cls: Region.objects.values(ref=F("pk")), name="Other", ref=key())
    with defined(
        "CREATE FOREIGN DATA WRAPPER made_nothing",
        "CREATE SERVER made_nowhere FOREIGN DATA WRAPPER made_nothing",
        "CREATE FOREIGN TABLE made_rows (id bigint, n integer) SERVER made_nowhere",
        undone="DROP FOREIGN DATA WRAPPER made_nothing CASCADE",
    ), made(other), tracked_view_of("made_rows"):  # fmt: skip
        assert [each.table for each in TrackedTable.objects.all()] == [Region._meta.db_table]
