"""The tables of an additive view: their columns, and whether the database's tables match them."""

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
from ...databases.fields import NUMBER, WHOLE, AnyField, family, field_of_column
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
        """Why the columns of the source's tables cannot be added up exactly; "" if they can be.

        The models may differ from the database.
        """
        found = self._described()
        for table, log in self.additive.logs.items():
            for column in log.columns:
                if (table, column) not in found:
                    return f"{table} has no column {column}"
                field, kind = field_of_column(table, column), found[table, column][0]
                numeric = field is not None and family(field) in (WHOLE, NUMBER)
                if not self.tables.accepts(kind, places_of_column(field) if numeric else None):
                    return f"{table}.{column} is {kind} in the database, unlike in the model"
        if hiding := self.tables.hides_rows(self.additive.logs):
            return f"{hiding} has row security, but a value log has the rows of all roles"
        return self.ambiguous()

    def ambiguous(self) -> str:
        """Which key of a lookup, or of the rows that have lookups, may occur twice; "" if none.

        Models may say that a column is unique, though no index of the database ensures it.
        """
        keys = [(each.table, [each.key]) for each in self.additive.lookups]
        if keys:
            pk = [field.column or "" for field in self.additive.model._meta.pk_fields]
            keys.append((self.additive.table, pk))
        for table, columns in keys:
            if not self.tables.is_unique(table, columns):
                return f"no unique index of {table} ensures that {', '.join(columns)} is unique"
        return ""

    def fit(self) -> bool:
        """Whether all tables exist, with the columns that they would be created with."""
        found = self._described()
        return self._sums_fit(found) and all(
            self._log_fits(table, found) for table in self.additive.logs
        )

    def may_read(self) -> bool:
        """Whether the role of this connection may read all tables, which exist."""
        return self.tables.may_read(self.names)

    def fit_of(self, table: str) -> bool:
        """Whether the value log of a table fits, and of the aggregated one, the sums too."""
        found = self._described()
        return self._log_fits(table, found) and (
            table != self.additive.table or self._sums_fit(found)
        )

    def _log_fits(self, table: str, found: Described) -> bool:
        log = {
            column: kind
            for (name, column), kind in found.items()
            if name == self.additive.logs[table].name and column not in OWN_COLUMNS
        }
        return log == self._logged(table, found)

    def _sums_fit(self, found: Described) -> bool:
        sums = self.additive.sums
        in_sums = {name for table, name in found if table == sums}
        extremes = {each.name for each in self.columns.extremes}
        keys = {field.column for field in self._key_fields}
        return (
            in_sums == extremes.union(keys, self.columns.numbers)
            and all(
                found[sums, each.name][0] == self._type_of(each, found)
                for each in self.columns.extremes
            )
            and all(
                found.get((sums, column or "")) == found.get((self._view, column or ""))
                for column in (field.column for field in self._key_fields)
            )
        )

    def names_of(self, table: str) -> list[str]:
        """The names of the value log of a table and, for the aggregated one, of that of sums."""
        log = self.additive.logs[table].name
        return [log, self.additive.sums] if table == self.additive.table else [log]

    def create(self, table: str) -> list[str]:
        """Statements that create these tables, in the right schema."""
        name, found = self.dialect.name, self._described()
        log, *sums = (name(self.tables.home(each)) for each in self.names_of(table))
        created, key = [self.tables.create_log(log, self._logged(table, found))], self._key_fields
        for each in sums:
            made = staging_of(self.dialect.using).create(each, self._view, key, key, self.dialect)
            columns = self.tables.columns_of_sums(self.places)
            columns += [
                f"{extreme.name} {self._type_of(extreme, found)} NULL"
                for extreme in self.columns.extremes
            ]
            created += [made, *(f"ALTER TABLE {each} ADD COLUMN {column}" for column in columns)]
        return created

    @property
    def names(self) -> list[str]:
        """The names of all tables of the view's sums."""
        return [self.additive.sums, *(log.name for log in self.additive.logs.values())]

    @property
    def _view(self) -> str:
        return self.source.model._meta.db_table

    @property
    def _key_fields(self) -> list[AnyField]:
        return [column.field for column in self.source.key]

    def _described(self) -> Described:
        return self.dialect.columns([*self.additive.logs, self._view, *self.names])

    def _type_of(self, extreme: Extreme, found: Described) -> str:
        """The type of a column with an extreme: that of the values."""
        argument: Any = self.additive.added[extreme.number].argument
        tables = {each.alias: each.table for each in self.additive.lookups}
        table = tables.get(argument.alias, self.additive.table)
        kind, _collation = found.get((table, argument.target.column), ("", ""))
        return self.tables.unlimited(kind)

    def _logged(self, table: str, found: Described) -> dict[str, tuple[str, str]]:
        """The types and collations of a value log's columns with values."""
        columns = self.additive.logs[table].columns
        of_table = {column: found.get((table, column)) for column in columns}
        return {
            column: (self.tables.unlimited(described[0]), described[1])
            for column, described in of_table.items()
            if described
        }
