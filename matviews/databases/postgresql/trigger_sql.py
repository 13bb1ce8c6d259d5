"""PostgreSQL's trigger functions: one trigger per statement, which sees all rows it changed.

A statement fires only the triggers of the table that it names, with the rows of all its partitions.
So the triggers of a table that is partitioned, or a partition, are also on its relatives: the
tables below and above it. They call the same functions, with one argument.

The functions run with their owner's rights and are fired by whoever writes to a table, so nothing
that another role can define may run in them. Names are looked up in `pg_catalog` first. No value of
a column is cast (`to_jsonb` and `jsonb_build_array` would look casts up as well). `concat` asks a
type for its text, which only a superuser can define. And no role may attach the functions to a
table of its own.
"""

from collections.abc import Iterable, Iterator
from typing import ClassVar

from ..base.triggers import (
    CHANGE_LOG,
    MAX_DISTINCT_CHANGES,
    MAX_LINK_BYTES,
    TOO_LONG,
    TOO_MANY,
    json_of,
)
from ..trigger_spec import FOREIGN, TriggerSpec
from .trigger_columns import EXACT, INEXACT_TYPES, SETTINGS
from .trigger_values import AFTER, BEFORE, TriggerValues

__all__ = ["ARGUMENTS", "PostgreSQLTriggerSQL", "doubled"]

PAIRS, OLD, NEW = "matviews_pairs", "matviews_old", "matviews_new"
MAX_LINKS_BYTES = 16_000_000  # of one statement; JSON ends at 255 MB
TOO_LARGE = f"what leads from the changed rows to keys is more than {MAX_LINKS_BYTES:,} bytes"
# A trigger has two functions: the one that it calls, and the one that checks the columns. Their
# arguments, by the OIDs of the types:
ARGUMENTS = {"": "", "2205": "regclass"}
TRANSITIONS = {
    "insert": f"REFERENCING NEW TABLE AS {AFTER}",
    "update": f"REFERENCING OLD TABLE AS {BEFORE} NEW TABLE AS {AFTER}",
    "delete": f"REFERENCING OLD TABLE AS {BEFORE}",
    "truncate": "",
}
# The transition tables of an UPDATE have each row that it moves to another partition, before and
# after. If MERGE moves it, they have neither (PostgreSQL 15), and no other trigger need fire. The
# only sign is the statement's text: of the client's statement, or of those that functions run, but
# not of a function in SQL. The UPDATE of a foreign key fires triggers with the statement that
# caused it.
STACK = "matviews_stack"
MERGE, EXECUTE, WRITE = (
    f"'[[:<:]]({words})[[:>:]]'" for words in ("merge", "execute", "insert|update|delete")
)
SHOWN = f"concat(coalesce(current_query(), 'merge'), {STACK})"
MAY_LACK_ROWS = (
    f"{SHOWN} ~* {MERGE} OR {STACK} <> '' AND {STACK} !~* {WRITE} OR {SHOWN} ~* {EXECUTE} "
    f"AND EXISTS (SELECT 1 FROM pg_prepared_statements WHERE statement ~* {MERGE}) "
    # A trigger of the table may keep the row from its new partition.
    f"OR (SELECT count(*) FROM {BEFORE}) <> (SELECT count(*) FROM {AFTER})"
)


