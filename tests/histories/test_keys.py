"""Random keys: fields, spellings, types, collations. Whatever the history, the view is the source.

What is written by SQL is spelt as no field would spell it; columns may have another type than their
model says. A view that does not trust its keys says so in advance, by W018, and by the reason of
each refresh.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import IntegrityError, connection, models, transaction

from matviews.engine.tracking import resolve as resolve_module
from tests.databases.test_keys import ColorField, LowerEmail, Phone, UpperText
from tests.helpers import tables
from tests.helpers.keyed_views import Kept
from tests.histories.conftest import RunRandom

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

VENDOR = connection.vendor


@dataclass(frozen=True)
class Sort:
    """A sort of keys.

    Attributes:
        field: makes the field of the source and of the view.
        spellings: what SQL writes.
        alter: statements that give columns another type.
        full: whether each refresh looks at all keys, as the view says in advance; None: if it must.
        before: a statement that makes what the type needs.
    """

    field: Callable[..., Any]
    spellings: tuple[Any, ...]
    alter: tuple[str, ...] = ()
    full: bool | None = False
    before: str = ""


def text(**more: Any) -> Any:
    return models.CharField(max_length=20, **more)


def folding(**more: Any) -> Any:
    collation = {"mysql": "utf8mb4_general_ci", "sqlite": "NOCASE"}.get(VENDOR, "C")
    return models.CharField(max_length=20, db_collation=collation, **more)


def collated(collation: str) -> Callable[..., Any]:
    return lambda **more: models.CharField(max_length=20, db_collation=collation, **more)


def typed(name: str, base: Any = models.TextField) -> Callable[..., Any]:
    """Makes fields whose columns are of a type that Django has no field for."""

    class Typed(base):  # type: ignore[misc]
        def db_type(self, connection: Any) -> str:
            return name

    return Typed


WORDS = ("a", "A", "a b", "B", "b", "ä", "\U0001f600", "'\"\\{},%s", "10", "9", "")
DATES: dict[str, tuple[str, ...]] = {
    "postgresql": ("-infinity", "0044-03-15 BC", "2024-01-31", "12024-01-31", "infinity"),
    "mysql": ("0000-00-00", "2024-00-00", "2024-01-31", "9999-12-31"),
    "sqlite": ("0000-00-00", "2024-01-31", "12024-01-31", "never", "2024"),
}
MOMENTS: dict[str, tuple[str, ...]] = {
    "postgresql": (
        "-infinity",
        "0044-03-15 12:00 BC",
        "2024-01-31 01:02:03.000004+05:30",
        "infinity",
    ),
    "mysql": ("0000-00-00", "2024-01-31 01:02:03.000004", "9999-12-31 23:59:59.999999"),
    "sqlite": ("2024-01-31 01:02:03.000004", "2024-01-31 01:02:03", "never"),
}


def made_type(name: str, what: str) -> str:
    """On PostgreSQL: a statement that makes a type where it is not there."""
    return f"DO $$ BEGIN IF to_regtype('{name}') IS NULL THEN CREATE {what}; END IF; END $$"


def collation_of(name: str, level: int) -> str:
    """On PostgreSQL: makes a collation in which texts with unlike letters are equal."""
    return (
        f"CREATE COLLATION IF NOT EXISTS {name} "
        f"(provider = icu, locale = 'und-u-ks-level{level}', deterministic = false)"
    )


SORTS: dict[str, Sort] = {
    "text": Sort(text, WORDS),
    "folding": Sort(folding, WORDS),
    "e-mail": Sort(LowerEmail, ("Ann@x.org", "bob@x.org", "EVE@X.ORG", "z@x.org")),
    "phone": Sort(lambda **more: Phone(max_length=20, **more), ("555 1", "5552", "555-3", "(5)4")),
    "upper": Sort(lambda **more: UpperText(max_length=20, **more), ("a1", "B2", "c3", "D4", "e")),
    "enum": Sort(lambda **more: ColorField(max_length=20, **more), ("red", "blue", "mauve", "tan")),
    "number": Sort(
        models.BigIntegerField,
        (-(2**63), -1, 0, 1, 10, 9, 2**63 - 1, *(("abc", 1.5) if VENDOR == "sqlite" else ())),
    ),
    "decimal": Sort(
        lambda **more: models.DecimalField(max_digits=20, decimal_places=2, **more),
        ("12345678901234567.12", "12345678901234567.13", "-1.50", "0")
        if VENDOR != "sqlite"
        else ("1.25", "-1.5", "0", "7"),
        full=True,
    ),
    "uuid": Sort(
        models.UUIDField,
        tuple(
            f"{n}0000000-0000-0000-0000-00000000000{n}".replace("-", "-" * (VENDOR == "postgresql"))
            for n in range(1, 5)
        ),
    ),
    "date": Sort(models.DateField, DATES[VENDOR]),
    "moment": Sort(models.DateTimeField, MOMENTS[VENDOR], full=True),
    "boolean": Sort(models.BooleanField, (True, False), full=True),
}
if VENDOR == "postgresql":
    SORTS |= {
        "float": Sort(models.FloatField, (0.1, 1e300, -5.0, 1 / 3), full=True),
        "duration": Sort(
            models.DurationField, ("1 day", "-25:00", "1 mon 1 us", "25:00"), full=True
        ),
        "address": Sort(models.GenericIPAddressField, ("10.0.0.1", "::1", "9.9.9.9"), full=True),
        "char": Sort(
            text, ("a", "a b", "B", "ab"), ("ALTER TABLE ROWS ALTER k TYPE char(20)",), True
        ),
        "other collation": Sort(
            text, WORDS, ('ALTER TABLE ROWS ALTER k TYPE varchar(20) COLLATE "POSIX"',), True
        ),
        "collation of the source alone": Sort(
            text, WORDS, ('ALTER TABLE ROWS ALTER k TYPE varchar(20) COLLATE "und-x-icu"',), True
        ),
        "ICU": Sort(collated("und-x-icu"), WORDS),
        "without case": Sort(collated("made_ci"), WORDS, before=collation_of("made_ci", 2)),
        "without accents": Sort(collated("made_ai"), WORDS, before=collation_of("made_ai", 1)),
        "citext": Sort(typed("citext"), WORDS, before="CREATE EXTENSION IF NOT EXISTS citext"),
        "padded": Sort(typed("bpchar(8)"), ("a", "a b", "B", " a", "10", "9")),
        "enum type": Sort(
            typed("made_mood"), ("sad", "Ok", "happy"), full=True,
            before=made_type("made_mood", "TYPE made_mood AS ENUM ('sad', 'Ok', 'happy')"),
        ),
        "domain of texts": Sort(
            typed("made_word"), WORDS, full=True,
            before=made_type("made_word", "DOMAIN made_word AS text"),
        ),
        "domain of numbers": Sort(
            typed("made_number", models.BigIntegerField), (1, 9, 10, -1), full=True,
            before=made_type("made_number", "DOMAIN made_number AS bigint"),
        ),
        "inet": Sort(typed("inet"), ("10.0.0.1", "10.0.0.1/8", "::1", "9.9.9.9")),
        "cidr": Sort(typed("cidr"), ("10.0.0.0/8", "10.0.0.0/16", "9.0.0.0/8")),
        "macaddr": Sort(typed("macaddr"), ("08:00:2b:01:02:03", "08002b-010204")),
        "bytea": Sort(typed("bytea"), ("\\x00ff", "abc", "\\x"), full=True),
        "numeric": Sort(
            typed("numeric", models.DecimalField), ("1.0", "1.00", "NaN", "-1", "10"), full=True
        ),
        "range": Sort(typed("int4range"), ("[1,2)", "[1,1]", "empty", "(,5)"), full=True),
        "array": Sort(typed("text[]"), ("{}", "{a,B}", "{NULL}"), full=True),
        "money": Sort(typed("money"), ("1.50", "-2"), full=True),
    }  # fmt: skip
if VENDOR == "mysql":
    SORTS |= {
        "float": Sort(models.FloatField, (0.1, 1e300, -5.0), full=True),
        "latin1": Sort(
            text, ("a", "B", "c", "ö", "d "),
            ("ALTER TABLE ROWS MODIFY k varchar(20) CHARACTER SET latin1 NOT NULL",), True,
        ),
        "latin1 everywhere": Sort(
            text, ("a", "B", "A", "ö", "d ", "d"),
            (
                "ALTER TABLE ROWS MODIFY k varchar(20) CHARACTER SET latin1 NOT NULL",
                "ALTER TABLE VIEW MODIFY ref varchar(20) CHARACTER SET latin1 NOT NULL",
            ),
        ),
        "utf8mb3 everywhere": Sort(
            text, ("a", "B", "A", "ö", "d ", "d", "\u20ac"),
            (
                "ALTER TABLE ROWS MODIFY k varchar(20) CHARACTER SET utf8mb3 NOT NULL",
                "ALTER TABLE VIEW MODIFY ref varchar(20) CHARACTER SET utf8mb3 NOT NULL",
            ),
        ),
        "pad space": Sort(collated("utf8mb4_general_ci"), ("a", "a ", "A", " a", "b ", "b", "")),
        "no pad": Sort(collated("utf8mb4_nopad_bin"), ("a", "a ", "A", " a", "b ", "b", "")),
        "unsigned": Sort(
            typed("bigint unsigned", models.BigIntegerField), (0, 9, 10, 2**63, 2**64 - 1)
        ),
        "single": Sort(typed("float", models.FloatField), (0.1, 1e30, -5.0), full=True),
        "bit": Sort(typed("bit(8)", models.BigIntegerField), (0, 1, 255), full=True),
        "enum type": Sort(typed("enum('sad','Ok','happy')"), ("sad", "Ok", "happy"), full=True),
        "set": Sort(typed("set('a','B','c')"), ("a", "a,B", "c", ""), full=True),
        "year": Sort(typed("year", models.IntegerField), (2024, 1999, 0), full=True),
        "time": Sort(
            typed("time(6)", models.TimeField),
            ("100:00:00", "99:00:00.5", "-838:59:59", "00:00:00"), full=True,
        ),
        "timestamp": Sort(
            typed("timestamp(6)", models.DateTimeField),
            ("2024-01-31 01:02:03.000004", "2024-07-31 01:02:03"), full=True,
        ),
        "binary": Sort(typed("binary(4)"), (b"ab", b"AB", b"a\x00", b"\xff"), full=True),
        "varbinary": Sort(typed("varbinary(20)"), (b"ab", b"AB", b"ab ", b"\xff"), full=True),
    }  # fmt: skip
if VENDOR == "sqlite":
    MIXED = (
        1,
        1.0,
        "1",
        b"1",
        1.5,
        -0.0,
        "a",
        "A",
        b"a",
        b"\xff",
        "a\0b",
        2**62,
        str(2**70),
        1e300,
    )
    SORTS |= {
        "text and others": Sort(text, MIXED, full=None),
        "numeric and others": Sort(typed("numeric"), MIXED, full=None),
        "number and others": Sort(models.BigIntegerField, MIXED, full=None),
        "without a type": Sort(typed(""), MIXED, full=None),
        "strict": Sort(
            text, WORDS,
            (
                "DROP TABLE ROWS",
                (
                    "CREATE TABLE ROWS "
                    "(id integer PRIMARY KEY, k text NOT NULL UNIQUE, n integer) STRICT"
                ),
            ),
        ),
        "without rowid": Sort(
            text, WORDS,
            (
                "DROP TABLE ROWS",
                (
                    "CREATE TABLE ROWS (id integer PRIMARY KEY DEFAULT (abs(random())), "
                    "k varchar(20) NOT NULL UNIQUE, n integer) WITHOUT ROWID"
                ),
            ),
        ),
    }  # fmt: skip
# What a writer's session may have set.
SESSIONS = {
    "postgresql": {
        "DateStyle": ("'SQL, DMY'", "'ISO, MDY'"),
        "IntervalStyle": ("'iso_8601'", "'postgres'"),
        "TimeZone": ("'Asia/Kolkata'", "'UTC'"),
        "bytea_output": ("'escape'", "'hex'"),
        "extra_float_digits": ("-10", "1"),
        "lc_monetary": ("'C.utf8'", "'C'"),
        "standard_conforming_strings": ("off", "on"),
    },
    "mysql": {
        "time_zone": ("'+05:30'", "'+00:00'"),
        "collation_connection": ("'utf8mb4_bin'", "'utf8mb4_general_ci'"),
    },
}.get(VENDOR, {})


class History:
    """A source and its view, and what happens to them.

    Args:
        sort: of its keys.
        seed: what chooses.
    """

    def __init__(self, sort: Sort, seed: int) -> None:
        self.sort, self.chance = sort, random.Random(seed)
        self.grouped = self.chance.random() < 0.5
        self.kept = Kept(
            sort.field,
            grouped=self.grouped,
            indexed=self.chance.random() < 0.7,
        )

    def alter(self) -> None:
        if self.sort.alter:
            if VENDOR == "postgresql":
                for each in (self.kept.Row, self.kept.View):
                    with connection.cursor() as cursor:
                        found = connection.introspection.get_constraints(
                            cursor, each._meta.db_table
                        )
                    tables.execute(*(f'DROP INDEX "{n}"' for n in found if n.endswith("_like")))
            for statement in self.sort.alter:
                self.kept.sql(statement)

    def key(self) -> Any:
        return self.chance.choice(self.sort.spellings)

    def write(self) -> None:
        """What somebody commits, if no row has the key yet where one alone may have it."""
        kind, n = self.chance.random(), self.chance.randrange(100)
        table = self.kept.Row._meta.db_table
        ignore = {"mysql": "INSERT IGNORE INTO", "sqlite": "INSERT OR IGNORE INTO"}
        if kind < 0.5:
            end = " ON CONFLICT DO NOTHING" if VENDOR == "postgresql" else ""
            into = ignore.get(VENDOR, "INSERT INTO")
            self.kept.sql(f"{into} {table} (k, n) VALUES (%s, %s){end}", self.key(), n)
        elif kind < 0.65:
            self.kept.sql("UPDATE ROWS SET n = %s WHERE k = %s", n, self.key())
        elif kind < 0.8:
            self.kept.sql("DELETE FROM ROWS WHERE k = %s", self.key())
        elif kind < 0.9:
            self.rename()
        else:
            self.kept.Row._base_manager.filter(n__lt=n).update(n=n)

    def rename(self) -> None:
        try:
            with transaction.atomic():
                self.kept.sql("UPDATE ROWS SET k = %s WHERE k = %s", self.key(), self.key())
        except IntegrityError as error:  # a row has that key
            if "matviews" in str(error):
                raise

    def set_session(self, place: int) -> None:
        tables.execute(*(f"SET {name} = {values[place]}" for name, values in SESSIONS.items()))

    def step(self) -> None:
        if self.chance.random() < 0.6:
            strange = self.chance.random() < 0.3
            if strange:
                self.set_session(0)
            try:
                self.write()
            finally:
                if strange:
                    self.set_session(1)
            return
        if self.chance.random() < 0.1:
            self.kept.View.mark_dirty()
        self.refresh()

    def refresh(self) -> None:
        reasons = self.kept.refresh(batch_size=self.chance.choice([1, 2, 50]))
        if self.sort.full:
            assert "" not in reasons
        elif self.sort.full is False:
            assert not any("in the database" in each for each in reasons)


def check(name: str, seed: int) -> None:
    """One history, which ends with a refresh."""
    if before := SORTS[name].before:
        tables.execute(before)
    history = History(SORTS[name], seed)
    with history.kept.tracked(history.alter):
        for _step in range(14):
            history.step()
        history.refresh()
        found = history.kept.View.verify()
        assert found.equal, f"{name} {seed}: {found.examples}"
        source = sum(row.n for row in history.kept.Row._base_manager.only("n").defer("k"))
        rows = history.kept.exact_rows
        assert sum(n or 0 for _key, n in rows) == source, f"{name} {seed}"
        if not history.grouped:
            assert rows == history.kept.exact_source_rows, f"{name} {seed}"


def check_many(name: str, count: int) -> None:
    for seed in range(count):
        with tables.alone():
            check(name, seed)


@pytest.mark.usefixtures("alone")
def test_whatever_the_keys_the_view_follows(run_random: RunRandom) -> None:
    sorts = itertools.cycle(random.sample(list(SORTS), len(SORTS)))

    def run(count: int) -> None:
        for name in itertools.islice(sorts, count):
            with tables.alone():
                check(name, random.randrange(10**9))

    run_random(run, long=12 * len(SORTS))


@pytest.mark.finds_fault
@pytest.mark.usefixtures("alone")
def test_the_histories_find_keys_that_python_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = resolve_module.resolve

    def reversed_keys(*arguments: Any) -> Any:
        found = resolve(*arguments)
        if found.keys is None:
            return found
        return found._replace(keys={(key[0][::-1],) for key in found.keys})

    monkeypatch.setattr("matviews.engine.tracking.dirty_keys.resolve", reversed_keys)

    with pytest.raises(AssertionError, match="e-mail"):
        check_many("e-mail", 50)
