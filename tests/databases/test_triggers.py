"""What a trigger logs never fails a statement, whatever that writes and the session is set to.

A log that takes no entry does fail it.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import pytest
from django.db import DatabaseError, connection, models
from django.db.models import Count

from matviews import changes, engine
from matviews.databases import triggers_of
from matviews.databases.trigger_spec import TriggerSpec
from matviews.models import Change
from tests.helpers.roles import as_role, database_role, quoted
from tests.helpers.tables import defined, derived_view, execute, made, model, refreshed

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

on_postgres = pytest.mark.only_on("postgres", reason="PostgreSQL's own")
on_mysql = pytest.mark.only_on("mariadb", reason="MariaDB's and MySQL's own")
on_sqlite = pytest.mark.only_on("sqlite", reason="SQLite's own")

Run = Callable[[str], Any]
# Kinds of columns, and two values of each that no text, or no number, of JSON is like.
KINDS: dict[str, dict[str, tuple[str, str]]] = {
    "postgresql": {
        "bigint": ("1", "-9223372036854775808"),
        "numeric": ("'NaN'", "1e130000"),
        "decimal(20, 5)": ("1.50", "'NaN'"),
        "float8": ("'NaN'", "'-Infinity'"),
        "real": ("0.1", "'-0'"),
        "text": ("E'\\\\ \\u0001 \" '' {}'", "chr(1114111)"),
        "char(9)": ("'a'", "''"),
        "json": ("'{\"a\": \"\\u0000\", \"a\": 1e999}'", "'\"\\ud800\"'"),
        "jsonb": ("'{\"a\": 1}'", "'[]'"),
        "xml": ("'<a b=\"1\"/>'", "'<a>x</a>'"),
        "bytea": ("'\\x00ff5c'", "''"),
        "money": ("1234567.89::money", "(-1)::money"),
        "date": ("'infinity'", "'0044-03-15 BC'"),
        "time with time zone": ("'24:00:00+15:59'", "'00:00-15:59'"),
        "timestamptz": ("'-infinity'", "'294276-12-31'"),
        "interval": ("'1 year -2 days 03:04:05.678901'", "'-178000000 years'"),
        "int[]": ("'{1,NULL}'", "'[0:1]={1,2}'"),
        "int4range": ("'empty'", "'(,)'"),
        "point": ("'(NaN,Infinity)'", "'(0,0)'"),
        "bit varying": ("B''", "B'101'"),
        "tsvector": ("'a:1'", "''"),
        "inet": ("'::1'", "'10.0.0.1/8'"),
        "made_pair": ("ROW(NULL, '\",\\')::made_pair", "ROW('a', 'b')::made_pair"),
    },
    "mysql": {
        "bigint unsigned": ("18446744073709551615", "0"),
        "decimal(65, 30)": ("1e34", "-1e-30"),
        "double": ("1e308", "-0e0"),
        "float": ("0.1", "3.4e38"),
        "varchar(99)": ("CONCAT('\"', CHAR(92), '''{}', CHAR(1))", "'\U0001f600'"),
        "varchar(50) CHARACTER SET latin1": ("_latin1 X'8081FF'", "'a  '"),
        "varchar(50) CHARACTER SET ucs2": ("_ucs2 X'D800'", "'x'"),
        "char(9) CHARACTER SET sjis": ("_sjis X'815F'", "'x'"),
        "varbinary(20)": ("X'00FF22'", "X'EDA080'"),
        "longblob": ("X'FFFE'", "''"),
        "json": ("'{\"a\": \"\\\\\\\\ud800\"}'", "'[]'"),
        "date": ("'0000-00-00'", "'2024-00-00'"),
        "datetime(6)": ("'0000-00-00'", "'9999-12-31 23:59:59.999999'"),
        "timestamp(6)": ("'2024-10-27 01:30:00'", "'1970-01-02 00:00:01'"),
        "time(6)": ("'-838:59:59.999999'", "'0:0:0'"),
        "year": ("0", "2155"),
        "bit(64)": ("b'1'", "0xffffffffffffffff"),
        "enum('', 'x')": ("''", "'x'"),
        "set('a', 'b')": ("'a,b'", "''"),
        "point": ("POINT(1, 2)", "POINT(0, 0)"),
    },
    "sqlite": {
        "": ("CAST(x'ff' AS TEXT)", "x'00ff'"),
        "integer": ("CAST(x'eda080' AS TEXT)", "9e999"),
        "text": ("'a' || char(0)", "char(1114111)"),
        "blob": ("zeroblob(20)", "CAST(x'c080' AS TEXT)"),
        "real": ("-9e999", "'x'"),
        "numeric": ("1e400", "-9223372036854775808"),
        "date": ("CAST(x'22ff' AS TEXT)", "''"),
    },
}  # fmt: skip
HERE = KINDS[connection.vendor]
COLUMNS = [f"c{number}" for number in range(len(HERE))]
PLAIN = ["SET sql_mode = 'NO_ENGINE_SUBSTITUTION'"] if connection.vendor == "mysql" else []

SETTINGS: dict[str, list[str]] = {
    "postgresql": [
        "standard_conforming_strings = off", "escape_string_warning = off", "backslash_quote = off",
        "bytea_output = escape", "DateStyle = 'SQL, DMY'", "DateStyle = German",
        "IntervalStyle = sql_standard", "IntervalStyle = iso_8601",
        "TimeZone = 'Asia/Kathmandu'", "xmlbinary = hex", "xmloption = document",
        "lc_monetary = 'C'", "lc_numeric = 'C'", "extra_float_digits = -15",
        "client_encoding = SQL_ASCII", "client_encoding = LATIN1", "row_security = off",
        "search_path = ''", "search_path = pg_temp",
        "transform_null_equals = on", "array_nulls = off", "quote_all_identifiers = on",
        "check_function_bodies = off", "plan_cache_mode = force_generic_plan",
        "plan_cache_mode = force_custom_plan",
        "jit_above_cost = 0", "work_mem = 64", "default_transaction_isolation = serializable",
        "temp_tablespaces = ''", "plpgsql.variable_conflict = error",
        "plpgsql.extra_errors = 'all'", "plpgsql.check_asserts = off", "enable_hashagg = off",
        "enable_sort = off", "geqo_threshold = 2", "lock_timeout = 1000", "track_functions = 'all'",
    ],
    "mysql": [
        *(f"sql_mode = '{mode}'" for mode in (
            "", "PIPES_AS_CONCAT", "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES",
            "PAD_CHAR_TO_FULL_LENGTH", "ORACLE",
            "ANSI,IGNORE_SPACE,HIGH_NOT_PRECEDENCE,NO_UNSIGNED_SUBTRACTION,REAL_AS_FLOAT",
            "MSSQL", "EMPTY_STRING_IS_NULL",
        )),
        "NAMES latin1", "NAMES utf8mb4 COLLATE utf8mb4_bin", "NAMES sjis",
        "character_set_connection = latin1",
        "collation_connection = utf8mb4_bin", "collation_connection = latin1_general_cs",
        "character_set_results = NULL", "character_set_client = binary",
        "time_zone = '+13:00'", "time_zone = 'SYSTEM'", "max_statement_time = 100",
        "group_concat_max_len = 4",
        "sql_select_limit = 1", "sql_select_limit = 0", "sql_auto_is_null = 1",
        "foreign_key_checks = 0", "unique_checks = 0", "check_constraint_checks = 0",
        "old_mode = ''", "max_sort_length = 64", "div_precision_increment = 0",
        "innodb_strict_mode = 0", "lc_time_names = 'ja_JP'", "tx_isolation = 'SERIALIZABLE'",
        "tx_isolation = 'READ-UNCOMMITTED'", "auto_increment_increment = 7",
        "optimizer_switch = 'default'", "last_insert_id = 5",
        "max_error_count = 0", "max_recursive_iterations = 0", "sql_notes = 0", "sql_warnings = 1",
    ],
    "sqlite": [
        "recursive_triggers = ON", "legacy_alter_table = ON", "foreign_keys = ON",
        "reverse_unordered_selects = ON", "case_sensitive_like = ON", "cell_size_check = ON",
        "ignore_check_constraints = ON", "temp_store = MEMORY", "cache_size = 1",
        "automatic_index = OFF",
        "read_uncommitted = ON", "secure_delete = ON", "writable_schema = ON",
    ],
}  # fmt: skip


@contextmanager
def session(*statements: str) -> Iterator[Run]:
    """A connection that is not Django's and commits by itself, as of a program without Django."""
    driver: Any = connection.Database  # type: ignore[attr-defined]
    settings = connection.get_connection_params()
    for each in ("cursor_factory", "context"):
        settings.pop(each, None)
    commits = {"isolation_level": None} if connection.vendor == "sqlite" else {"autocommit": True}
    with closing(driver.connect(**settings | commits)) as opened:

        def run(statement: str) -> Any:
            with closing(opened.cursor()) as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else None

        run.connection = opened  # type: ignore[attr-defined]
        for statement in (*PLAIN, *statements):
            run(statement)
        yield run


