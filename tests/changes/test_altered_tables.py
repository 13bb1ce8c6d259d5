"""Tables that plain SQL alters, without migrate: writers can write, and no change is lost."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import pytest
from django.db import DatabaseError, connection, models
from django.db.models import F

from matviews import changes, engine
from matviews.models import Change
from tests.helpers.tables import (
    defined,
    derived_view,
    execute,
    made,
    model,
    refreshed,
    tracked_view_of,
)

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

on_postgres = pytest.mark.only_on("postgres", reason="PostgreSQL's own")
on_sqlite = pytest.mark.only_on("sqlite", reason="SQLite's own")

WHOLE = "any row"
Run = Callable[[str], object]
ALL = frozenset({"insert", "update", "delete"})
ROWS_ALONE = ALL - {"update"}  # their triggers name no column but the key


class Altered(NamedTuple):
    """What somebody does to a table, and what is logged of writes to it then.

    Attributes:
        there: statements that alter it.
        back: statements that have it as it was; or as a view can read it.
        keyed: the events of which the keys are logged; of the others, that it may be any row.
        id: what the column of the key is called then.
    """

    there: tuple[str, ...]
    back: tuple[str, ...] = ()
    keyed: frozenset[str] = frozenset()
    id: str = "id"

    @property
    def copies(self) -> bool:
        """Whether rows are written, so that no older transaction may change them."""
        return any("UPDATE" in each for each in self.there)


def alter(*clauses: str) -> tuple[str, ...]:
    """Statements that alter the table; what is no clause of ALTER TABLE stays as it is."""
    return tuple(
        each if each.startswith("UPDATE ") else f"ALTER TABLE made_rows {each}" for each in clauses
    )


NUMBERS: dict[str, dict[str, Altered]] = {
    "postgresql": {
        "column dropped": Altered(alter("DROP n"), alter("ADD n integer"), ROWS_ALONE),
        "column renamed": Altered(alter("RENAME n TO k"), alter("RENAME k TO n"), ROWS_ALONE),
        "column retyped": Altered(
            alter("ALTER n TYPE text"), alter("ALTER n TYPE integer USING n::integer"), ROWS_ALONE
        ),
        "column of a type without equality": Altered(
            alter("ALTER n TYPE json USING to_json(n)"),
            alter("ALTER n TYPE integer USING (n #>> '{}')::integer"),
            ROWS_ALONE,
        ),
        "column dropped and added": Altered(alter("DROP n", "ADD n integer"), (), ALL),
        "column in whose place another one is": Altered(
            alter("ADD k json", "RENAME n TO was", "RENAME k TO n"),
            alter("DROP n", "RENAME was TO n"),
            ROWS_ALONE,
        ),
        "column added": Altered(alter("ADD k integer DEFAULT 5"), (), ALL),
        "link renamed": Altered(alter("RENAME id TO k"), alter("RENAME k TO id"), id="k"),
        "link dropped": Altered(
            alter("ADD k bigint", "UPDATE made_rows SET k = id", "DROP id"),
            alter("RENAME k TO id", "ADD PRIMARY KEY (id)"),
            id="k",
        ),
        "link retyped": Altered(alter("ALTER id TYPE integer"), alter("ALTER id TYPE bigint")),
        "link a text": Altered(
            alter("ALTER id TYPE text"), alter("ALTER id TYPE bigint USING id::bigint")
        ),
        "link in another place": Altered(
            alter(
                *("ADD k bigint", "UPDATE made_rows SET k = id", "DROP id"),
                *("RENAME k TO id", "ADD PRIMARY KEY (id)"),
            ),
            (),
            ALL,
        ),
    },
    "mysql": {
        "column dropped": Altered(alter("DROP n"), alter("ADD n integer"), ROWS_ALONE),
        "column renamed": Altered(
            alter("RENAME COLUMN n TO k"), alter("RENAME COLUMN k TO n"), ROWS_ALONE
        ),
        "column retyped": Altered(alter("MODIFY n varchar(9)"), alter("MODIFY n integer"), ALL),
        "column added": Altered(alter("ADD k integer DEFAULT 5"), (), ALL),
        "column in another place": Altered(alter("MODIFY n integer FIRST"), (), ALL),
        "link renamed": Altered(
            alter("RENAME COLUMN id TO k"), alter("RENAME COLUMN k TO id"), id="k"
        ),
        "link dropped": Altered(
            alter("ADD k bigint", "UPDATE made_rows SET k = id", "DROP id"),
            alter("RENAME COLUMN k TO id", "ADD PRIMARY KEY (id)"),
            id="k",
        ),
        "link retyped": Altered(alter("MODIFY id integer"), (), ALL),
        "link a text": Altered(alter("MODIFY id varchar(9)"), alter("MODIFY id bigint"), ALL),
    },
    "sqlite": {
        "column renamed": Altered(alter("RENAME n TO k"), alter("RENAME k TO n"), ALL),
        "column added": Altered(alter("ADD k integer DEFAULT 5"), (), ALL),
    },
}
HERE = NUMBERS[connection.vendor]
ROWS = "INSERT INTO made_rows (id) VALUES (1), (2), (9)"


def _writes(key: str) -> dict[str, str]:
    return {
        "insert": f"INSERT INTO made_rows ({key}) VALUES ('3')",
        "update": f"UPDATE made_rows SET {key} = '11' WHERE {key} = '1'",
        "delete": f"DELETE FROM made_rows WHERE {key} = '2'",
    }


KEYS = {"insert": {"3"}, "update": {"1", "11"}, "delete": {"2"}}


@contextmanager
def _session() -> Iterator[Run]:
    """A connection that is not Django's, and commits by itself."""
    driver: Any = connection.Database  # type: ignore[attr-defined]
    settings = connection.get_connection_params()
    for each in ("cursor_factory", "context"):
        settings.pop(each, None)
    settings |= {"isolation_level": None} if connection.vendor == "sqlite" else {"autocommit": True}
    with closing(driver.connect(**settings)) as session:

        def run(statement: str) -> None:
            with closing(session.cursor()) as cursor:
                cursor.execute(statement)

        yield run


