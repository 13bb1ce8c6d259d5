"""PostgreSQL: the triggers of partitioned tables, which are on all their relatives.

A partition may lack them as long as it was never written to. That is so if its file is empty, is
the first one that it had, and was never read by VACUUM or ANALYZE.
"""

from collections.abc import Collection, Mapping

from ..base.triggers import INCOMPLETE
from ..sql import SQL
from ..trigger_spec import TriggerSpec
from .table_names import quoted_sql, regclass
from .trigger_sql import PostgreSQLTriggerSQL

__all__ = ["IDENTITY", "PARTS", "PartitionTriggers"]

PARTITIONED = "partitioned"
# Of the trigger `t`. xmin also changes when it is disabled and enabled again.
IDENTITY = (
    "pg_catalog.concat(t.tgname, ':', CASE WHEN pg_catalog.pg_partition_root(t.tgrelid) IS NULL "
    f"THEN pg_catalog.concat(t.oid, '.', t.xmin) ELSE '{PARTITIONED}' END)"
)
# Not `pg_partition_tree`, which locks what it returns, and so waits for ALTER TABLE or VACUUM FULL.
BELOW = (
    "WITH RECURSIVE below (relid) AS (SELECT {of}::pg_catalog.oid UNION ALL SELECT i.inhrelid "
    "FROM pg_inherits i JOIN below ON below.relid = i.inhparent "
    "JOIN pg_class part ON part.oid = i.inhrelid AND part.relispartition)"
)
ABOVE = (
    "above (relid) AS (SELECT {of}::pg_catalog.oid UNION ALL SELECT i.inhparent "
    "FROM pg_inherits i JOIN above ON above.relid = i.inhrelid "
    "JOIN pg_class part ON part.oid = i.inhrelid AND part.relispartition)"
)
PARTS = f"ARRAY({BELOW} SELECT relid FROM below)"
# The server takes a set of rows from a function for a thousand, and compiles the statement.
RELATIVES = (
    f"pg_catalog.unnest(ARRAY({BELOW}, {ABOVE} SELECT relid FROM below "
    "UNION SELECT relid FROM above))"
)
GIVEN = "unnest(%s::pg_catalog.text[], %s::pg_catalog.text[]) given (name, quoted)"
OWN_TRIGGERS = (
    "FROM {given} JOIN pg_trigger t "
    "ON t.tgrelid = pg_catalog.to_regclass(given.quoted)::pg_catalog.oid "
    "AND t.tgname OPERATOR(pg_catalog.~~) %s AND t.tgenabled IN ('O', 'A') AND t.tgnargs = 0 "
    f"CROSS JOIN LATERAL {RELATIVES.format(of='t.tgrelid')} relative (oid) "
    "LEFT JOIN pg_trigger of_it ON of_it.tgrelid = relative.oid::pg_catalog.oid "
    "AND of_it.tgname = t.tgname AND of_it.tgfoid = t.tgfoid AND of_it.tgtype = t.tgtype "
    "AND of_it.tgenabled IN ('O', 'A')"
)
# CASE, because asking for the size waits for whoever has locked the table.
WAS_WRITTEN = (
    f"EXISTS (SELECT 1 FROM pg_class part WHERE part.oid = ANY ({PARTS}) "
    "AND part.relkind <> 'p' AND CASE WHEN part.reltuples = '-1'::pg_catalog.float4 "
    "AND part.relfilenode = part.oid THEN pg_catalog.pg_relation_size(part.oid) > 0 ELSE true END)"
)
# The triggers of tables that have partitions or are one: name of the table, identity.
WITH_PARTITIONS = (
    "SELECT given.name, pg_catalog.concat(t.tgname, ':', CASE "
    f"WHEN pg_catalog.bool_or(of_it.oid IS NULL) THEN '{INCOMPLETE}' "
    "ELSE pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat(relative.oid::"
    "pg_catalog.oid, '.', of_it.oid, '.', of_it.xmin, '.', place.xmin), ' ' "
    "ORDER BY relative.oid::pg_catalog.oid)) END) AS made "
    f"{OWN_TRIGGERS} LEFT JOIN pg_inherits place "
    "ON place.inhrelid = relative.oid::pg_catalog.oid WHERE of_it.oid IS NOT NULL "
    f"OR {WAS_WRITTEN.format(of='relative.oid')} GROUP BY given.name, t.tgname"
)