@contextmanager
def logging(*columns: str, kinds: dict[str, Any], links: tuple[str, ...]) -> Iterator[None]:
    """A table with columns of the kinds, whose changes are logged."""
    postgres = connection.vendor == "postgresql"
    pair = ["CREATE TYPE made_pair AS (a text, b text)"] if postgres else []
    names = ", ".join(f"{name} {kind}" for name, kind in zip(columns, kinds, strict=True))
    with defined(
        *PLAIN, *pair, f"CREATE TABLE made_rows (id integer, {names})",
        undone=("DROP TABLE made_rows", *(["DROP TYPE made_pair"] * bool(pair))),
    ):  # fmt: skip
        dialect, maintain = (
            triggers_of(engine.alias()),
            TriggerSpec(frozenset(columns), frozenset(links)),
        )
        dialect.execute(dialect.create("made_rows", maintain))
        try:
            yield
        finally:
            connection.close()
            dialect.execute(dialect.drop("made_rows", dialect.names("made_rows", maintain)))


ROWS, VALUES = (
    f"public.{name}" if connection.vendor == "postgresql" else name
    for name in ("made_rows", "made_values")
)
NAMES = ", ".join(COLUMNS)
OTHER = f"SELECT {NAMES} FROM {VALUES} WHERE id = 2"
# A statement changes all that is odd, one thing, nothing that counts, and everything.
WRITES = [
    f"INSERT INTO {ROWS} SELECT * FROM {VALUES} WHERE id = 1",
    f"INSERT INTO {ROWS} (id) VALUES (3)",
    f"UPDATE {ROWS} r JOIN {VALUES} v ON v.id = 2 "
    f"SET {', '.join(f'r.{c} = v.{c}' for c in COLUMNS)}"
    if connection.vendor == "mysql"
    else f"UPDATE {ROWS} SET ({NAMES}) = ({OTHER})",
    f"UPDATE {ROWS} SET {COLUMNS[0]} = NULL WHERE id = 1",
    f"UPDATE {ROWS} SET id = id + 10",
    f"DELETE FROM {ROWS} WHERE id = 11",
    f"DELETE FROM {ROWS}",
]