@contextmanager
def _new() -> Iterator[Run]:
    """Sessions that begin with a write to the table as it is by then."""

    def run(statement: str) -> None:
        with _session() as each:
            each(statement)

    run(ROWS)
    yield run


@contextmanager
def _known() -> Iterator[Run]:
    """A session that has written before the table is altered."""
    with _session() as run:
        run(ROWS)
        yield run


@contextmanager
def _prepared() -> Iterator[Run]:
    """A session that prepared its statements before the table is altered, if they stay the same."""
    with _known() as run:
        numbers = {}
        for number, statement in enumerate(_writes("id").values()):
            quoted = statement.replace("'", "''")
            of = f"FROM '{quoted}'" if connection.vendor == "mysql" else f"AS {statement}"
            run(f"PREPARE made_{number} {of}")
            numbers[statement] = number
        yield lambda each: run(f"EXECUTE made_{numbers[each]}" if each in numbers else each)


SESSIONS = {"new": _new, "known": _known}
if connection.vendor != "sqlite":
    SESSIONS["prepared"] = _prepared


class Log:
    """What is logged since it was last asked for."""

    def __init__(self) -> None:
        self._last = Change.objects.aggregate(last=models.Max("pk"))["last"] or 0

    def new(self) -> set[str] | str:
        """The keys, or that it may be any row."""
        entries = Change.objects.filter(pk__gt=self._last).order_by("pk")
        found = dict(entries.values_list("pk", "links"))
        self._last = max(found, default=self._last)
        if None in found.values():
            return WHOLE
        return {str(key) for links in found.values() for (key,) in (links or [])[1:]}


TABLE = "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer)"
GONE = "DROP TABLE made_rows"


