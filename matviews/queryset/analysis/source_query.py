"""What a queryset consists of.

With `expressions` and `tables`, the only module that reads Django's internals: `Query` with its
select list, joins and grouping, the compiler's `as_sql`, and the converters of fields.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db import connections
from django.db.models import Expression, QuerySet
from django.db.models.expressions import Col, RawSQL, Ref
from django.db.models.query import ValuesIterable
from django.db.models.sql import Query
from django.db.models.sql.constants import LOUTER
from django.db.models.sql.datastructures import BaseTable, Join
from django.db.models.sql.where import ExtraWhere, WhereNode
from django.utils.functional import Promise

from ...databases.fields import AnyField
from ...project_locale import project_locale
from .expressions import conjunction, excludes_null, walk
from .sql_text import plain_name, tables_named, zones_named
from .tables import ALL, JoinedTable, QueryGraph, columns_of, tables_of

__all__ = ["SourceQuery", "from_database"]


class SourceQuery:
    """The query of a `values()` queryset on one database.

    Args:
        rows: the queryset. Its ordering is cleared, unless a slice or DISTINCT ON depends on it.
        using: alias of the database.
    """

    def __init__(self, rows: QuerySet[Any], using: str) -> None:
        chosen_by_order = rows.query.is_sliced or rows.query.distinct_fields
        self.rows = rows if chosen_by_order else rows.order_by()
        self.rows = self.rows.using(using)
        self.using = using

    @property
    def query(self) -> Any:
        """Django's `Query`."""
        return self.rows.query

    @staticmethod
    def is_values(rows: Any) -> bool:
        """Whether a queryset yields dicts."""
        return isinstance(rows, QuerySet) and rows._iterable_class is ValuesIterable

    @cached_property
    def names(self) -> list[str]:
        """The names of the columns, in order."""
        query = self.query
        if query.selected:
            return list(query.selected)
        return [*query.extra_select, *query.values_select, *query.annotation_select]

    @cached_property
    def expressions(self) -> dict[str, Expression]:
        """The expression of each column by name; of a UNION, those of its first query.

        Raises:
            FieldError, NotSupportedError: Django cannot compile the query.
        """
        query = self.query.combined_queries[0] if self.query.combinator else self.query
        with project_locale():
            columns = [column for column, *_rest in self._compiler(query).select]
        return dict(zip(self.names, columns, strict=True))

    def compile(self) -> tuple[str, tuple[Any, ...]]:
        """The SQL, in the project's time zone and language, and its parameters; columns as `names`.

        Cached: every batch needs it several times, for the checks of the source and the
            fingerprint.
        """
        return self._compiled

    @cached_property
    def _compiled(self) -> tuple[str, tuple[Any, ...]]:
        query = self.query.clone()
        # Otherwise a column that only the ordering of a slice needs would be selected too.
        query.subquery = query.is_sliced and not query.combinator
        with project_locale():
            sql, params = query.get_compiler(self.using, elide_empty=False).as_sql()
            params = _evaluated(params)
        if query.combinator or query.is_sliced:
            sql = f"SELECT * FROM ({sql}) matviews_whole"
        return sql, params

    def restricted(self, condition: Any) -> "SourceQuery":
        """The same query with a condition on rows, before they are grouped."""
        return SourceQuery(self.rows.filter(condition), self.using)

    def keys_only(self, names: Sequence[str]) -> "SourceQuery":
        """The same query with some of the columns, in the given order.

        Tables that are only joined for other columns are dropped, unless a condition on groups
        needs them; rows may repeat less often then.
        """
        rows = self.rows.values(*names)
        query: Any = rows.query
        _where, having, _qualify = query.where.split_having_qualify(must_group_by=False)
        if having is None and not query.annotation_select.keys() - set(names):
            used = {column.alias for column in walk(query) if isinstance(column, Col)}
            for alias, table in reversed(query.alias_map.items()):
                if alias in used or not isinstance(table, Join) or table.join_type != LOUTER:
                    used.add(table.parent_alias)
                else:
                    query.alias_refcount[alias] = 0
        return SourceQuery(rows, self.using)

    def ungrouped(self, names: Sequence[str]) -> "SourceQuery":
        """Some of the columns of the rows before they are grouped, whatever HAVING does."""
        rows = self.rows.values(*names)
        query: Any = rows.query
        grouped = query.group_by is not None
        where, _having, _qualify = query.where.split_having_qualify(must_group_by=grouped)
        query.where, query.group_by = where or WhereNode(), None
        return SourceQuery(rows.distinct(), self.using).keys_only(names)

    def compile_expression(
        self, expression: Any, aliases: Mapping[str, str] | None = None
    ) -> tuple[str, tuple[Any, ...]]:
        """The SQL of an expression of this query, with its tables renamed, and its parameters."""
        renamed = expression.relabeled_clone(aliases) if aliases else expression
        with project_locale():
            sql, params = self._compiler(self.query).compile(renamed)
            return sql, _evaluated(params)

    def compile_condition(self, condition: Any) -> tuple[str, tuple[Any, ...]]:
        """The SQL of a condition on rows, and its parameters."""
        try:
            return self.compile_expression(condition)
        except EmptyResultSet:
            return "0 = 1", ()
        except FullResultSet:
            return "1 = 1", ()

    @cached_property
    def conditions(self) -> tuple[Any | None, Any | None]:
        """Its condition on rows, and its condition on groups; None if there is none."""
        where: Any = self.query.where
        of_rows, of_groups, _ = where.split_having_qualify(must_group_by=self.grouped)
        return of_rows, of_groups

    def with_join_condition(self, alias: str, condition: Any) -> "SourceQuery":
        """The same query with another condition on the rows that are joined as `alias`."""
        rows = self.rows.all()
        join: Any = rows.query.alias_map[alias]
        joined = join.relabeled_clone({})
        conditions: list[Any] = [condition, *filter(None, [join.filtered_relation])]
        joined.filtered_relation = WhereNode(conditions)
        rows.query.alias_map[alias] = joined
        return SourceQuery(rows, self.using)

    @property
    def union(self) -> bool:
        """Whether it combines several queries."""
        return bool(self.query.combinator)

    @property
    def sliced(self) -> bool:
        """Whether it takes only some of its rows, by their order."""
        return bool(self.query.is_sliced)

    @property
    def distinct(self) -> bool:
        """Whether it has DISTINCT."""
        return bool(self.query.distinct)

    @property
    def distinct_on(self) -> bool:
        """Whether it has DISTINCT ON."""
        return bool(self.query.distinct_fields)

    @property
    def has_extra(self) -> bool:
        """Whether it contains SQL from `QuerySet.extra`."""
        return bool(self.query.extra or self.query.extra_tables)

    @property
    def has_raw_sql(self) -> bool:
        """Whether it contains SQL that Django does not interpret."""
        raw = (RawSQL, ExtraWhere)
        return self.has_extra or any(isinstance(part, raw) for part in self.walk())

    @property
    def locks(self) -> bool:
        """Whether it locks the rows that it reads."""
        return bool(self.query.select_for_update)

    @cached_property
    def parts(self) -> list[tuple[str, Any]]:
        """Its parts: what a person calls each, and its expression or query."""
        if self.query.combinator:
            queries = enumerate(self.query.combined_queries, 1)
            return [(f"query {number} of the {self.query.combinator}", q) for number, q in queries]
        columns = [
            (f"the column {name}", expression) for name, expression in self.expressions.items()
        ]
        conditions = [("the filter", self.query.where)]
        if not self.query.is_sliced:
            return [*columns, *conditions]
        compiler = self._compiler(self.query)
        return [*columns, *conditions, *(("the ordering", by) for by, _ in compiler.get_order_by())]

    def part_with_table(self, table: str) -> str:
        """What a person calls the part that reads a table in a subquery; "a join" if none does."""
        for name, part in self.parts:
            queries = (node for node in (part, *walk(part)) if isinstance(node, Query))
            if any(joined.table == table for query in queries for joined in tables_of(query)):
                return name
        return "a join"

    def parameters(self, part: Any) -> tuple[Any, ...]:
        """The parameters of one of the parts."""
        try:
            with project_locale():
                return _evaluated(self._compiler(self.query).compile(part)[1])
        except (EmptyResultSet, FullResultSet):
            return ()

    @cached_property
    def unknown(self) -> str:
        """What may read tables that cannot be found here, for a person; "" if nothing does."""
        for query in (self.query, *(part for part in self.walk() if isinstance(part, Query))):
            if type(query) is not Query:
                return (
                    f"its query is a {type(query).__name__}, which may read more than Django's own"
                )
            joins = (type(join) for join in query.alias_map.values())
            if other := next((kind for kind in joins if kind not in (BaseTable, Join)), None):
                return f"a join is a {other.__name__}, which may read more than Django's own"
        return ""

    def never_null(self) -> set[tuple[str, str | None]]:
        """The columns, as `(alias, column)`, that its filter requires to have a value."""
        lookups = (lookup for lookup in conjunction(self.query.where) if excludes_null(lookup))
        columns = (getattr(lookup, "lhs", None) for lookup in lookups)
        return {
            (column.alias, column.target.column) for column in columns if isinstance(column, Col)
        }

    def zones(self) -> set[str]:
        """The time zones that it converts times to on MariaDB and MySQL."""
        return zones_named(*self.compile())

    def other_tables(self) -> set[str]:
        """Tables in its SQL that Django does not know it reads."""
        return tables_named(self.compile()[0]) - {plain_name(table) for table in self.all_tables()}

    def _compiler(self, query: Any) -> Any:
        compiler = query.clone().get_compiler(self.using, elide_empty=False)
        compiler.setup_query()
        return compiler

    @property
    def has_window(self) -> bool:
        """Whether it has a window function outside subqueries."""
        own = [*self.expressions.values(), *self.query.where.children]
        return any(getattr(expression, "contains_over_clause", False) for expression in own)

    @property
    def grouped(self) -> bool:
        """Whether its rows are groups."""
        return self.query.group_by is not None

    @property
    def grouping(self) -> list[Any] | None:
        """The expressions that rows are grouped by; None if they are not grouped."""
        if self.query.group_by is None:
            return None
        given: Any = () if self.query.group_by is True else self.query.group_by
        explicit = [
            self.query.annotations[expression.refs]  # type: ignore[attr-defined]
            if isinstance(expression, Ref)
            else expression
            for expression in given
        ]
        selected = [
            column
            for expression in self.expressions.values()
            if not expression.contains_aggregate
            for column in expression.get_group_by_cols()
        ]
        return [*explicit, *selected]

    @property
    def tables(self) -> list[JoinedTable]:
        """The tables that it reads outside subqueries, the first table first."""
        return list(tables_of(self.query))

    def all_tables(self) -> set[str]:
        """The names of all tables that Django knows it reads, including those of subqueries."""
        queries = [self.query, *(part for part in self.walk() if isinstance(part, Query))]
        return {table.table for query in queries for table in tables_of(query)}

    def columns_read(self) -> dict[str, set[str] | None]:
        """The columns of each table that decide about its rows.

        None stands for all columns. A table has no columns if only the number of its rows counts.
        """
        read: dict[str, set[str] | None] = {}
        for table, column in columns_of(self.query, self.using, ()):
            known = read.setdefault(table, set())
            if column is ALL:
                read[table] = None
            elif column and known is not None:
                known.add(column)
        return read

    def graph(self) -> QueryGraph:
        """The tables that it and its subqueries read, and which of their columns are equal."""
        return QueryGraph(self.query, self.using)

    def walk(self) -> Iterator[Any]:
        """Every expression and subquery in it, at any depth."""
        yield from walk(self.query)


def _evaluated(params: Iterable[Any]) -> tuple[Any, ...]:
    """Parameters without lazy texts, which would depend on the active language."""
    return tuple(
        param._proxy____cast()  # type: ignore[attr-defined]
        if isinstance(param, Promise)
        else param
        for param in params
    )


def from_database(field: AnyField, value: Any, using: str) -> Any:
    """A value as the database's driver returned it, as Python has it."""
    connection: Any = connections[using]
    column = field.get_col(field.model._meta.db_table)
    converters = [
        *connection.ops.get_db_converters(column),
        *column.get_db_converters(connection),
    ]
    for convert in converters:
        value = convert(value, column, connection)
    return value