@contextmanager
def odd_rows(links: list[str]) -> Iterator[None]:
    """A table with a column of each kind, and another one with the values to write to it."""
    both = [", ".join(each[place] for each in HERE.values()) for place in (0, 1)]
    with (
        logging(*COLUMNS, kinds=HERE, links=tuple(links)),
        defined(
            "CREATE TABLE made_values AS SELECT * FROM made_rows WHERE 1 = 0"
            if connection.vendor != "sqlite"
            else f"CREATE TABLE made_values (id integer, "
            f"{', '.join(f'{c} {k}' for c, k in zip(COLUMNS, HERE, strict=True))})",
            *(f"INSERT INTO made_values VALUES ({n}, {each})" for n, each in enumerate(both, 1)),
            undone="DROP TABLE made_values",
        ),
    ):
        yield


def logged() -> list[Any]:
    """What has been logged, and forget it."""
    links = "CAST(links AS BLOB)" if connection.vendor == "sqlite" else "links"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {links} FROM matviews_change ORDER BY id")
        found = [links for (links,) in cursor.fetchall()]
    Change.objects.all().delete()
    if connection.vendor != "postgresql":
        return found
    return [[links[0], *sorted(links[1:], key=str)] for links in map(json.loads, found)]


LINKS = {"all": COLUMNS, "one": COLUMNS[:1], "none": []}


@pytest.mark.parametrize("links", list(LINKS))
def test_whatever_the_session_is_set_to(links: str) -> None:
    with odd_rows(LINKS[links]):
        with session() as run:
            for statement in WRITES:
                run(statement)
        usual = logged()
        assert usual
        set_to = "PRAGMA" if connection.vendor == "sqlite" else "SET"
        for setting in SETTINGS[connection.vendor]:
            with session(f"{set_to} {setting}") as run:
                for statement in WRITES:
                    run(statement)
            assert logged() == usual, setting


