"""The tables of an additive view: their columns, and whether they are as they should be."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from ...databases import Dialect, SumTables, staging_of, sums_of
from ...databases.base.sums import (
    ENTRY,
    ROWS_KEPT,
    WEIGHT,
    Extreme,
    SumColumns,
    count_name,
    sum_name,
)
from ...databases.fields import NUMBER, WHOLE, AnyField, family
from ..analysis.aggregates import LARGEST, places_of_column
from ..analysis.columns import exact_values
from ..analysis.source import Source
from ..strategy.additive import Additive

__all__ = ["SumsSchema"]

OWN_COLUMNS = (ENTRY, WEIGHT)  # of a value log
Described = Mapping[tuple[str, str], tuple[str, str]]  # as `Dialect.columns` returns it


class SumsSchema:
    """The tables of an additive view, and their columns.

    Args:
        source: the view's source.
        additive: what is kept of it.
        dialect: the SQL dialect of its database.
    """

    def __init__(self, source: Source, additive: Additive, dialect: Dialect) -> None:
        self.source, self.additive, self.dialect = source, additive, dialect
        self.tables: SumTables = sums_of(dialect.using)
        self.key = dialect.names([column.field for column in source.key])
        self.places = [each.places if each.summed else None for each in additive.added]

    @cached_property
    def columns(self) -> SumColumns:
        """The columns of the table of sums."""
        return SumColumns(self.key, self._numbers(), self._extremes())

    def _numbers(self) -> list[str]:
        names = [ROWS_KEPT]
        for number, each in enumerate(self.additive.added):
            names += [count_name(number), *([sum_name(number)] if each.summed else [])]
        return names

    def _extremes(self) -> list[Extreme]:
        return [
            Extreme(number, is_largest=kind == LARGEST)
            for number, each in enumerate(self.additive.added)
            for kind in sorted(each.extremes)
        ]

    @property
    def log_columns(self) -> list[str]:
        """The columns of the value log with values, quoted."""
        return [self.dialect.name(column) for column in self.additive.columns]

    @property
    def exact_key(self) -> list[str]:
        """The columns of the key as exact values, of the keys that a query finds."""
        fields = [column.field for column in self.source.key]
        return exact_values(fields, "matviews_found", self.dialect)

    @property
    def changed(self) -> str:
        """Whether rows to be added change the sums of their group."""
        of_numbers = [f"{name} <> 0" for name in self.columns.numbers]
        return " OR ".join(
            [*of_numbers, *(f"{each.name} IS NOT NULL" for each in self.columns.extremes)]
        )

    def misfit(self) -> str:
        """Why the columns of the source's table cannot be added up exactly; "" if they can be.

        The model may say something else of them than the database.
        """
        table, found = self.additive.model._meta.db_table, self._described()
        fields = {field.column: field for field in self.additive.model._meta.concrete_fields}
        for column in self.additive.columns:
            kind, _collation = found.get((table, column), ("", ""))
            if (table, column) not in found:
                return f"{table} has no column {column}"
            numeric = family(fields[column]) in (WHOLE, NUMBER)
            places = places_of_column(fields[column]) if numeric else None
            if not self.tables.accepts(kind, places):
                return f"{table}.{column} is {kind} in the database, unlike in the model"
        return ""

    def fit(self) -> bool:
        """Whether both tables exist, with the columns that `create` would give them."""
        found, sums = self._described(), self.additive.sums
        log = {name: kind for (table, name), kind in found.items() if table == self.additive.log}
        in_sums = {name for table, name in found if table == sums}
        extremes = {each.name for each in self.columns.extremes}
        keys = {field.column for field in self._key_fields}
        return (
            {name: kind for name, kind in log.items() if name not in OWN_COLUMNS}
            == self._logged(found)
            and in_sums == extremes.union(keys, self.columns.numbers)
            and all(
                found[sums, each.name][0] == self._type_of(each, found)
                for each in self.columns.extremes
            )
            and all(
                found.get((sums, column or "")) == found.get((self._view, column or ""))
                for column in (field.column for field in self._key_fields)
            )
        )

    def create(self) -> list[str]:
        """Statements that create both tables, where they belong."""
        name, found = self.dialect.name, self._described()
        log, sums = (name(self.tables.home(each)) for each in self.names)
        key = self._key_fields
        columns = self.tables.columns_of_sums(self.places)
        return [
            self.tables.create_log(log, self._logged(found)),
            staging_of(self.dialect.using).create(sums, self._view, key, key, self.dialect),
            *(f"ALTER TABLE {sums} ADD COLUMN {column}" for column in columns),
            *(
                f"ALTER TABLE {sums} ADD COLUMN {each.name} {self._type_of(each, found)} NULL"
                for each in self.columns.extremes
            ),
        ]

    @property
    def names(self) -> tuple[str, str]:
        """The names of the value log and of the table of sums."""
        return self.additive.log, self.additive.sums

    @property
    def _view(self) -> str:
        return self.source.model._meta.db_table

    @property
    def _key_fields(self) -> list[AnyField]:
        return [column.field for column in self.source.key]

    def _described(self) -> Described:
        table = self.additive.model._meta.db_table
        return self.dialect.columns([table, self._view, *self.names])

    def _type_of(self, extreme: Extreme, found: Described) -> str:
        """The type of a column with an extreme: that of the values."""
        argument: Any = self.additive.added[extreme.number].argument
        column = argument.target.column
        kind, _collation = found.get((self.additive.model._meta.db_table, column), ("", ""))
        return self.tables.unlimited(kind)

    def _logged(self, found: Described) -> dict[str, tuple[str, str]]:
        """The types and collations of the value log's columns with values."""
        table = self.additive.model._meta.db_table
        of_table = {column: found.get((table, column)) for column in self.additive.columns}
        return {
            column: (self.tables.unlimited(described[0]), described[1])
            for column, described in of_table.items()
            if described
        }