class PartitionTriggers(PostgreSQLTriggerSQL):
    """Finds and creates the triggers of a partitioned table's relatives."""

    def with_partitions(
        self, present: Mapping[str, Collection[str]]
    ) -> Mapping[str, Collection[str]]:
        """Asks the server only if a table has partitions or is one."""
        tables = [
            table
            for table, triggers in present.items()
            if any(made.endswith(f":{PARTITIONED}") for made in triggers)
        ]
        if not tables:
            return present
        found: dict[str, list[str]] = {table: [] for table in tables}
        with self.connection.cursor() as cursor:
            cursor.execute(
                WITH_PARTITIONS.format(given=GIVEN), [*self._names(tables), *self.NAME_PATTERN]
            )
            for table, made in cursor.fetchall():
                found[table].append(made)
        return {**present, **found}

    def present_sql(self, table: str, *, in_parts: bool) -> SQL:
        """Planning the query for partitions takes longer than the rest."""
        if not in_parts:
            return super().present_sql(table, in_parts=False)
        given = f"(SELECT {table} AS name, {quoted_sql(table)} AS quoted) given"
        return SQL(
            f"(SELECT pg_catalog.string_agg(relatives.made, ' ') "
            f"FROM ({WITH_PARTITIONS.format(given=given)}) relatives)",
            tuple(self.NAME_PATTERN),
        )

    def tables_in_parts(self, tables: Collection[str]) -> set[str]:
        with self.connection.cursor() as cursor:
            cursor.execute(
                f"SELECT given.name FROM {GIVEN} WHERE pg_catalog.pg_partition_root("
                "pg_catalog.to_regclass(given.quoted)) IS NOT NULL",
                self._names(tables),
            )
            return {name for (name,) in cursor.fetchall()}

    def lacking(self, tables: Collection[str]) -> dict[str, list[str]]:
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT DISTINCT given.name, (SELECT pg_catalog.format('%%I.%%I', n.nspname, "
                "c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                f"WHERE c.oid = relative.oid::pg_catalog.oid) {OWN_TRIGGERS.format(given=GIVEN)} "
                "WHERE of_it.oid IS NULL ORDER BY 1, 2",
                [*self._names(tables), *self.NAME_PATTERN],
            )
            found: dict[str, list[str]] = {}
            for table, partition in cursor.fetchall():
                found.setdefault(table, []).append(partition)
            return found

    def fill(self, table: str, spec: TriggerSpec, lacking: Collection[str]) -> list[str]:
        return [
            statement
            for name in sorted(self.names(table, spec))
            for partition in lacking
            for statement in self._triggers(name, name.rpartition("_")[2], partition, "'relative'")
        ]

    def were_written(self, partitions: Collection[str]) -> bool:
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT EXISTS (SELECT 1 FROM unnest(%s::pg_catalog.text[]) given (name) WHERE "
                f"{WAS_WRITTEN.format(of='given.name::pg_catalog.regclass')})",
                [list(partitions)],
            )
            return bool(cursor.fetchone()[0])

    def create(self, table: str, spec: TriggerSpec) -> list[str]:
        """Also on the relatives, which are no part of the version: they come and go."""
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname) "
                "FROM pg_catalog.to_regclass(%s) own CROSS JOIN LATERAL "
                f"{RELATIVES.format(of='own')} relative (oid) "
                "JOIN pg_class c ON c.oid = relative.oid::pg_catalog.oid "
                "JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE c.oid <> own::pg_catalog.oid ORDER BY 1",
                [regclass(self.name(table))],
            )
            relatives = [name for (name,) in cursor.fetchall()]
        return [*super().create(table, spec), *self.fill(table, spec, relatives)]

    def _names(self, tables: Collection[str]) -> tuple[list[str], list[str]]:
        """Names as they are given, and quoted; without those that no table can have."""
        found = [table for table in tables if regclass(self.name(table))]
        return found, list(map(self.name, found))
