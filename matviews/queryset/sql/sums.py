"""The sums of an additive view: what rows give to groups, and the view's rows from that."""

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

from django.db.models import Aggregate

from ...databases import Dialect, SumTables, staging_of, sums_of
from ...databases.base.sums import ENTRY, ROWS_KEPT, WEIGHT, count_name, sum_name
from ...databases.fields import NUMBER, WHOLE, AnyField, Column, family
from ...databases.sql import SQL, joined
from ..analysis.aggregates import COUNT, SUM, Added, places_of_column, replaced
from ..analysis.source import Source
from ..strategy.additive import Additive
from .readers import StageReader, as_stored

__all__ = ["GroupSums", "SumsReader"]

OWN_COLUMNS = (ENTRY, WEIGHT)  # of a value log
Described = Mapping[tuple[str, str], tuple[str, str]]  # as `Dialect.columns` returns it
KEPT = "matviews_kept"  # alias of the view's rows, made from the sums


class GroupSums:
    """The SQL of an additive view's sums.

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
    def columns(self) -> list[str]:
        """The columns of the table of sums, quoted, those of the key first."""
        return [*self.key, *self.numbers]

    @cached_property
    def numbers(self) -> list[str]:
        """The columns that are added up."""
        names = [ROWS_KEPT]
        for number, each in enumerate(self.additive.added):
            names += [count_name(number), *([sum_name(number)] if each.summed else [])]
        return names

    @property
    def log_columns(self) -> list[str]:
        """The columns of the value log with values, quoted."""
        return [self.dialect.name(column) for column in self.additive.columns]

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
            if numeric and self.tables.is_finer(kind, places_of_column(fields[column])):
                return f"{table}.{column} is {kind} in the database, unlike in the model"
        return ""

    def fit(self) -> bool:
        """Whether both tables are there, with the columns that `create` would give them."""
        found, sums = self._described(), self.additive.sums
        log = {name: kind for (table, name), kind in found.items() if table == self.additive.log}
        in_sums = {name for table, name in found if table == sums}
        numbers = [*(field.column for field in self._key_fields), *self.numbers]
        return (
            {name: kind for name, kind in log.items() if name not in OWN_COLUMNS}
            == self._logged(found)
            and in_sums == set(numbers)
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

    def _logged(self, found: Described) -> dict[str, tuple[str, str]]:
        """The types and collations of the value log's columns with values."""
        table = self.additive.model._meta.db_table
        of_table = {column: found.get((table, column)) for column in self.additive.columns}
        return {
            column: (self.tables.unlimited(described[0]), described[1])
            for column, described in of_table.items()
            if described
        }

    def totals(self, rows: str = "") -> SQL:
        """A query for what rows give to their groups, as the columns of the table of sums.

        Args:
            rows: SQL with the rows of a value log and their weights; "" for the source itself.
        """
        values = [f"{self.tables.whole(f'SUM({WEIGHT})' if rows else 'COUNT(*)')} AS {ROWS_KEPT}"]
        for number, each in enumerate(self.additive.added):
            values += self._totals_of(each, number, weighted=bool(rows))
        given, key = self._given(rows), ", ".join(self.key)
        keyed = " AND ".join(f"{name} IS NOT NULL" for name in self.key)
        return SQL(
            f"SELECT {key}, {', '.join(values)} FROM ({given.text}) matviews_given "
            f"WHERE {keyed} GROUP BY {key}",
            given.params,
        )

    def _totals_of(self, added: Added, number: int, *, weighted: bool) -> list[str]:
        whole, exact = self.tables.whole, partial(self.tables.exact, places=added.places)
        count, total = count_name(number), sum_name(number)
        counted = f"SUM({count} * {WEIGHT})" if weighted else f"SUM({count})"
        found = [f"{whole(counted)} AS {count}"]
        if added.summed:
            summed = f"SUM({exact(total)} * {WEIGHT})" if weighted else f"SUM({total})"
            found.append(f"{exact(f'COALESCE({summed}, 0)')} AS {total}")
        return found

    def _given(self, rows: str) -> SQL:
        """A query for what each row gives: the key as it is stored, and numbers."""
        key = [
            joined(" AS ", (as_stored(column, name, self.dialect), SQL(name)))
            for column, name in zip(self.source.key, self.key, strict=True)
        ]
        stored, raw = joined(", ", key), self._raw(rows)
        return SQL(
            f"SELECT {stored.text}, {', '.join([WEIGHT, *self.numbers[1:]])} "
            f"FROM ({raw.text}) matviews_raw",
            (*stored.params, *raw.params),
        )

    def _raw(self, rows: str) -> SQL:
        query = self.source.query
        values = [
            SQL(f"{text} AS {name}", params)
            for column, name in zip(self.source.key, self.key, strict=True)
            for text, params in [query.compile_expression(column.expression)]
        ]
        for number, each in enumerate(self.additive.added):
            values += self._numbers_of(each, number)
        values.append(SQL(f"{WEIGHT if rows else 1} AS {WEIGHT}"))
        table = self.dialect.name(self.additive.model._meta.db_table)
        of_rows, _of_groups = query.conditions
        where = SQL("")
        if of_rows is not None:
            text, params = query.compile_condition(of_rows)
            where = SQL(f" WHERE {text}", params)
        selected = joined(", ", values)
        return SQL(
            f"SELECT {selected.text} FROM {rows and f'{rows} '}{table}{where.text}",
            (*selected.params, *where.params),
        )

    def _numbers_of(self, added: Added, number: int) -> list[SQL]:
        """How many values a row has, 0 or 1, and which number it adds."""
        query, applies, value = self.source.query, list[SQL](), SQL("")
        if added.condition is not None:
            text, params = query.compile_condition(added.condition)
            applies.append(SQL(f"({text})", params))
        counted = [*applies]
        if added.argument is not None:
            value = SQL(*query.compile_expression(added.argument))
            counted.append(SQL(f"({value.text}) IS NOT NULL", value.params))
        when = joined(" AND ", counted)
        one = SQL(
            f"CASE WHEN {when.text} THEN 1 ELSE 0 END AS {count_name(number)}", when.params
        )  # fmt: skip
        if not added.summed:
            return [one]
        if applies:
            [when] = applies
            params = (*when.params, *value.params)
            value = SQL(f"CASE WHEN {when.text} THEN {value.text} END", params)
        return [one, SQL(f"{value.text} AS {sum_name(number)}", value.params)]

    def rows(self, sums: str) -> SQL:
        """A query for the rows of the view, from the table of sums, as they will be stored."""
        raw = joined(", ", (self._kept(column) for column in self.source.columns))
        names = self.dialect.names([column.field for column in self.source.columns])
        stored = joined(
            ", ",
            (
                SQL(name)
                if column in self.source.key
                else joined(" AS ", (as_stored(column, name, self.dialect), SQL(name)))
                for column, name in zip(self.source.columns, names, strict=True)
            ),
        )
        hidden = self._having()
        return SQL(
            f"SELECT {stored.text} FROM (SELECT {raw.text} FROM {self.dialect.name(sums)} "
            f"WHERE {ROWS_KEPT} > 0{hidden.text}) matviews_sums",
            (*stored.params, *raw.params, *hidden.params),
        )

    def _having(self) -> SQL:
        """The condition on groups: those that it hides have sums all the same."""
        _of_rows, condition = self.source.query.conditions
        if condition is None:
            return SQL("")
        text, params = self.source.query.compile_condition(replaced(condition, self._known))
        return SQL(f" AND ({text})", params)

    def _kept(self, column: Column) -> SQL:
        """A column of the source, computed from the sums."""
        [name] = self.dialect.names([column.field])
        if column in self.source.key:
            return SQL(name)
        expression = replaced(column.expression, self._known)
        text, params = self.source.query.compile_expression(expression)
        return SQL(f"{text} AS {name}", params)

    def _known(self, part: Any) -> str:
        """What an aggregate returns; "" if the part is none."""
        if not isinstance(part, Aggregate):
            return ""
        kind, number = self.additive.returned[self.source.query.compile_expression(part)]
        if number is None:
            return ROWS_KEPT
        count, total = count_name(number), sum_name(number)
        if kind == COUNT:
            return count
        mean = self.tables.mean(total, count, self.additive.added[number].places)
        return f"(CASE WHEN {count} > 0 THEN {total if kind == SUM else mean} END)"

    def differing(self, log: str, sums: str) -> SQL:
        """A query for how many groups differ between the sums with what is logged, and the source.

        One statement sees one snapshot.
        """
        table, columns = self.dialect.name(sums), ", ".join(self.columns)
        minus = ", ".join([*self.key, *(f"-{name} AS {name}" for name in self.numbers)])
        logged = self.totals(f"(SELECT * FROM {self.dialect.name(log)})")
        of_source = self.totals()
        sums_of_each = ", ".join(f"SUM({name}) AS {name}" for name in self.numbers)
        differs = " OR ".join(f"{name} <> 0" for name in self.numbers)
        return SQL(
            f"SELECT COUNT(*) FROM (SELECT {', '.join(self.key)}, {sums_of_each} FROM "
            f"(SELECT {columns} FROM {table} UNION ALL SELECT * FROM ({logged.text}) matviews_log "
            f"UNION ALL SELECT {minus} FROM ({of_source.text}) matviews_source) matviews_each "
            f"GROUP BY {', '.join(self.key)}) matviews_groups WHERE {differs}",
            (*logged.params, *of_source.params),
        )


class SumsReader(StageReader):
    """Reads the rows of the view from its sums.

    Args:
        sums: the SQL of the sums.
        table: the name of the table of sums.
    """

    def __init__(self, sums: GroupSums, table: str) -> None:
        super().__init__(sums.source, sums.dialect, table=KEPT)
        rows = sums.rows(table)
        self.table = SQL(f"({rows.text}) {KEPT}", rows.params)
        self.is_stored = False