class PostgreSQLTriggerSQL(TriggerValues):
    """The SQL of functions and triggers."""

    events: ClassVar[tuple[str, ...]] = ("insert", "update", "delete", "truncate")

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
        variables = f"DECLARE {STACK} text; " if event == "update" else ""
        body = f"#variable_conflict use_column\n{variables}BEGIN {body} RETURN NULL; END"
        yield (
            f"CREATE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
            f"SET search_path = pg_catalog, pg_temp{settings} AS {self.literal(body)}"
        )
        yield f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC"
        yield from self._triggers(name, event, self.name(table))

    def _triggers(self, name: str, event: str, on: str, argument: str = "") -> Iterator[str]:
        """Statements that create a trigger, which also fires where most others do not.

        With `session_replication_role = replica`, which loaders of data set, only a trigger fires
        that its table's owner has enabled so.

        Args:
            name: of the trigger and its function.
            event: the event that fires it.
            on: the quoted name of its table.
            argument: a literal; "" for none.
        """
        yield (
            f"CREATE OR REPLACE TRIGGER {self.name(name)} AFTER {event.upper()} ON {on} "
            f"{TRANSITIONS[event]} FOR EACH STATEMENT "
            f"EXECUTE FUNCTION {self._of_ours(name)}({argument})"
        )
        always = f"ALTER TABLE ONLY {on} ENABLE ALWAYS TRIGGER {self.name(name)}"
        owner = (
            f"(SELECT relowner FROM pg_catalog.pg_class "
            f"WHERE oid = {self.literal(on)}::pg_catalog.regclass::pg_catalog.oid)"
        )
        block = (
            f"BEGIN IF pg_catalog.pg_has_role({owner}, 'USAGE') THEN "
            f"EXECUTE {self.literal(always)}; END IF; END"
        )
        yield f"DO {self.literal(block)}"

    def _body(self, event: str, table: str, spec: TriggerSpec, check: str) -> str:
        """Log changed rows if the table is the right one; read no column of any other table.

        Read no column of this one either if a column that is named here is gone or has another
        type: the statement would fail, and the writer's with it. So would a statement that named a
        table in a schema that the function's owner may no longer use.

        Tables are compared by name and not by OID, because a dump keeps no OIDs. Views never read a
        temporary table, whatever its name is. A relative has the same columns. One that has been
        detached is no part of the table any more.

        Args:
            event: the event that fires the trigger.
            table: its name.
            spec: what is logged.
            check: the name of the function that checks the columns; "" if there is none.
        """
        location = self._location(table)
        log = f"INSERT INTO {self._of_ours(CHANGE_LOG)}"
        whole = f"{log} {self._columns('table')} VALUES ({self.literal(table)});"
        entry = (
            f"{self._leave_early(table, spec)}{self._entry(log, event, table, spec)};"
            f"{self._values(event, table, spec, whole)}"
        )
        named = f'"{doubled(location.schema)}"."{doubled(location.table)}"'
        if check:
            checked = f"{check}({self.literal(named)}::regclass)"
            entry = f"IF {checked} THEN {entry} ELSE {whole} END IF;"
        schema = self.literal(f'"{doubled(location.schema)}"')
        may_name = (
            f"to_regnamespace({schema}) IS NOT NULL "
            f"AND has_schema_privilege({self.literal(location.schema)}, 'USAGE')"
        )
        if check and location.schema != self._schema:
            entry = f"IF {may_name} THEN {entry} ELSE {whole} END IF;"
        if event == "update":
            entry = f"{self._if_rows_may_lack(whole)} {entry}"
        root = f"pg_partition_root(to_regclass({self.literal(named)}))"
        return (
            f"IF TG_TABLE_SCHEMA = {self.literal(location.schema)} "
            f"AND TG_TABLE_NAME = {self.literal(location.table)} OR TG_NARGS = 1 "
            f"AND {may_name} AND pg_partition_root(TG_RELID) = {root} THEN {entry} "
            f"ELSIF TG_NARGS = 1 AND pg_partition_root(TG_RELID) IS NULL THEN NULL; "
            f"ELSIF NOT starts_with(TG_TABLE_SCHEMA::text, 'pg_temp_') THEN {whole} END IF;"
        )

    def _if_rows_may_lack(self, whole: str) -> str:
        """Of a partitioned table, log that any row may have changed, and leave."""
        return (
            f"IF pg_partition_root(TG_RELID) IS NOT NULL THEN "
            f"GET CURRENT DIAGNOSTICS {STACK} = PG_CONTEXT; "
            f"{STACK} = substr({STACK}, strpos(concat({STACK}, chr(10)), chr(10))); "
            f"IF {MAY_LACK_ROWS} THEN {whole} RETURN NULL; END IF; END IF;"
        )

    def _column_check(self, event: str, table: str, spec: TriggerSpec) -> str:
        """Whether the table `$1` has the columns that the trigger names, with the same types.

        Columns that are compared and written as texts may change between types that are treated so.

        The catalogs' rows are as old as the transaction in REPEATABLE READ; the results of catalog
        functions are current. A table whose column types change gets a new file.
        """
        named = spec.links | spec.valued | (spec.compared if event == "update" else frozenset())
        if event == "truncate" or not named:
            return ""
        kinds = {column: self._kind(table, column) for column in sorted(named)}
        column_checks = " OR ".join(
            f"attname = {self.literal(self._as_stored(column))}"
            + (
                f" AND atttypid = '{kind}'::regtype"
                if kind in EXACT or kind in INEXACT_TYPES or (kind and column in spec.valued)
                else ""
            )
            for column, kind in kinds.items()
        )
        now = "(pg_identify_object_as_address('pg_class'::regclass, $1, attnum)).object_names[3]"
        return (
            f"(SELECT count(*) FROM pg_attribute "
            f"WHERE attrelid = $1 AND ({column_checks}) AND attname = {now}) = {len(named)} "
            f"AND coalesce(pg_relation_filenode($1), 0) = "
            f"(SELECT relfilenode FROM pg_class WHERE oid = $1)"
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
        parts, rows = self._rows(event, table, spec)
        changed = {"changed": found} if (found := self._changed(event, table, spec)) else {}
        if not spec.links:
            values = {"table": text, "links": self._json([[]]), **changed}
            return (
                f"{parts and f'WITH {parts} '}{log} {self._columns(*values)} "
                f"SELECT {', '.join(values.values())} WHERE EXISTS (SELECT 1 FROM {rows})"
            )
        links = sorted(spec.links)
        names = ", ".join(map(self.name, links))
        sizes = [f"coalesce(octet_length({self.name(link)}), 0)" for link in links]
        distinct = self._selected(table, links, MAX_LINK_BYTES + 1)
        texts = ", ".join(f"{self._text(link)} AS {self.name(link)}" for link in links)
        values = {
            "table": text,
            "count": "n",
            "links": f"CASE WHEN n > {MAX_DISTINCT_CHANGES} THEN {self._json(TOO_MANY)} "
            f"WHEN longest > {MAX_LINK_BYTES} THEN {self._json(TOO_LONG)} "
            f"WHEN size > {MAX_LINKS_BYTES} THEN {self._json(TOO_LARGE)} "
            f"ELSE {self._json([links])} "
            f"|| (SELECT jsonb_agg(jsonb_build_array({names})) FROM matviews_links) END",
            **changed,
        }
        return (
            f"WITH {parts and f'{parts}, '}matviews_links AS MATERIALIZED (SELECT {texts} "
            f"FROM (SELECT DISTINCT {distinct} FROM {rows} LIMIT {MAX_DISTINCT_CHANGES + 1}) "
            f"matviews_distinct), "
            f"matviews_size AS (SELECT count(*) AS n, "
            f"max(greatest({', '.join(sizes)})) AS longest, "
            f"sum({' + '.join(sizes)}) AS size FROM matviews_links) "
            f"{log} {self._columns(*values)} SELECT {', '.join(values.values())} "
            f"FROM matviews_size WHERE n > 0"
        )

    def _json(self, value: object) -> str:
        return f"{self.literal(json_of(value))}::jsonb"

    def _rows(self, event: str, table: str, spec: TriggerSpec) -> tuple[str, str]:
        """A part that precedes the statement, and the changed rows, each before and after."""
        if event != "update":
            return "", AFTER if event == "insert" else BEFORE
        links = list(map(self.name, sorted(spec.links)))
        of_each = [(", ".join(links) or "1", rows) for rows in (BEFORE, AFTER)]
        if spec.compared:
            of_each = [
                (", ".join(f"{row}_{n} AS {link}" for n, link in enumerate(links)) or "1", PAIRS)
                for row in (OLD, NEW)
            ]
        selects = [f"SELECT {names} FROM {rows}" for names, rows in of_each]
        changed = f"({' UNION ALL '.join(selects)}) matviews_changed"
        return (self._pairs(table, spec), changed) if spec.compared else ("", changed)

    def _pairs(self, table: str, spec: TriggerSpec) -> str:
        """The links of each row that an UPDATE changed, and which of the recorded columns differ.

        A row before the change is compared with the one at its place after it: PostgreSQL fills the
        transition tables in the same order. Any other pairing would be exact too, and only find
        more: if the columns of a view are equal in each pair, the table has the same rows for it as
        before. The join is a FULL JOIN because a plan that was made for one row is used again for a
        million, and that cannot be a nested loop.
        """
        columns = self._selected(table, sorted(spec.compared | spec.links))
        before, after = (
            f"(SELECT row_number() OVER () AS matviews_row, {columns} FROM {rows}) {row}"
            for rows, row in ((BEFORE, OLD), (AFTER, NEW))
        )
        differs = {
            column: f"{OLD}.{self.name(column)} IS DISTINCT FROM {NEW}.{self.name(column)}"
            for column in sorted(spec.compared)
        }
        values = [
            f"{row}.{self.name(link)} AS {row}_{n}"
            for row in (OLD, NEW)
            for n, link in enumerate(sorted(spec.links))
        ]
        values += [
            f"{differs[column]} AS matviews_differs_{n}"
            for n, column in enumerate(sorted(spec.recorded_one_by_one))
        ]
        counts = "" if spec.columns is None else f" WHERE {' OR '.join(differs.values())}"
        return (
            f"{PAIRS} AS MATERIALIZED (SELECT {', '.join(values) or '1'} "
            f"FROM {before} FULL JOIN {after} USING (matviews_row){counts})"
        )

    def _changed(self, event: str, table: str, spec: TriggerSpec) -> str:
        """The recorded columns that differ in some pair; "" if an entry names none.

        A batch that adds or removes rows names all, except `FOREIGN`.
        """
        if event != "update":
            marked = f"CASE WHEN {self.is_batch(table)} THEN {self._json(sorted(spec.named))} END"
            return marked if spec.marks_batches else ""
        differs = {
            column: f"bool_or(matviews_differs_{n})"
            for n, column in enumerate(sorted(spec.recorded_one_by_one))
        }
        conditions = {column: differs[column] for column in sorted(spec.named)}
        if spec.marks_batches:
            any_differs = " OR ".join(differs[column] for column in sorted(spec.guarded))
            conditions[FOREIGN] = f"NOT {self.is_batch(table)} AND ({any_differs})"
        names = ", ".join(
            f"CASE WHEN {condition} THEN {self.literal(column)} END"
            for column, condition in conditions.items()
        )
        return names and f"(SELECT to_jsonb(array_remove(ARRAY[{names}], NULL)) FROM {PAIRS})"

    def drop(self, table: str, names: Iterable[str]) -> list[str]:
        """Dropping a function drops its trigger."""
        return [
            f"DROP FUNCTION IF EXISTS {self._of_ours(name)}({arguments}) CASCADE"
            for name in sorted(names)
            for arguments in ARGUMENTS.values()
        ]


def doubled(name: str) -> str:
    return name.replace('"', '""')