@on_sqlite
def test_a_text_that_python_cannot_read_holds_up_nobody() -> None:
    rows = model("Texts", label=models.CharField(max_length=9), meta={"db_table": "made_texts"})
    view = derived_view(
        lambda cls: rows.objects.values("label").annotate(n=Count("pk")),
        label=models.CharField(max_length=9, unique=True), n=models.IntegerField(),
    )  # fmt: skip
    with made(rows, view):
        assert changes.install(engine.alias()) == {}
        try:
            # given a row that somebody has written and deleted, whose text is not UTF-8
            execute("INSERT INTO made_texts (label) VALUES ('a')")
            refreshed(view)
            refreshed(view)
            execute("INSERT INTO made_texts (label) VALUES (CAST(x'ff' AS TEXT))")
            execute("UPDATE made_texts SET label = 'b' WHERE label <> 'a'")
            # when the view is refreshed
            refreshed(view)
            # then it is right, and so is what comes later
            assert view.verify().equal
            execute("INSERT INTO made_texts (label) VALUES ('c')")
            refreshed(view)
            assert sorted(view.objects.values_list("label", flat=True)) == ["a", "b", "c"]
        finally:
            changes.remove(engine.alias())


VENDOR = connection.vendor


@contextmanager
def no_right() -> Iterator[None]:
    """The role whose triggers they are may insert into the log no more."""
    log = "matviews_change"
    grant = f"GRANT INSERT ON {log} TO {{}}"
    if VENDOR == "postgresql":
        owners = (
            grant,
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {}",
            "GRANT ALL ON made_rows TO {}",
        )
    else:
        owners = (
            grant,
            "GRANT TRIGGER, SELECT ON made_rows TO {}",
            "GRANT SELECT ON matviews_logsecret TO {}",
        )
    with database_role("owner", *owners) as role:
        if VENDOR == "postgresql":
            execute(
                f"GRANT USAGE, CREATE ON SCHEMA public TO {role}",
                *(f"ALTER FUNCTION {name} OWNER TO {role}" for name in functions()),
            )
        else:
            dialect, maintain = (
                triggers_of(engine.alias()),
                TriggerSpec(frozenset({"c0"}), frozenset({"c0"})),
            )
            dialect.execute(dialect.drop("made_rows", dialect.names("made_rows", maintain)))
            with as_role(role):
                dialect.execute(dialect.create("made_rows", maintain))
        execute(
            "INSERT INTO made_rows VALUES (1, 1)", f"REVOKE INSERT ON {log} FROM {quoted(role)}"
        )
        yield


def functions() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'matviews%'")
        return [name for (name,) in cursor.fetchall()]


@contextmanager
def locked() -> Iterator[None]:
    """Somebody has locked the log, and the writer waits no longer than it wants."""
    postgres = VENDOR == "postgresql"
    lock = "LOCK TABLE matviews_change" if postgres else "LOCK TABLES matviews_change WRITE"
    with session(*["BEGIN"] * postgres, lock):
        execute(f"SET {'lock_timeout = 200' if postgres else 'lock_wait_timeout = 1'}")
        yield


TABLE = connection.ops.quote_name("table")
BROKEN: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "no log": lambda: defined(
        *["PRAGMA legacy_alter_table = ON"] * (VENDOR == "sqlite"),  # or the triggers would follow
        "ALTER TABLE matviews_change RENAME TO made_elsewhere",
        undone="ALTER TABLE made_elsewhere RENAME TO matviews_change",
    ),
    "no column": lambda: defined(  # none that MariaDB checks: it may look for the old name then
        f"ALTER TABLE matviews_change RENAME COLUMN {TABLE} TO made_table",
        undone=f"ALTER TABLE matviews_change RENAME COLUMN made_table TO {TABLE}",
    ),
    "no right": no_right,
    "locked": locked,
}  # fmt: skip
HERE_BROKEN = ["no log"] if VENDOR == "sqlite" else list(BROKEN)


@pytest.mark.parametrize("what", HERE_BROKEN)
def test_a_log_that_takes_no_entry_fails_the_statement(what: str) -> None:
    with logging("c0", kinds={"integer": ()}, links=("c0",)):
        execute("INSERT INTO made_rows VALUES (1, 1)")
        # given a log that cannot be written to
        with BROKEN[what]():
            for statement in (
                "INSERT INTO made_rows VALUES (2, 2)",
                "UPDATE made_rows SET c0 = 3",
                "DELETE FROM made_rows",
            ):
                with pytest.raises(DatabaseError):
                    execute(statement)
        # then nothing was written that is not logged
        with connection.cursor() as cursor:
            cursor.execute("SELECT DISTINCT id, c0 FROM made_rows")
            assert list(cursor.fetchall()) == [(1, 1)]
