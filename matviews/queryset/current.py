"""The rows of a view as of now: those of its table that are right, and the others recomputed."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.db.models import Q, Value

from ..databases import current_of
from ..databases.base.current import Column, Part
from ..databases.fields import AnyField, family, field_of_column
from ..databases.keys import KeyRows
from ..databases.sql import SQL, equal, joined, qualified
from .plan import Plan
from .sql.conditions import KeyRange, inside
from .sql.lookups import keys_of_logged
from .sql.readers import KeyReader, selected, whole

__all__ = ["PARKED", "PENDING", "CurrentRows", "StoredColumns", "stored_columns"]

PENDING = "matviews_pending"  # the part with the keys whose rows are computed
PARKED = "matviews_parked"  # the part with the keys whose rows cannot be computed
ROW = "matviews_row"  # alias of computed rows

#: Types and collations in the database, by table and column.
StoredColumns = Mapping[tuple[str, str], tuple[str, str]]


def stored_columns(plan: Plan) -> StoredColumns:
    """What the database says of the columns whose values a statement reads from JSON."""
    tables = {plan.source.model._meta.db_table, *plan.links}
    return plan.dialect.columns(sorted(tables))


class CurrentRows:
    """Queries for rows of a view, with all columns of its table in the types that these return.

    Args:
        plan: the view's plan, checked.
        stored: what the database says of its columns.
    """

    def __init__(self, plan: Plan, stored: StoredColumns) -> None:
        self.plan, self.dialect, self.source = plan, plan.dialect, plan.source
        self.sql = current_of(plan.dialect.using)
        self.stored = stored
        self.view = self.source.model._meta.db_table
        self.table = self.dialect.name(self.view)
        self.key_names = self.dialect.names(plan.key_fields)
        self.key = [self._column(self.view, field) for field in plan.key_fields]
        self.fields: list[AnyField] = list(self.source.model._meta.concrete_fields)

    def _column(self, table: str, field: AnyField) -> Column:
        column = field.column or ""
        type_name, collation = self.stored.get((table, column), ("", ""))
        return Column(column, family(field), self.dialect.kind_of(field), type_name, collation)

    def of_view(self, condition: SQL) -> SQL:
        """The rows of the view's table under a condition."""
        names = ", ".join(self.dialect.names(self.fields, self.table))
        return SQL(f"SELECT {names} FROM {self.table} WHERE {condition.text}", condition.params)

    def of_parked(self) -> SQL:
        """The rows of the view's table with keys that are parked."""
        key = self.dialect.row(qualified(self.table, self.key_names))
        return SQL(f"{key} IN (SELECT {', '.join(self.key_names)} FROM {PARKED})")

    def not_pending(self) -> SQL:
        """Whether no change of a row of the view's table waits."""
        same = equal(qualified(PENDING, self.key_names), qualified(self.table, self.key_names))
        return SQL(f"NOT EXISTS (SELECT 1 FROM {PENDING} WHERE {same})")

    def computed(self, rows: SQL) -> SQL:
        """Rows that were computed, with what only the view's table has of them, or defaults.

        Args:
            rows: SQL with the rows, for FROM.
        """
        given = {column.field.column for column in self.source.columns}
        names, values, params = self.dialect.names(self.fields), [], list[Any]()
        for field, name in zip(self.fields, names, strict=True):
            if field.column in given:
                _type, collation = self.stored.get((self.view, field.column or ""), ("", ""))
                values.append(f"{self.sql.typed(field, f'{ROW}.{name}', collation)} AS {name}")
                continue
            value = self._kept(field, name)
            values.append(f"{value.text} AS {name}")
            params += value.params
        kept = ""
        if len(given) < len(self.fields):
            same = equal(qualified(self.table, self.key_names), qualified(ROW, self.key_names))
            kept = f" LEFT JOIN {self.table} ON {same}"
        return SQL(
            f"SELECT {', '.join(values)} FROM {rows.text} {ROW}{kept}", (*params, *rows.params)
        )

    def _kept(self, field: AnyField, name: str) -> SQL:
        """A column that the source does not have."""
        column: Any = f"{self.table}.{name}"
        if not field.has_db_default():
            return SQL(column)
        default: Any = field.db_default
        if not hasattr(default, "as_sql"):
            default = Value(default, field)
        text, params = self.source.query.compile_expression(default)
        missing = self.dialect.is_null(f"{self.table}.{self.key_names[0]}")
        return SQL(f"CASE WHEN {missing} THEN {text} ELSE {column} END", params)

    def all_rows(self) -> SQL:
        """The rows of the source, without those of parked keys."""
        if self.plan.strategy.staged and not self.plan.strategy.is_incremental:
            return self._without_parked(whole(self.source, self.dialect))
        columns = KeyReader(self.source, self.dialect).columns
        parked = KeyRange(*columns, dialect=self.dialect, within=self._keys(PARKED))
        query = self.source.query.restricted(~Q(parked))
        return selected(query, self.source, self.source.columns, self.dialect)

    def _without_parked(self, rows: SQL) -> SQL:
        same = equal(qualified(PARKED, self.key_names), qualified(ROW, self.key_names))
        return SQL(
            f"SELECT * FROM ({rows.text}) {ROW} "
            f"WHERE NOT EXISTS (SELECT 1 FROM {PARKED} WHERE {same})",
            rows.params,
        )

    def pending_rows(self) -> SQL:
        """The rows of the source whose keys are pending; only for incremental strategies."""
        return self.plan.key_batch_runner().statements.reader.rows(self._keys(PENDING))

    def _keys(self, part: str) -> KeyRows:
        return KeyRows((), table=part, names=tuple(self.key_names))

    def links(self) -> dict[str, list[Column]]:
        """The columns that lead to keys, by table; without tables that may concern any key."""
        return {
            table: [
                self._linked(table, name)
                for name in sorted({name for link in links for name in link.columns})
            ]
            for table, links in self.plan.links.items()
            if not any(link.dependency for link in links)
        }

    def _linked(self, table: str, column: str) -> Column:
        field = field_of_column(table, column)
        assert field is not None  # its type is known, or it would not be logged
        return self._column(table, field)._replace(name=column)

    def linked(self) -> tuple[list[Part], list[SQL]]:
        """Queries for the keys that waiting changes lead to, and the parts that these need."""
        parts, queries = list[Part](), list[SQL]()
        for table, names in self.links().items():
            by_name = {column.name: column for column in names}
            for link in self.plan.links[table]:
                logged = self.sql.logged(table, [by_name[name] for name in link.columns])
                numbers = link.parts(len(self.key))
                found = keys_of_logged(link, logged, numbers, self.source, self.dialect)
                parts.append(Part(f"matviews_part{len(parts)}", [], found, is_shared=False))
                if link.key_part is not None:
                    of_view, of_source = self._with_part(parts[-1].name, link.key_part)
                    parts.append(Part(f"matviews_part{len(parts)}", [], of_source, is_shared=False))
                    queries.append(of_view)
                queries.append(SQL(f"SELECT {', '.join(self.key_names)} FROM {parts[-1].name}"))
        return parts, queries

    def _with_part(self, part: str, number: int) -> tuple[SQL, SQL]:
        """The keys of the view and of the source with these values in a part of the key."""
        name = self.key_names[number]
        values = KeyRows((), table=part, names=(name,))
        among = inside(self.dialect, [f"{self.table}.{name}"], values)
        key = ", ".join(qualified(self.table, self.key_names))
        of_source = KeyReader(self.source, self.dialect).keys_with(number, values)
        return SQL(f"SELECT {key} FROM {self.table} WHERE {among.text}"), of_source

    def pending(self, queries: Sequence[SQL]) -> SQL:
        """The query of `PENDING`: the keys that some queries find, without those that are parked.

        The first one gives them the types of the view's columns.
        """
        key = ", ".join(self.key_names)
        either = joined(" UNION ", [SQL(f"SELECT {key} FROM {self.table} WHERE 1 = 0"), *queries])
        known = " AND ".join(f"{name} IS NOT NULL" for name in self.key_names)
        same = equal(
            qualified(PARKED, self.key_names), qualified("matviews_waiting", self.key_names)
        )
        return SQL(
            f"SELECT {key} FROM ({either.text}) matviews_waiting "
            f"WHERE {known} AND NOT EXISTS (SELECT 1 FROM {PARKED} WHERE {same})",
            either.params,
        )