@pytest.mark.parametrize("session", list(SESSIONS))
@pytest.mark.parametrize("name", list(HERE))
def test_writers_go_on_and_no_change_is_lost(name: str, session: str) -> None:
    altered = HERE[name]
    with (
        defined(TABLE, undone=GONE),
        tracked_view_of("made_rows") as view,
        SESSIONS[session]() as run,
    ):
        # given a view that is up to date, and a session
        refreshed(view)
        refreshed(view)
        # when somebody alters the table, and the session writes to it
        execute(*altered.there)
        found, log = {}, Log()
        for event, statement in _writes(altered.id).items():
            run(statement)
            found[event] = log.new()
        # then all is written, and logged by its key or as a change of any row
        assert found == {event: KEYS[event] if event in altered.keyed else WHOLE for event in found}
        # and once a view can read it again, the refresh is right, and keys are logged
        execute(*altered.back)
        refreshed(view)
        assert sorted(view.objects.values_list("ref", flat=True)) == [3, 9, 11]
        assert view.verify().equal
        log = Log()
        for run_now in (run, execute):
            run_now("INSERT INTO made_rows (id, n) VALUES (4, 4)")
            assert log.new() == ({"4"} if altered.back or altered.keyed == ALL else WHOLE)
            run_now("DELETE FROM made_rows WHERE id = 4")
            log.new()


@on_postgres
@pytest.mark.parametrize("name", [name for name, each in HERE.items() if not each.copies])
def test_a_transaction_that_sees_the_catalogs_as_they_were(name: str) -> None:
    altered = HERE[name]
    with (
        defined(TABLE, undone=GONE),
        tracked_view_of("made_rows") as view,
        _session() as run,
    ):
        # given a transaction whose view of the database is older than the alteration
        run(ROWS)
        refreshed(view)
        refreshed(view)
        run("BEGIN ISOLATION LEVEL REPEATABLE READ")
        run("SELECT 1 FROM matviews_change")
        execute(*altered.there)
        # when it writes, and its session goes on after it
        for statement in _writes(altered.id).values():
            run(statement)
        log = Log()
        run("COMMIT")
        assert log.new() in (WHOLE, KEYS["insert"] | KEYS["update"] | KEYS["delete"])
        for key, event in ((4, "insert"), (9, "delete")):
            run(_writes(altered.id)[event].replace("3", "4").replace("2", "9"))
            # then all is written and logged
            assert log.new() in (WHOLE, {str(key)})
        execute(*altered.back)
        refreshed(view)
        assert view.verify().equal


TEXTS: dict[str, dict[str, tuple[str, bool]]] = {
    "postgresql": {
        "wider": ("ALTER id TYPE varchar(40)", True),
        "of any length": ("ALTER id TYPE text", False),
        "padded": ("ALTER id TYPE char(9)", False),
        "another collation": ('ALTER id TYPE varchar(9) COLLATE "C"', True),
        "a domain": ("ALTER id TYPE made_domain", False),
    },
    "mysql": {
        "wider": ("MODIFY id varchar(40) NOT NULL", True),
        "of any length": ("DROP PRIMARY KEY, MODIFY id longtext NOT NULL", True),
        "padded": ("MODIFY id char(9) NOT NULL", True),
        "another collation": ("MODIFY id varchar(9) COLLATE utf8mb4_bin NOT NULL", True),
        "other letters": ("MODIFY id varchar(9) CHARACTER SET latin1 NOT NULL", True),
    },
    "sqlite": {},
}


