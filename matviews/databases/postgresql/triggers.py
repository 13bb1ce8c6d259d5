"""PostgreSQL: one trigger per statement, which sees all the rows that the statement has changed.

The functions run with the rights of their owner, and are fired by whoever writes to a table. So nothing
that another role can define may run in them: names are looked up in `pg_catalog` first, no value is
cast (also `to_jsonb` and `jsonb_build_array` look casts up), and `concat` asks a type for its text,
which only a superuser can define. Nor may any role attach them to a table of its own.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import ClassVar, NamedTuple

from django.db import DatabaseError

from ...sqlstate import sqlstate
from ..base.triggers import (
    CHANGE_LOG,
    LOG_SECRET,
    MAX_DISTINCT_CHANGES,
    MAX_LINK_BYTES,
    MISSING,
    NOT_ORDINARY,
    OURS,
    TOO_LONG,
    TOO_MANY,
    Triggers,
    digest,
    json_of,
)
from ..trigger_spec import TriggerSpec
from .table_names import MAX_NAME_BYTES, cut, identifiers, regclass

__all__ = ["PostgreSQLTriggers"]

BEFORE, AFTER = "matviews_before", "matviews_after"
MAX_LINKS_BYTES = 16_000_000  # bytes of all links of a statement; JSON ends at 255 MB
TOO_LARGE = f"what leads from the changed rows to keys is more than {MAX_LINKS_BYTES:,} bytes"
TOO_LONG_NAME = f"its name is longer than {MAX_NAME_BYTES} bytes"
SUPPRESSED = "matviews.suppressed"
WAIT = 500  # milliseconds for the locks of a transaction that makes or removes triggers
IDLE = 1_000  # milliseconds that it may stand still
HELD = {"55P03", "40P01", "25P03"}  # lock timeout, deadlock, stood still
UNLOGGED = "it is unlogged: a crash empties it, and tells nobody"
FAMILY = "it is partitioned, or inherits from another table"
# Of the two functions of a trigger, the one that it calls and the one that looks at the columns: the
# arguments, by the numbers of their types.
ARGUMENTS = {"": "", "2205": "regclass"}
TRANSITIONS = {
    "insert": f"REFERENCING NEW TABLE AS {AFTER}",
    "update": f"REFERENCING OLD TABLE AS {BEFORE} NEW TABLE AS {AFTER}",
    "delete": f"REFERENCING OLD TABLE AS {BEFORE}",
    "truncate": "",
}
# Types of which two values that are equal are the same, and the settings on which their texts depend.
EXACT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("int2", "int4", "int8", "bool", "uuid", "time"), ()),
    "bytea": ("bytea_output",),
    **dict.fromkeys(("date", "timestamp"), ("DateStyle",)),
    "timestamptz": ("DateStyle", "TimeZone"),
}
INEXACT_TYPES = ("text", "varchar", "bpchar", "numeric")  # whose texts depend on nothing
SETTINGS = {
    "DateStyle": "'ISO, YMD'",
    "IntervalStyle": "'postgres'",
    "TimeZone": "'UTC'",
    "bytea_output": "'hex'",
    "extra_float_digits": "1",
    "lc_monetary": "'C'",
}
# Statements on the catalogs are sent as whoever migrates: no function or operator of another schema is to
# suit better than the one that is meant.
LIKE = "OPERATOR(pg_catalog.~~)"
LOGS = "pg_catalog.has_table_privilege(p.proowner, pg_catalog.to_regclass(%s), 'INSERT')"


class Place(NamedTuple):
    """Where a table is, by the search path of this connection.

    Attributes:
        schema: the name of its schema.
        table: its own name.
        types: its columns with the names of their types, "" for those that others have made.
    """

    schema: str
    table: str
    types: dict[str, str]


class PostgreSQLTriggers(Triggers):
    """Which rows are the same does not matter: no source can tell rows apart that are alike in all
    that it reads.
    """

    events: ClassVar[tuple[str, ...]] = ("insert", "update", "delete", "truncate")
    # xmin is another one, too, when a trigger was switched off and on again.
    made: ClassVar[str] = "pg_catalog.concat(t.tgname, ':', t.oid, '.', t.xmin)"

    def __init__(self, using: str) -> None:
        super().__init__(using)
        self._places: dict[str, Place] = {}

    def present(self) -> dict[str, dict[str, str]]:
        """Those that call our functions, in whatever schema their table is.

        A function of a role that may not write the log is not ours, whatever its name is. Nor is a trigger
        of our name that calls another function than that of its name.
        """
        found: dict[str, dict[str, str]] = {}
        with self.connection.cursor() as cursor:
            cursor.execute(
                f"SELECT n.nspname, c.relname, pg_catalog.pg_table_is_visible(c.oid), t.tgname, {self.made} "
                "FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
                "JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_proc p ON p.oid = t.tgfoid "
                "JOIN pg_namespace s ON s.oid = p.pronamespace "
                f"WHERE s.nspname = %s AND t.tgname {LIKE} %s AND t.tgenabled IN ('O', 'A') AND {LOGS} "
                "AND p.proname = t.tgname AND p.pronargs = 0",
                [self._schema, *self.ours, self.log],
            )
            for schema, table, visible, name, made in cursor.fetchall():
                if OURS.fullmatch(name):
                    spelled = _spelled(schema, table, visible, name)
                    found.setdefault(spelled, {})[name] = made
        return found

    def present_of(self, table: str) -> str:
        """To plan the whole catalog would take longer than all else of a query."""
        return (
            f"(SELECT pg_catalog.string_agg({self.made}, ' ') FROM pg_trigger t WHERE t.tgrelid = "
            f"(SELECT pg_catalog.to_regclass(CASE WHEN {table} {LIKE} '\"%%\"' THEN {table}::pg_catalog.text "
            f"ELSE pg_catalog.concat('\"', {table}, '\"') END)::pg_catalog.oid) "
            f"AND t.tgname {LIKE} %s AND t.tgenabled IN ('O', 'A'))"
        )

    def statements(self, name: str, event: str, table: str, spec: TriggerSpec) -> Iterator[str]:
        """The function writes the log with the rights of its owner, for
        those who may write to the table need not have them.

        It is dropped before: else it would keep the owner and the rights that somebody gave it. The trigger
        goes with it, unless somebody has made one of that name which calls another function: that is replaced.

        A second one looks at the columns. It costs a write nothing, for it is called while a statement is
        planned: it is immutable as far as the server knows, and to alter a table that a plan names, as
        `regclass`, is to have it planned again.
        """
        function = f"{self._of_ours(name)}()"
        looks = f"{self._of_ours(name)}(regclass)"
        settings = "".join(
            f" SET {each} = {SETTINGS[each]}" for each in self._settings(table, spec)
        )
        yield from self.drop(table, [name])
        if as_made := self._as_made(event, table, spec):
            yield (
                f"CREATE FUNCTION {looks} RETURNS boolean LANGUAGE plpgsql IMMUTABLE "
                f"SET search_path = pg_catalog, pg_temp AS {self.literal(f'BEGIN RETURN {as_made}; END')}"
            )
            yield f"REVOKE ALL ON FUNCTION {looks} FROM PUBLIC"
        body = self._body(event, table, spec, self._of_ours(name) if as_made else "")
        body = f"#variable_conflict use_column\nBEGIN {body} RETURN NULL; END"
        yield (
            f"CREATE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
            f"SET search_path = pg_catalog, pg_temp{settings} AS {self.literal(body)}"
        )
        yield f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC"
        yield (
            f"CREATE OR REPLACE TRIGGER {self.name(name)} AFTER {event.upper()} ON {self.name(table)} "
            f"{TRANSITIONS[event]} FOR EACH STATEMENT EXECUTE FUNCTION {function}"
        )

    def _body(self, event: str, table: str, spec: TriggerSpec, as_made: str) -> str:
        """Log what the table's own rows are; of another table, as one that was renamed, look at no column.

        Nor of this one, once a column that is named here is gone or has another type: such a statement
        would fail, and the writer's with it. So would one that names a table in a schema which the function's
        owner may not use any more.

        Names and not numbers tell the tables apart, for a dump keeps no numbers. A temporary table is
        never the one that views read, whatever its name is.

        Args:
            event: that fires it.
            table: its name.
            spec: what is to be logged.
            as_made: the name of the function that looks at the columns; "" if none counts.
        """
        place, session = self._place(table), f"current_setting({self.literal(SUPPRESSED)}, true)"
        log = f"INSERT INTO {self._of_ours(CHANGE_LOG)}"
        whole = f"{log} {self._columns('table')} VALUES ({self.literal(table)});"
        entry = (
            f"IF strpos(coalesce({session}, ''), {self.literal(digest(table))}) > 0 THEN "
            f"IF EXISTS (SELECT 1 FROM {self._of_ours(LOG_SECRET)} "
            f"WHERE value = split_part({session}, ' ', 1)) THEN RETURN NULL; END IF; END IF; "
            f"{self._entry(log, event, table, spec)};"
        )
        if as_made:
            named = f'"{_doubled(place.schema)}"."{_doubled(place.table)}"'
            checked = f"{as_made}({self.literal(named)}::regclass)"
            entry = f"IF {checked} THEN {entry} ELSE {whole} END IF;"
            if place.schema != self._schema:
                may_name = f"has_schema_privilege({self.literal(place.schema)}, 'USAGE')"
                entry = f"IF {may_name} THEN {entry} ELSE {whole} END IF;"
        return (
            f"IF TG_TABLE_SCHEMA = {self.literal(place.schema)} "
            f"AND TG_TABLE_NAME = {self.literal(place.table)} THEN {entry} "
            f"ELSIF NOT starts_with(TG_TABLE_SCHEMA::text, 'pg_temp_') THEN {whole} END IF;"
        )

    def _as_made(self, event: str, table: str, spec: TriggerSpec) -> str:
        """A condition on the table `$1`: the columns that the trigger names are there, with the types that it is made for.

        Those whose values are compared and written as texts, whatever they are, may have any other such type.

        The rows of the catalogs are as old as the transaction in REPEATABLE READ; what a function tells of
        them is not. A table whose columns get another such type is another file.
        """
        named = spec.links | (spec.columns or frozenset() if event == "update" else frozenset())
        if event == "truncate" or not named:
            return ""
        kinds = {column: self._kind(table, column) for column in sorted(named)}
        each = " OR ".join(
            f"attname = {self.literal(self._as_stored(column))}"
            + (
                f" AND atttypid = '{kind}'::regtype"
                if kind in EXACT or kind in INEXACT_TYPES
                else ""
            )
            for column, kind in kinds.items()
        )
        now = "(pg_identify_object_as_address('pg_class'::regclass, $1, attnum)).object_names[3]"
        return (
            f"(SELECT count(*) FROM pg_attribute WHERE attrelid = $1 AND ({each}) AND attname = {now}) "
            f"= {len(named)} AND pg_relation_filenode($1) = (SELECT relfilenode FROM pg_class WHERE oid = $1)"
        )

    def _columns(self, *names: str) -> str:
        return f"({', '.join(map(self.name, names))})"

    @contextmanager
    def suppressed(self, tables: Collection[str], secret: Callable[[], str]) -> Iterator[None]:
        """By a setting of the transaction."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT current_setting(%s, true)", [SUPPRESSED])
            before = cursor.fetchone()[0] or ""
        self._suppress(self.password(before, tables, secret()))
        yield
        self._suppress(before)

    def _suppress(self, value: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT set_config(%s, %s, true)", [SUPPRESSED, value])

    def _entry(self, log: str, event: str, table: str, spec: TriggerSpec) -> str:
        """A statement that makes an entry in the log, one for all rows.

        Too many, or too long, are known to be so before they are put together: a subquery in a CASE is
        computed only where it is come to.
        """
        text = self.literal(table)
        if event == "truncate":
            return f"{log} {self._columns('table')} VALUES ({text})"
        rows = {"insert": AFTER, "delete": BEFORE}.get(event) or self._changed(table, spec)
        if not spec.links:
            return (
                f"{log} {self._columns('table', 'links')} "
                f"SELECT {text}, {self._json([[]])} WHERE EXISTS (SELECT 1 FROM {rows})"
            )
        links = sorted(spec.links)
        names = ", ".join(map(self.name, links))
        sizes = [f"coalesce(octet_length({self.name(link)}), 0)" for link in links]
        distinct = self._selected(table, links, MAX_LINK_BYTES + 1)
        values = ", ".join(f"{self._text(link)} AS {self.name(link)}" for link in links)
        return (
            f"WITH matviews_links AS MATERIALIZED (SELECT {values} "
            f"FROM (SELECT DISTINCT {distinct} FROM {rows} LIMIT {MAX_DISTINCT_CHANGES + 1}) matviews_distinct), "
            f"matviews_size AS (SELECT count(*) AS n, max(greatest({', '.join(sizes)})) AS longest, "
            f"sum({' + '.join(sizes)}) AS size FROM matviews_links) "
            f"{log} {self._columns('table', 'count', 'links')} SELECT {text}, n, "
            f"CASE WHEN n > {MAX_DISTINCT_CHANGES} THEN {self._json(TOO_MANY)} "
            f"WHEN longest > {MAX_LINK_BYTES} THEN {self._json(TOO_LONG)} "
            f"WHEN size > {MAX_LINKS_BYTES} THEN {self._json(TOO_LARGE)} "
            f"ELSE {self._json([links])} "
            f"|| (SELECT jsonb_agg(jsonb_build_array({names})) FROM matviews_links) END "
            f"FROM matviews_size WHERE n > 0"
        )

    def _json(self, value: object) -> str:
        return f"{self.literal(json_of(value))}::jsonb"

    def _changed(self, table: str, spec: TriggerSpec) -> str:
        """The rows that an UPDATE has changed, as they were and as they are."""
        if spec.columns is None:
            links = ", ".join(map(self.name, sorted(spec.links))) or "1"
            each = [f"SELECT {links} FROM {rows}" for rows in (BEFORE, AFTER)]
            return f"({' UNION ALL '.join(each)}) matviews_changed"
        values = self._selected(table, sorted(spec.columns))
        before, after = (f"SELECT {values} FROM {rows}" for rows in (BEFORE, AFTER))
        return (
            f"(({before} EXCEPT ALL {after}) UNION ALL ({after} EXCEPT ALL {before})) "
            f"matviews_changed"
        )

    def _selected(self, table: str, columns: Iterable[str], most: int | None = None) -> str:
        """Columns as they are compared: as texts of bytes where values may be equal and yet not the same."""
        return ", ".join(
            name if self._kind(table, column) in EXACT else f"{self._text(column, most)} AS {name}"
            for column, name in ((column, self.name(column)) for column in columns)
        )

    def _text(self, column: str, most: int | None = None) -> str:
        """A column as its type writes it; at most so many characters."""
        name = self.name(column)
        text = f"concat({name})" if most is None else f"left(concat({name}), {most})"
        return f'CASE WHEN {name} IS NULL THEN NULL ELSE {text} END COLLATE pg_catalog."C"'

    def literal(self, text: str) -> str:
        """What a backslash is depends on `standard_conforming_strings`."""
        doubled = text.replace("\\", "\\\\")
        return f" E{super().literal(doubled)}" if "\\" in text else super().literal(text)

    def _settings(self, table: str, spec: TriggerSpec) -> list[str]:
        """What the texts of a table's columns depend on, that a session may set."""
        columns = spec.columns or frozenset()
        texts = {column for column in columns if self._kind(table, column) not in EXACT}
        found: set[str] = set()
        for column in texts | spec.links:
            kind = self._kind(table, column)
            if kind not in INEXACT_TYPES:
                found |= set(EXACT.get(kind, SETTINGS))
        return sorted(found)

    def _kind(self, table: str, column: str) -> str:
        """The name of a column's type, "" for one that others have made, or that is not there."""
        return self._place(table).types.get(self._as_stored(column), "")

    def _as_stored(self, column: str) -> str:
        return next(map(cut, identifiers(self.name(column))), column)

    def _place(self, table: str) -> Place:
        if table not in self._places:
            self._places[table] = self._find(table)
        return self._places[table]

    def _find(self, table: str) -> Place:
        with self.connection.cursor() as cursor:
            cursor.execute(  # no row where that is no name
                "SELECT n.nspname, c.relname, a.attname, CASE WHEN t.typnamespace = "
                "'pg_catalog'::pg_catalog.regnamespace::pg_catalog.oid THEN t.typname ELSE '' END FROM pg_class c "
                "JOIN pg_namespace n ON n.oid = c.relnamespace "
                "LEFT JOIN (pg_attribute a JOIN pg_type t ON t.oid = a.atttypid) "
                "ON a.attrelid = c.oid AND a.attnum > 0 WHERE c.oid = pg_catalog.to_regclass(%s)::pg_catalog.oid",
                [regclass(self.name(table))],
            )
            rows = cursor.fetchall()
        schema, name = rows[0][:2] if rows else ("", table)
        return Place(schema, name, {column: kind for *_place, column, kind in rows})

    @cached_property
    def _schema(self) -> str:
        """That of the log, which the table's need not be."""
        return self._place(CHANGE_LOG).schema

    def _of_ours(self, name: str) -> str:
        """A function or a table of ours, with its schema."""
        return f"{self.name(self._schema)}.{self.name(name)}"

    def drop(self, table: str, names: Iterable[str]) -> list[str]:
        """Removing a function removes its trigger."""
        return [
            f"DROP FUNCTION IF EXISTS {self._of_ours(name)}({arguments}) CASCADE"
            for name in sorted(names)
            for arguments in ARGUMENTS.values()
        ]

    def strays(self) -> set[str]:
        """A function stays when its table is dropped."""
        present = set[str]().union(*self.present().values())
        return {name for name, _arguments, _public in self._functions()} - present

    def _functions(self) -> list[tuple[str, str, bool]]:
        """The functions of our triggers, their arguments, and whether any role may call them."""
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT p.proname, p.proargtypes::pg_catalog.text, EXISTS (SELECT 1 FROM "
                "pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a "
                "WHERE a.grantee = 0) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
                f"WHERE n.nspname = %s AND p.proname {LIKE} %s "
                f"AND ({LOGS} OR pg_catalog.pg_has_role(p.proowner, 'USAGE'))",
                [self._schema, *self.ours, self.log],
            )
            return [
                (name, ARGUMENTS[types], public)
                for name, types, public in cursor.fetchall()
                if types in ARGUMENTS and OURS.fullmatch(name)
            ]

    def exposed(self) -> list[str]:
        names = sorted({name for name, _arguments, public in self._functions() if public})
        found = [f"the function {name}" for name in names]
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_catalog.has_any_column_privilege('public', pg_catalog.to_regclass(%s), "
                "'SELECT, INSERT, UPDATE')",
                [self._of_ours(LOG_SECRET)],
            )
            [(readable,)] = cursor.fetchall()
        return [*found, f"the table {LOG_SECRET}"] if readable else found

    def secure(self) -> None:
        self.execute(
            f"REVOKE ALL ON FUNCTION {self._of_ours(name)}({arguments}) FROM PUBLIC"
            for name, arguments, public in self._functions()
            if public
        )

    def untrackable(self, tables: Collection[str]) -> dict[str, str]:
        """A statement on one table of a family may change another."""
        names = [table for table in tables if regclass(self.name(table))]
        faults = dict.fromkeys(tables, MISSING)
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT given.name, CASE WHEN c.relkind NOT IN ('r', 'p') OR c.relpersistence = 't' "
                "THEN %s WHEN c.relpersistence = 'u' THEN %s WHEN c.relkind = 'p' OR EXISTS "
                "(SELECT 1 FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)) THEN %s END "
                "FROM unnest(%s::pg_catalog.text[], %s::pg_catalog.text[]) given (name, quoted) "
                "JOIN pg_class c ON c.oid = pg_catalog.to_regclass(given.quoted)::pg_catalog.oid",
                [NOT_ORDINARY, UNLOGGED, FAMILY, names, list(map(self.name, names))],
            )
            faults |= dict(cursor.fetchall())
        faults |= {
            table: TOO_LONG_NAME
            for table in names
            if any(cut(part) != part for part in identifiers(self.name(table)))
        }
        return {table: fault for table, fault in faults.items() if fault}

    @contextmanager
    def definitions(self, tables: int = 1) -> Iterator[None]:
        """Nor may a process that stands still keep a table."""
        alone = not self.connection.in_atomic_block
        with super().definitions(tables):
            self.execute([f"SET LOCAL lock_timeout = {max(WAIT // max(tables, 1), 50)}"])
            if alone:
                self.execute([f"SET LOCAL idle_in_transaction_session_timeout = {IDLE}"])
            yield

    def is_held(self, error: DatabaseError) -> bool:
        """A connection that was closed for standing still counts too."""
        return sqlstate(error) in HELD


def _doubled(name: str) -> str:
    return name.replace('"', '""')


def _spelled(schema: str, table: str, visible: bool, name: str) -> str:
    """A table's name as the trigger of that name was made for, or else as it is."""
    schema, table = _doubled(schema), _doubled(table)
    plain, qualified = [table] if visible else [], f'{schema}"."{table}'
    names = [*plain, qualified, f'"{qualified}"', f'"{table}"']
    made_for = name.split("_")[1]
    return next((each for each in names if digest(each) == made_for), names[0])
