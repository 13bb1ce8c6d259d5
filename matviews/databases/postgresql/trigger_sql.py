"""PostgreSQL's trigger functions: one trigger per statement, which sees all rows it changed.

The functions run with their owner's rights and are fired by whoever writes to a table, so nothing
that another role can define may run in them. Names are looked up in `pg_catalog` first. No value is
cast (`to_jsonb` and `jsonb_build_array` would look casts up as well). `concat` asks a type for its
text, which only a superuser can define. And no role may attach the functions to a table of its own.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import ClassVar, NamedTuple

from ..base.triggers import (
    CHANGE_LOG,
    LOG_SECRET,
    MAX_DISTINCT_CHANGES,
    MAX_LINK_BYTES,
    TOO_LONG,
    TOO_MANY,
    Triggers,
    digest,
    json_of,
)
from ..trigger_spec import TriggerSpec
from .table_names import cut, identifiers, regclass

__all__ = ["ARGUMENTS", "SUPPRESSED", "PostgreSQLTriggerSQL", "doubled"]

BEFORE, AFTER = "matviews_before", "matviews_after"
MAX_LINKS_BYTES = 16_000_000  # of one statement; JSON ends at 255 MB
TOO_LARGE = f"what leads from the changed rows to keys is more than {MAX_LINKS_BYTES:,} bytes"
SUPPRESSED = "matviews.suppressed"
# A trigger has two functions: the one that it calls, and the one that checks the columns. Their
# arguments, by the OIDs of the types:
ARGUMENTS = {"": "", "2205": "regclass"}
TRANSITIONS = {
    "insert": f"REFERENCING NEW TABLE AS {AFTER}",
    "update": f"REFERENCING OLD TABLE AS {BEFORE} NEW TABLE AS {AFTER}",
    "delete": f"REFERENCING OLD TABLE AS {BEFORE}",
    "truncate": "",
}
# Types whose equal values are identical, and the settings that their text form depends on.
EXACT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("int2", "int4", "int8", "bool", "uuid", "time"), ()),
    "bytea": ("bytea_output",),
    **dict.fromkeys(("date", "timestamp"), ("DateStyle",)),
    "timestamptz": ("DateStyle", "TimeZone"),
}
INEXACT_TYPES = ("text", "varchar", "bpchar", "numeric")  # their text form depends on no setting
SETTINGS = {
    "DateStyle": "'ISO, YMD'",
    "IntervalStyle": "'postgres'",
    "TimeZone": "'UTC'",
    "bytea_output": "'hex'",
    "extra_float_digits": "1",
    "lc_monetary": "'C'",
}


class TableLocation(NamedTuple):
    """Where a table is, by the search path of this connection."""

    #: The table's schema.
    schema: str
    #: The table's own name.
    table: str
    #: The type name of each column, "" if the type is not built in.
    types: dict[str, str]


class PostgreSQLTriggerSQL(Triggers):
    """Compares multisets, not rows: rows alike in all tracked columns are interchangeable."""

    events: ClassVar[tuple[str, ...]] = ("insert", "update", "delete", "truncate")

    def __init__(self, using: str) -> None:
        super().__init__(using)
        self._locations: dict[str, TableLocation] = {}

    def statements(self, name: str, event: str, table: str, spec: TriggerSpec) -> Iterator[str]:
        """The function runs with its owner's rights, so that writers need no right to the log.

        It is dropped first, or it would keep the owner and the rights that somebody gave it. The
        trigger goes with it, unless somebody created one of that name that calls another function:
        that one is replaced.

        The second function checks the columns, which costs a write nothing: being IMMUTABLE, it is
        called when a statement is planned. Altering a table that a plan names as `regclass` makes
        the server plan again.
        """
        function = f"{self._of_ours(name)}()"
        check = f"{self._of_ours(name)}(regclass)"
        settings = "".join(
            f" SET {setting} = {SETTINGS[setting]}" for setting in self._settings(table, spec)
        )
        yield from self.drop(table, [name])
        if column_check := self._column_check(event, table, spec):
            yield (
                f"CREATE FUNCTION {check} RETURNS boolean LANGUAGE plpgsql IMMUTABLE "
                f"SET search_path = pg_catalog, pg_temp "
                f"AS {self.literal(f'BEGIN RETURN {column_check}; END')}"
            )
            yield f"REVOKE ALL ON FUNCTION {check} FROM PUBLIC"
        body = self._body(event, table, spec, self._of_ours(name) if column_check else "")
        body = f"#variable_conflict use_column\nBEGIN {body} RETURN NULL; END"
        yield (
            f"CREATE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
            f"SET search_path = pg_catalog, pg_temp{settings} AS {self.literal(body)}"
        )
        yield f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC"
        yield (
            f"CREATE OR REPLACE TRIGGER {self.name(name)} "
            f"AFTER {event.upper()} ON {self.name(table)} "
            f"{TRANSITIONS[event]} FOR EACH STATEMENT EXECUTE FUNCTION {function}"
        )

    def _body(self, event: str, table: str, spec: TriggerSpec, check: str) -> str:
        """Log changed rows if the table is the right one; read no column of any other table.

        Read no column of this one either if a column that is named here is gone or has another
        type: the statement would fail, and the writer's with it. So would a statement that named a
        table in a schema that the function's owner may no longer use.

        Tables are compared by name and not by OID, because a dump keeps no OIDs. Views never read a
        temporary table, whatever its name is.

        Args:
            event: the event that fires the trigger.
            table: its name.
            spec: what is logged.
            check: the name of the function that checks the columns; "" if there is none.
        """
        location = self._location(table)
        session = f"current_setting({self.literal(SUPPRESSED)}, true)"
        log = f"INSERT INTO {self._of_ours(CHANGE_LOG)}"
        whole = f"{log} {self._columns('table')} VALUES ({self.literal(table)});"
        entry = (
            f"IF strpos(coalesce({session}, ''), {self.literal(digest(table))}) > 0 THEN "
            f"IF EXISTS (SELECT 1 FROM {self._of_ours(LOG_SECRET)} "
            f"WHERE value = split_part({session}, ' ', 1)) THEN RETURN NULL; END IF; END IF; "
            f"{self._entry(log, event, table, spec)};"
        )
        if check:
            named = f'"{doubled(location.schema)}"."{doubled(location.table)}"'
            checked = f"{check}({self.literal(named)}::regclass)"
            entry = f"IF {checked} THEN {entry} ELSE {whole} END IF;"
            if location.schema != self._schema:
                may_name = f"has_schema_privilege({self.literal(location.schema)}, 'USAGE')"
                entry = f"IF {may_name} THEN {entry} ELSE {whole} END IF;"
        return (
            f"IF TG_TABLE_SCHEMA = {self.literal(location.schema)} "
            f"AND TG_TABLE_NAME = {self.literal(location.table)} THEN {entry} "
            f"ELSIF NOT starts_with(TG_TABLE_SCHEMA::text, 'pg_temp_') THEN {whole} END IF;"
        )

    def _column_check(self, event: str, table: str, spec: TriggerSpec) -> str:
        """Whether the table `$1` has the columns that the trigger names, with the same types.

        Columns that are compared and written as texts may change between types that are treated so.

        The catalogs' rows are as old as the transaction in REPEATABLE READ; the results of catalog
        functions are current. A table whose column types change gets a new file.
        """
        named = spec.links | (spec.columns or frozenset() if event == "update" else frozenset())
        if event == "truncate" or not named:
            return ""
        kinds = {column: self._kind(table, column) for column in sorted(named)}
        column_checks = " OR ".join(
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
            f"(SELECT count(*) FROM pg_attribute "
            f"WHERE attrelid = $1 AND ({column_checks}) AND attname = {now}) = {len(named)} "
            f"AND pg_relation_filenode($1) = (SELECT relfilenode FROM pg_class WHERE oid = $1)"
        )

    def _columns(self, *names: str) -> str:
        return f"({', '.join(map(self.name, names))})"

    def _entry(self, log: str, event: str, table: str, spec: TriggerSpec) -> str:
        """A statement that writes one log entry for all rows.

        It checks for too many or too long values before it aggregates them: a subquery in a CASE is
        evaluated only when its branch is reached.
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
            f"FROM (SELECT DISTINCT {distinct} FROM {rows} LIMIT {MAX_DISTINCT_CHANGES + 1}) "
            f"matviews_distinct), "
            f"matviews_size AS (SELECT count(*) AS n, "
            f"max(greatest({', '.join(sizes)})) AS longest, "
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
        """The rows that an UPDATE changed, before and after."""
        if spec.columns is None:
            links = ", ".join(map(self.name, sorted(spec.links))) or "1"
            selects = [f"SELECT {links} FROM {rows}" for rows in (BEFORE, AFTER)]
            return f"({' UNION ALL '.join(selects)}) matviews_changed"
        values = self._selected(table, sorted(spec.columns))
        before, after = (f"SELECT {values} FROM {rows}" for rows in (BEFORE, AFTER))
        return (
            f"(({before} EXCEPT ALL {after}) UNION ALL ({after} EXCEPT ALL {before})) "
            f"matviews_changed"
        )

    def _selected(self, table: str, columns: Iterable[str], limit: int | None = None) -> str:
        """Columns as they are compared: as bytes, where equal values need not be identical."""
        return ", ".join(
            name if self._kind(table, column) in EXACT else f"{self._text(column, limit)} AS {name}"
            for column, name in ((column, self.name(column)) for column in columns)
        )

    def _text(self, column: str, limit: int | None = None) -> str:
        """The text form of a column, with at most `limit` characters."""
        name = self.name(column)
        text = f"concat({name})" if limit is None else f"left(concat({name}), {limit})"
        return f'CASE WHEN {name} IS NULL THEN NULL ELSE {text} END COLLATE pg_catalog."C"'

    def literal(self, text: str) -> str:
        """What a backslash means depends on `standard_conforming_strings`."""
        doubled = text.replace("\\", "\\\\")
        return f" E{super().literal(doubled)}" if "\\" in text else super().literal(text)

    def _settings(self, table: str, spec: TriggerSpec) -> list[str]:
        """The session settings that the text forms of a table's columns depend on."""
        columns = spec.columns or frozenset()
        texts = {column for column in columns if self._kind(table, column) not in EXACT}
        found: set[str] = set()
        for column in texts | spec.links:
            kind = self._kind(table, column)
            if kind not in INEXACT_TYPES:
                found |= set(EXACT.get(kind, SETTINGS))
        return sorted(found)

    def _kind(self, table: str, column: str) -> str:
        """The name of a column's type, "" if the type is not built in or the column is missing."""
        return self._location(table).types.get(self._as_stored(column), "")

    def _as_stored(self, column: str) -> str:
        return next(map(cut, identifiers(self.name(column))), column)

    def _location(self, table: str) -> TableLocation:
        if table not in self._locations:
            self._locations[table] = self._find(table)
        return self._locations[table]

    def _find(self, table: str) -> TableLocation:
        with self.connection.cursor() as cursor:
            cursor.execute(  # no row, if no table can have the name
                "SELECT n.nspname, c.relname, a.attname, CASE WHEN t.typnamespace = "
                "'pg_catalog'::pg_catalog.regnamespace::pg_catalog.oid THEN t.typname ELSE '' END "
                "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "LEFT JOIN (pg_attribute a JOIN pg_type t ON t.oid = a.atttypid) "
                "ON a.attrelid = c.oid AND a.attnum > 0 "
                "WHERE c.oid = pg_catalog.to_regclass(%s)::pg_catalog.oid",
                [regclass(self.name(table))],
            )
            rows = cursor.fetchall()
        schema, name = rows[0][:2] if rows else ("", table)
        return TableLocation(schema, name, {column: kind for *_location, column, kind in rows})

    @cached_property
    def _schema(self) -> str:
        """The schema of the log, which may differ from the table's."""
        return self._location(CHANGE_LOG).schema

    def _of_ours(self, name: str) -> str:
        """A function or table of this package, with its schema."""
        return f"{self.name(self._schema)}.{self.name(name)}"

    def drop(self, table: str, names: Iterable[str]) -> list[str]:
        """Dropping a function drops its trigger."""
        return [
            f"DROP FUNCTION IF EXISTS {self._of_ours(name)}({arguments}) CASCADE"
            for name in sorted(names)
            for arguments in ARGUMENTS.values()
        ]


def doubled(name: str) -> str:
    return name.replace('"', '""')
