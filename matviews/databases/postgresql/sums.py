"""The tables of additive views on PostgreSQL."""

import re
from collections.abc import Collection, Sequence
from functools import cached_property

from django.db import connections

from ..base.sums import SumTables, sum_names
from ..base.triggers import CHANGE_LOG
from .staging import PostgreSQLStaging
from .table_names import regclass

__all__ = ["PostgreSQLSumTables"]

LIMIT = re.compile(r"\(.*?\)")  # of characters, digits or fractions of seconds
EXACT_NUMBERS = ("smallint", "integer", "bigint", "numeric")
EXACT_TYPES = (
    *EXACT_NUMBERS, "boolean", "uuid", "text", "character varying", "character", "date",
    "timestamp without time zone", "timestamp with time zone",
)  # fmt: skip
# Other collations may hold apart what the column's takes for equal.
UNIQUE = """
SELECT 1 FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
WHERE i.indrelid = pg_catalog.to_regclass(%s)::pg_catalog.oid AND i.indisunique AND i.indisvalid
  AND i.indpred IS NULL AND i.indexprs IS NULL
  AND (c.relkind = 'p' OR NOT EXISTS (
    SELECT 1 FROM pg_catalog.pg_inherits h WHERE h.inhparent = c.oid))
  AND %s::pg_catalog.text[] = ARRAY(
    SELECT CASE WHEN a.attcollation = i.indcollation[k] THEN a.attname::pg_catalog.text END
    FROM pg_catalog.generate_series(0, i.indnkeyatts - 1) k JOIN pg_catalog.pg_attribute a
      ON a.attrelid = c.oid AND a.attnum = i.indkey[k] ORDER BY 1)
"""

HIDING = """
SELECT c.relname::pg_catalog.text FROM pg_catalog.unnest(%s::pg_catalog.text[]) t (quoted)
JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(t.quoted)::pg_catalog.oid
WHERE c.relrowsecurity ORDER BY 1
"""


class PostgreSQLSumTables(SumTables):
    """Whole numbers are added up as NUMERIC: in BIGINT, AVG would become an integer division."""

    adds_decimals = True
    has_doubts = False
    larger, smaller = "GREATEST", "LEAST"

    def present(self) -> set[str]:
        return set(self._staging.tables(self._schema))

    def may_read(self, names: Sequence[str]) -> bool:
        """The catalog shows everybody all columns."""
        with connections[self.using].cursor() as cursor:
            cursor.execute(
                "SELECT COALESCE(pg_catalog.bool_and(pg_catalog.has_table_privilege("
                "pg_catalog.to_regclass(t.quoted)::pg_catalog.oid, 'SELECT')), FALSE) "
                "FROM pg_catalog.unnest(%s::pg_catalog.text[]) t (quoted)",
                [[self.name(name) for name in names]],
            )
            return bool(cursor.fetchone()[0])

    def home(self, name: str) -> str:
        """The triggers write to the schema of the change log."""
        return self._staging.table(self._schema, name)

    @cached_property
    def _schema(self) -> str:
        return self._staging.home(CHANGE_LOG)

    @property
    def _staging(self) -> PostgreSQLStaging:
        return PostgreSQLStaging(self.using)

    def unlimited(self, kind: str) -> str:
        """An entry must not fail because its column has been widened since."""
        plain = LIMIT.sub("", kind)
        return "bpchar" if plain == "character" else plain  # without a length: a single character

    reserved = ()

    def accepts(self, kind: str, places: int | None) -> bool:
        """NUMERIC has as many digits as needed.

        Without a scale, each number has one of its own: those of numbers that are gone stay in the
        sum, and AVG has as many digits as they ask for. A domain may refuse the NULL of an entry
        without values, and not every type has an equality.
        """
        if places is not None and kind == "numeric":
            return False
        return LIMIT.sub("", kind) in (EXACT_TYPES if places is None else EXACT_NUMBERS)

    def is_unique(self, table: str, columns: Sequence[str]) -> bool:
        """An index that is not valid has not been checked, nor one of a parent for its children.

        A constraint may be deferred: rows that others see have been checked; rows of a lookup that
        a transaction itself has changed are pending in a value log, so it does not use the sums.
        """
        with connections[self.using].cursor() as cursor:
            cursor.execute(UNIQUE, [regclass(self.name(table)), sorted(columns)])
            return cursor.fetchone() is not None

    def hides_rows(self, tables: Collection[str]) -> str:
        """Row security applies to roles that read the source, and not to what triggers log."""
        with connections[self.using].cursor() as cursor:
            cursor.execute(HIDING, [[regclass(self.name(table)) for table in sorted(tables)]])
            return ", ".join(table for (table,) in cursor.fetchall())

    def behind(self, names: Sequence[str], table: str, column: str, changed: str, key: str) -> str:
        """By the index, for each key: PostgreSQL takes the keys to be many, and reads the table."""
        selected = ", ".join(names)
        return (
            f"SELECT matviews_behind.* FROM {changed} CROSS JOIN LATERAL (SELECT {selected} "
            f"FROM {table} WHERE {table}.{column} = {changed}.{key} OFFSET 0) matviews_behind"
        )

    def differs(self, name: str, logged: str) -> str:
        """NaN and Infinity minus themselves are NaN; `suspect` finds what the log cannot remove."""
        not_a_number = f"COUNT(CASE WHEN CAST({name} AS numeric) = 'NaN' THEN 1 END)"
        return f"SUM({name}) NOT IN (0, 'NaN') OR {logged} = 0 AND {not_a_number} = 1"

    #: Entries have no numbers: a sequence would cost the writers more.
    entry = "ctid"

    def sum_type(self, places: int) -> str:
        return "NUMERIC"

    def whole(self, value: str) -> str:
        return f"CAST({value} AS bigint)"

    def exact(self, value: str, places: int) -> str:
        return f"CAST({value} AS numeric)"

    def wide(self, column: str) -> str:
        return f"CAST({column} AS numeric)"

    def mean(self, total: str, count: str, places: int) -> str:
        return f"{total} / {count}"

    def suspect(self, places: Sequence[int | None]) -> str:
        """NaN and Infinity never leave a sum."""
        not_finite = [f"{name} - {name} <> 0" for name in sum_names(places)]
        return " OR ".join([*self._impossible(places), *not_finite])
