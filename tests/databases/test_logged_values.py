"""An entry of the log holds what the row holds, to the last bit, or no value.

That is so whatever the writer's session says.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connection

from matviews import engine
from matviews.databases import triggers_of
from matviews.databases.trigger_spec import TriggerSpec
from matviews.models import Change
from tests.helpers.tables import defined, execute

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

TEXTS = ["''", "' '", "'NULL'", "'ä\"{}[],:'", "'\U0001f600'", "'\x01\x1f\x7f'", "'ﬁ\u2028'"]
WHOLE = ["0", "-1", "9223372036854775807"]
TYPES: dict[str, dict[str, list[str]]] = {
    "postgresql": {
        "bigint": [*WHOLE, "-9223372036854775808"],
        "text": [*TEXTS, "E'\\\\ \\n'"],
        "char(8)": ["'a'", "'a b'"],
        "numeric": ["1.0", "1.00", "'NaN'", "1e-30", "1e100"],
        "date": ["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'20001-01-02'", "'2024-02-03'"],
        "timestamp": ["'infinity'", "'0044-03-15 01:02:03.000001 BC'"],
        "timestamptz": ["'infinity'", "'2024-10-27 02:30:00.123456+02'", "'0044-03-15 00:00 BC'"],
        "interval": ["'1 year -2 days 03:04:05.678901'"],
        "uuid": ["'00000000-0000-0000-0000-0000000000ff'"],
        "bytea": ["'\\x00ff5c'"],
        "double precision": ["0.1::float8 + 0.2", "'-0'", "1e-310"],
        "boolean": ["true", "false"],
    },
    "mysql": {
        "bigint": WHOLE,
        "bigint unsigned": ["18446744073709551615"],
        "int(6) zerofill": ["7"],
        "varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin": [*TEXTS, "'\\\\ \\n'", "'a  '"],
        "varchar(20) CHARACTER SET latin1": ["_latin1 X'8081E4FF'"],
        "char(8)": ["'a'", "'a b'"],
        "decimal(20,5)": ["1.5", "-0.00001"],
        "date": ["'2024-02-03'", "'0000-00-00'", "'2024-00-00'", "'9999-12-31'"],
        "datetime(6)": ["'2024-10-27 02:30:00.123456'", "'0000-00-00'"],
        "time(6)": ["'-838:59:59.000001'"],
        "year": ["1901"],
        "enum('x', 'y')": ["'y'"],
    },
    "sqlite": {
        "": [*WHOLE, *TEXTS, "'5'"],
        "varchar(5)": ["5", "'5'", "'longer than that'"],
        "integer": ["'x'", "'5'", "5"],
    },
}
# Of these no value is written: it would not come back as it was.
INEXACT: dict[str, dict[str, list[str]]] = {
    "postgresql": {},
    "mysql": {
        "timestamp": ["'2024-10-27 02:30:00'"],
        "varbinary(10)": ["X'00FF'"],
        "bit(8)": ["b'101'"],
        "double": ["0.1e0 + 0.2e0"],
        "varchar(9) CHARACTER SET ucs2": ["'a'"],
    },
    "sqlite": {
        "": ["0.5", "9e999", "-9e999", "x'00ff'", "'a' || char(0)"],
        "integer": ["0.5", "x'05'"],
    },
}
SESSIONS = {
    "postgresql": [
        "SET DateStyle = 'SQL, DMY'", "SET IntervalStyle = 'sql_standard'",
        "SET TimeZone = 'Asia/Tokyo'",
        "SET bytea_output = 'escape'", "SET extra_float_digits = -15",
    ],
    "mysql": ["SET time_zone = '+09:00', sql_mode = 'PAD_CHAR_TO_FULL_LENGTH,ANSI_QUOTES'"],
    "sqlite": [],
}  # fmt: skip
COPIED = {
    "postgresql": "SELECT (links->1->>0)::{} FROM matviews_change",
    "mysql": "SELECT JSON_VALUE(links, '$[1][0]') FROM matviews_change",
    "sqlite": "SELECT json_extract(links, '$[1][0]') FROM matviews_change",
}
SAME = {
    "postgresql": "concat(a.id) = concat(b.id)",
    "mysql": "CAST(a.id AS BINARY) = CAST(b.id AS BINARY)",
    "sqlite": "a.id IS b.id AND typeof(a.id) = typeof(b.id) AND hex(a.id) = hex(b.id)",
}


def cases(types: dict[str, dict[str, list[str]]]) -> list[tuple[str, str]]:
    return [(kind, value) for kind, each in types[connection.vendor].items() for value in each]


@contextmanager
def logging(kind: str) -> Iterator[None]:
    """A table whose column `id` is of some type, and is logged; and another such table."""
    columns = f"(id {kind})"
    execute(
        *(["SET sql_mode = 'PAD_CHAR_TO_FULL_LENGTH'"] if connection.vendor == "mysql" else []),
    )
    with defined(
        f"CREATE TABLE made_rows {columns}", f"CREATE TABLE made_copy {columns}",
        undone=("DROP TABLE made_rows", "DROP TABLE made_copy"),
    ):  # fmt: skip
        dialect, maintain = (
            triggers_of(engine.alias()),
            TriggerSpec(frozenset({"id"}), frozenset({"id"})),
        )
        dialect.execute(dialect.create("made_rows", maintain))
        try:
            yield
        finally:
            connection.close()
            dialect.execute(dialect.drop("made_rows", dialect.names("made_rows", maintain)))


@pytest.mark.parametrize(("kind", "value"), cases(TYPES))
def test_a_value_comes_back_as_it_was(kind: str, value: str) -> None:
    with logging(kind):
        execute(*SESSIONS[connection.vendor], f"INSERT INTO made_rows VALUES ({value})")
        connection.close()
        plain = ["SET sql_mode = ''"] if connection.vendor == "mysql" else []
        execute(*plain, "INSERT INTO made_copy " + COPIED[connection.vendor].format(kind))

        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT COUNT(*) FROM made_rows a, made_copy b WHERE {SAME[connection.vendor]}"
            )
            assert cursor.fetchone() == (1,), list(Change.objects.values_list("links"))


@pytest.mark.only_on("sqlite", "mariadb", reason="on PostgreSQL each type has a text")
@pytest.mark.parametrize(("kind", "value"), cases(INEXACT) or [("", "")])
def test_a_value_that_would_not_is_not_logged(kind: str, value: str) -> None:
    with logging(kind):
        execute(f"INSERT INTO made_rows VALUES ({value})")

        assert list(Change.objects.values_list("links", flat=True)) == [None]


@pytest.mark.only_on("postgres", reason="PostgreSQL's own")
@pytest.mark.parametrize("name", ["found", "new", "old", "tg_op", "n", "value"])
def test_a_column_may_be_named_like_a_variable(name: str) -> None:
    with defined(f'CREATE TABLE made_rows ("{name}" int, id int)', undone="DROP TABLE made_rows"):
        dialect = triggers_of(engine.alias())
        maintain = TriggerSpec(frozenset({name, "id"}), frozenset({name}))
        dialect.execute(dialect.create("made_rows", maintain))
        execute(
            "INSERT INTO made_rows VALUES (1, 1)",
            "UPDATE made_rows SET id = 2",
            "DELETE FROM made_rows",
        )

        assert list(Change.objects.values_list("links", flat=True)) == [[[name], ["1"]]] * 3
        dialect.execute(dialect.drop("made_rows", dialect.names("made_rows", maintain)))


@pytest.mark.only_on("sqlite", reason="SQLite's own")
@pytest.mark.parametrize("letter", ["x", '"', "\x01", "ä"])
def test_a_lower_limit_of_the_length_of_a_value(letter: str) -> None:
    """Six letters of JSON may stand for one."""
    with logging(""):
        connection.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 70_000)
        for length in (1_000, 4_999, 10_000, 10_001, 30_000):
            execute(f"INSERT INTO made_rows VALUES ('{letter * length}')")
            execute("UPDATE made_rows SET id = id || 'x'", "DELETE FROM made_rows")
