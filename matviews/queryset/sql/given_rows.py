"""What rows of an additive view's source contribute to their groups: keys, numbers, and a weight.

The contribution of a row depends on its lookups. The sums were computed, or last added to, with the
lookups as they were then. So entries of the aggregated table are added with these old lookups; then
each row behind a changed lookup is subtracted with the old lookup, and added with the new one.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from django.db.models.expressions import Col

from ...databases.base.sums import WEIGHT, count_name, sum_name
from ...databases.fields import WHOLE, family, field_of_column
from ...databases.keys import Keys
from ...databases.sql import SQL, joined
from ..analysis.aggregates import Added, replaced
from .moved_rows import MovedRows
from .readers import KeyReader, as_stored
from .sums_schema import SumsSchema

__all__ = ["GivenRows", "Logged"]


class Logged(NamedTuple):
    """The entries of the value logs, as SQL for FROM."""

    #: The entries of the aggregated table.
    rows: str
    #: Those of the lookups by table; none if it is known that there are none.
    lookups: Mapping[str, str] = {}


class GivenRows(SumsSchema):
    """The SQL of what single rows contribute."""

    #: Whether it computes what may be too large for the types of its columns: nobody may be able to
    #: compute rows that are gone again, and the source does not try.
    is_wide = False

    def given(self, logged: Logged | None = None, within: Keys | None = None) -> SQL:
        """A query for what each row contributes: the key as it is stored, and numbers.

        Args:
            logged: what is logged, with weights; None for the rows of the source.
            within: the keys; None for all.
        """
        key = [
            joined(" AS ", (as_stored(column, name, self.dialect), SQL(name)))
            for column, name in zip(self.source.key, self.key, strict=True)
        ]
        stored, raw = joined(", ", key), joined(" UNION ALL ", self._raw(logged, within))
        parts = ""
        if logged and logged.lookups:
            parts = MovedRows(self.additive, self.tables, self.dialect).parts(*logged)
        return SQL(
            f"{parts}SELECT {stored.text}, {', '.join([WEIGHT, *self._given_names()])} "
            f"FROM ({raw.text}) matviews_raw",
            (*stored.params, *raw.params),
        )

    def _raw(self, logged: Logged | None, within: Keys | None) -> Iterator[SQL]:
        own = self.dialect.name(self.additive.table)
        if logged is None:
            yield self._raw_of(own, "1", {}, within)
        elif not logged.lookups:
            yield self._raw_of(f"{logged.rows} {own}", WEIGHT, {})
        else:
            moved = MovedRows(self.additive, self.tables, self.dialect)
            yield self._raw_of(f"{moved.before} {own}", WEIGHT, moved.lookups)
            yield self._raw_of(f"{moved.concerned} {own}", "1", {})

    def _given_names(self) -> list[str]:
        names = []
        for number, each in enumerate(self.additive.added):
            names += [count_name(number), *([sum_name(number)] if _has_values(each) else [])]
        return names

    def _raw_of(
        self, rows: str, weight: str, lookups: Mapping[str, str], within: Keys | None = None
    ) -> SQL:
        """A query for what rows of the aggregated table contribute, before the key is stored.

        Args:
            rows: SQL with the rows, under the name of the table.
            weight: their weight.
            lookups: what stands in place of the tables of lookups, by alias.
            within: the keys; None for all.
        """
        query = KeyReader(self.source, self.dialect).among(within) if within else self.source.query
        of_rows, _of_groups = query.conditions
        where = SQL("")
        if of_rows is not None:
            text, params = query.compile_condition(of_rows)
            where = SQL(f" WHERE {text}", params)
        values = joined(", ", [*self._values, SQL(f"{weight} AS {WEIGHT}")])
        return SQL(
            f"SELECT {values.text} FROM {rows}{self._joined(lookups)}{where.text}",
            (*values.params, *where.params),
        )

    def _joined(self, lookups: Mapping[str, str]) -> str:
        joins = ""
        for each, (name, condition) in zip(self.additive.lookups, self._joins, strict=True):
            kind = "LEFT OUTER JOIN" if each.outer else "INNER JOIN"
            table = lookups.get(each.alias) or self.dialect.name(each.table)
            joins += f" {kind} {table} {name} ON {condition}"
        return joins

    @cached_property
    def _joins(self) -> list[tuple[str, str]]:
        """The name under which each lookup is joined, and by which condition."""
        found, tables = [], {each.alias: each.table for each in self.additive.lookups}
        for each in self.additive.lookups:
            near = self._column(each.parent, tables.get(each.parent, each.parent), each.column)
            far = self._column(each.alias, each.table, each.key)
            name = far.removesuffix(f".{self.dialect.name(each.key)}")
            found.append((name, f"{near} = {far}"))
        return found

    def _column(self, alias: str, table: str, column: str) -> str:
        """A column as the query itself names it, which may not quote its aliases."""
        field = field_of_column(table, column)
        assert field is not None
        return self.source.query.compile_expression(Col(alias, field))[0]

    @cached_property
    def _values(self) -> list[SQL]:
        """What a row contributes: the parts of the key, as computed, and numbers."""
        values = [
            SQL(f"{text} AS {name}", params)
            for column, name in zip(self.source.key, self.key, strict=True)
            for text, params in [self.source.query.compile_expression(column.expression)]
        ]
        for number, each in enumerate(self.additive.added):
            values += self._numbers_of(each, number)
        return values

    def _numbers_of(self, added: Added, number: int) -> list[SQL]:
        """How many values a row has, 0 or 1, and which one."""
        query, applies, value = self.source.query, list[SQL](), SQL("")
        if added.condition is not None:
            text, params = query.compile_condition(added.condition)
            applies.append(SQL(f"({text})", params))
        counted = [*applies]
        if added.argument is not None:
            value = SQL(*query.compile_expression(self._argument(added.argument)))
            counted.append(SQL(f"({value.text}) IS NOT NULL", value.params))
        when = joined(" AND ", counted)
        one = SQL(
            f"CASE WHEN {when.text} THEN 1 ELSE 0 END AS {count_name(number)}", when.params
        )  # fmt: skip
        if not _has_values(added):
            return [one]
        if applies:
            [when] = applies
            params = (*when.params, *value.params)
            value = SQL(f"CASE WHEN {when.text} THEN {value.text} END", params)
        return [one, SQL(f"{value.text} AS {sum_name(number)}", value.params)]

    def _argument(self, argument: Any) -> Any:
        if not self.is_wide or isinstance(argument, Col):
            return argument
        return replaced(argument, self._wide)

    def _wide(self, part: Any) -> str:
        """A column of whole numbers in a type that holds its sums and products; "" for others."""
        if not isinstance(part, Col) or family(part.target) != WHOLE:
            return ""
        return self.tables.wide(self.source.query.compile_expression(part)[0])


def _has_values(added: Added) -> bool:
    return added.summed or bool(added.extremes)