@pytest.mark.parametrize("name", list(TEXTS[connection.vendor]) or ["nothing"])
@pytest.mark.only_on("postgres", "mariadb", reason="SQLite alters no column")
def test_a_key_that_is_another_kind_of_text(name: str) -> None:
    clause, keyed = TEXTS[connection.vendor][name]
    rows = model(
        "Rows",
        id=models.CharField(max_length=9, primary_key=True), n=models.IntegerField(null=True),
        meta={"db_table": "made_rows", "managed": False},
    )  # fmt: skip
    view = derived_view(
        lambda cls: rows.objects.values("n", ref=F("pk")),
        ref=models.CharField(max_length=9, unique=True), n=models.IntegerField(null=True),
    )  # fmt: skip
    with (
        defined(
            *(["CREATE DOMAIN made_domain AS varchar(9)"] * (connection.vendor == "postgresql")),
            "CREATE TABLE made_rows (id varchar(9) PRIMARY KEY, n integer)",
            undone=(GONE, *(["DROP DOMAIN made_domain"] * (connection.vendor == "postgresql"))),
        ),
        made(view),
        _known() as run,
    ):
        changes.install(engine.alias())
        try:
            # given a view that is up to date
            refreshed(view)
            refreshed(view)
            # when the column of its key is altered
            execute(f"ALTER TABLE made_rows {clause}")
            found, log = {}, Log()
            for event, statement in _writes("id").items():
                run(statement)
                found[event] = log.new()
            # then the keys are logged, if they are the same texts still
            assert found == {event: KEYS[event] if keyed else WHOLE for event in found}
            refreshed(view)
            assert {each.strip() for each in view.objects.values_list("ref", flat=True)} == {
                "3",
                "9",
                "11",
            }
        finally:
            changes.remove(engine.alias())


@pytest.mark.only_on("postgres", "mariadb", reason="SQLite alters no column")
def test_migrate_has_the_keys_logged_again() -> None:
    with defined(TABLE, undone=GONE), tracked_view_of("made_rows"):
        execute("INSERT INTO made_rows VALUES (1, 1)")
        mysql = connection.vendor == "mysql"
        execute(
            *alter(
                "RENAME COLUMN n TO k",
                "ADD n integer",
                "MODIFY id integer" if mysql else "ALTER id TYPE integer",
            )
        )

        changes.install(engine.alias())

        log = Log()
        execute(
            "INSERT INTO made_rows (id, n) VALUES (2, 2)", "UPDATE made_rows SET n = 3 WHERE id = 2"
        )
        assert log.new() == {"2"}
        execute("UPDATE made_rows SET k = 3")
        assert log.new() == set()


@on_sqlite
def test_sqlite_drops_no_column_that_a_trigger_names() -> None:
    with defined(TABLE, undone=GONE), tracked_view_of("made_rows") as view:
        execute("INSERT INTO made_rows VALUES (1, 1)")
        with pytest.raises(DatabaseError, match="no such column"):
            execute("ALTER TABLE made_rows DROP COLUMN n")

        execute("UPDATE made_rows SET n = 2")

        refreshed(view)
        assert view.verify().equal


@on_postgres
def test_a_dump_has_functions_before_the_tables_that_they_name() -> None:
    """What `pg_dump` writes is run from the top: functions, tables, rows, triggers."""
    with defined(TABLE, undone=GONE), tracked_view_of("made_rows") as view:
        execute("INSERT INTO made_rows VALUES (1, 1)")
        refreshed(view)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname LIKE 'matviews%'"
            )
            functions = [each for (each,) in cursor.fetchall()]
            cursor.execute(
                "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname LIKE 'matviews%'"
            )
            triggers = [each for (each,) in cursor.fetchall()]
            cursor.execute(
                "SELECT format('DROP FUNCTION %s CASCADE', oid::regprocedure) FROM pg_proc "
                "WHERE proname LIKE 'matviews%'"
            )
            drops = [each for (each,) in cursor.fetchall()]
        execute(*drops, GONE)

        execute(*functions, TABLE, "INSERT INTO made_rows VALUES (1, 1)", *triggers)

        log = Log()
        execute("INSERT INTO made_rows VALUES (2, 2)", "UPDATE made_rows SET n = 3 WHERE id = 1")
        execute("DELETE FROM made_rows WHERE id = 2")
        assert log.new() == {"1", "2"}
        refreshed(view)
        assert view.verify().equal
