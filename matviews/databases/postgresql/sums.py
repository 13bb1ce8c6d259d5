"""The tables of additive views on PostgreSQL."""

import re
from collections.abc import Sequence
from functools import cached_property

from ..base.sums import SumTables, sum_names
from ..base.triggers import CHANGE_LOG
from .staging import PostgreSQLStaging

__all__ = ["PostgreSQLSumTables"]

LIMIT = re.compile(r"\(.*?\)")  # of characters, digits or fractions of seconds
EXACT_NUMBERS = ("smallint", "integer", "bigint", "numeric")
EXACT_TYPES = (
    *EXACT_NUMBERS, "boolean", "uuid", "text", "character varying", "character", "date",
    "timestamp without time zone", "timestamp with time zone",
)  # fmt: skip


class PostgreSQLSumTables(SumTables):
    """Whole numbers are added up as NUMERIC: in BIGINT, AVG would become an integer division."""

    adds_decimals = True
    has_doubts = False
    larger, smaller = "GREATEST", "LEAST"

    def present(self) -> set[str]:
        return set(self._staging.tables(self._schema))

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

        A domain may refuse the NULL of an entry without values, and not every type has an equality.
        """
        return LIMIT.sub("", kind) in (EXACT_TYPES if places is None else EXACT_NUMBERS)

    def behind(self, names: Sequence[str], table: str, column: str, changed: str, key: str) -> str:
        """By the index, for each key: PostgreSQL takes the keys to be many, and reads the table."""
        selected = ", ".join(names)
        return (
            f"SELECT matviews_behind.* FROM {changed} CROSS JOIN LATERAL (SELECT {selected} "
            f"FROM {table} WHERE {table}.{column} = {changed}.{key} OFFSET 0) matviews_behind"
        )

    def differs(self, difference: str) -> str:
        """NaN and Infinity minus themselves are NaN; `suspect` finds those."""
        return f"{difference} NOT IN (0, 'NaN')"

    #: Entries have no numbers: a sequence would cost the writers more.
    entry = "ctid"

    def sum_type(self, places: int) -> str:
        return "NUMERIC"

    def whole(self, value: str) -> str:
        return f"CAST({value} AS bigint)"

    def exact(self, value: str, places: int) -> str:
        return f"CAST({value} AS numeric)"

    def mean(self, total: str, count: str, places: int) -> str:
        return f"{total} / {count}"

    def suspect(self, places: Sequence[int | None]) -> str:
        """NaN and Infinity never leave a sum."""
        not_finite = [f"{name} - {name} <> 0" for name in sum_names(places)]
        return " OR ".join([*self._impossible(places), *not_finite])
