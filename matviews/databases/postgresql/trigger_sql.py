"""PostgreSQL's trigger functions: one trigger per statement, which sees all rows it changed.

The functions run with their owner's rights and are fired by whoever writes to a table, so nothing that
another role can define may run in them. Names are looked up in `pg_catalog` first. No value is cast
(`to_jsonb` and `jsonb_build_array` would look casts up as well). `concat` asks a type for its text, which
only a superuser can define. And no role may attach the functions to a table of its own.
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
MAX_LINKS_BYTES = 16_000_000  # bytes of all links of a statement; JSON ends at 255 MB
TOO_LARGE = f"what leads from the changed rows to keys is more than {MAX_LINKS_BYTES:,} bytes"
SUPPRESSED = "matviews.suppressed"
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


class TableLocation(NamedTuple):
    """Where a table is, by the search path of this connection."""

    #: The name of its schema.
    schema: str
    #: Its own name.
    table: str
    #: Its columns with the names of their types, "" for those that others have made.
    types: dict[str, str]


class PostgreSQLTriggerSQL(Triggers):
    """Compares multisets, not rows: rows alike in all tracked columns are interchangeable."""

    events: ClassVar[tuple[str, ...]] = ("insert", "update", "delete", "truncate")

    def __init__(self, using: str) -> None:
        super().__init__(using)
        self._locations: dict[str, TableLocation] = {}

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
        location, session = (
            self._location(table),
            f"current_setting({self.literal(SUPPRESSED)}, true)",
        )
        log = f"INSERT INTO {self._of_ours(CHANGE_LOG)}"
        whole = f"{log} {self._columns('table')} VALUES ({self.literal(table)});"
        entry = (
            f"IF strpos(coalesce({session}, ''), {self.literal(digest(table))}) > 0 THEN "
            f"IF EXISTS (SELECT 1 FROM {self._of_ours(LOG_SECRET)} "
            f"WHERE value = split_part({session}, ' ', 1)) THEN RETURN NULL; END IF; END IF; "
            f"{self._entry(log, event, table, spec)};"
        )
        if as_made:
            named = f'"{doubled(location.schema)}"."{doubled(location.table)}"'
            checked = f"{as_made}({self.literal(named)}::regclass)"
            entry = f"IF {checked} THEN {entry} ELSE {whole} END IF;"
            if location.schema != self._schema:
                may_name = f"has_schema_privilege({self.literal(location.schema)}, 'USAGE')"
                entry = f"IF {may_name} THEN {entry} ELSE {whole} END IF;"
        return (
            f"IF TG_TABLE_SCHEMA = {self.literal(location.schema)} "
            f"AND TG_TABLE_NAME = {self.literal(location.table)} THEN {entry} "
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
        return self._location(table).types.get(self._as_stored(column), "")

    def _as_stored(self, column: str) -> str:
        return next(map(cut, identifiers(self.name(column))), column)

    def _location(self, table: str) -> TableLocation:
        if table not in self._locations:
            self._locations[table] = self._find(table)
        return self._locations[table]

    def _find(self, table: str) -> TableLocation:
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
        return TableLocation(schema, name, {column: kind for *_location, column, kind in rows})

    @cached_property
    def _schema(self) -> str:
        """That of the log, which the table's need not be."""
        return self._location(CHANGE_LOG).schema

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


def doubled(name: str) -> str:
    return name.replace('"', '""')
