"""What a queryset is made of. The one module here that looks inside Django's `Query`.

Everything private that is used of Django is in this module: `Query` (its select list, joins,
grouping), the compiler's `as_sql`, and the converters of fields.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db import connections
from django.db.models import Exists, Expression, FilteredRelation, Func, QuerySet, Subquery
from django.db.models.expressions import (
    Col,
    OuterRef,
    RawSQL,
    Ref,
    ResolvedOuterRef,
    Value,
    Window,
)
from django.db.models.functions import Coalesce, Extract
from django.db.models.functions.datetime import TruncBase
from django.db.models.lookups import IsNull, Lookup
from django.db.models.query import ValuesIterable
from django.db.models.sql import Query
from django.db.models.sql.constants import LOUTER
from django.db.models.sql.datastructures import BaseTable, Join
from django.db.models.sql.where import AND, ExtraWhere, WhereNode
from django.utils.functional import Promise

from ..databases.fields import AnyField
from ..project_locale import project_locale
from .scan import plain_name, tables_named, zones_named

__all__ = [
    "Edge",
    "Joined",
    "Place",
    "SourceQuery",
    "adds_up",
    "compiled",
    "from_database",
    "is_plainly_computed",
    "is_truncated",
]

Place = tuple[int, str]
Edge = tuple[Place, Place, tuple[tuple[str, str], ...]]
# Classes of Django's, and functions that others may be made of, in lower case.
VOLATILE = {"Now", "Random", "RandomUUID", "TransactionNow", "UUID4", "UUID7"}
VOLATILE_FUNCTIONS = {
    "clock_timestamp", "current_date", "current_time", "current_timestamp", "curdate", "curtime",
    "gen_random_uuid", "last_insert_id", "localtime", "localtimestamp", "nextval", "now", "rand",
    "random", "randomblob", "statement_timestamp", "sysdate", "timeofday", "transaction_timestamp",
    "unix_timestamp", "utc_date", "utc_time", "utc_timestamp", "uuid", "uuid_generate_v1",
    "uuid_generate_v4", "uuidv4", "uuidv7",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Joined:
    """A table of a query.

    Attributes:
        alias: its name in the query.
        table: its name in the database.
        parent: the alias that it is joined to, None for the first table.
        pairs: the columns that are equal, `(of the parent, of this table)`.
        outer: whether rows of the parent that have none here stay.
    """

    alias: str
    table: str
    parent: str | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    outer: bool = False


class SourceQuery:
    """The query of a queryset of `values()`, on one database.

    Args:
        rows: the queryset; its ordering is cleared unless a slice or DISTINCT ON chooses by it.
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
        """The names of the columns, in their order."""
        query = self.query
        if query.selected:
            return list(query.selected)
        return [*query.extra_select, *query.values_select, *query.annotation_select]

    @cached_property
    def expressions(self) -> dict[str, Expression]:
        """What computes each column, by name; of a UNION, in its first query.

        Raises:
            FieldError, NotSupportedError: Django cannot compile the query.
        """
        query = self.query.combined_queries[0] if self.query.combinator else self.query
        with project_locale():
            columns = [column for column, *_rest in self._compiler(query).select]
        return dict(zip(self.names, columns, strict=True))

    def compile(self) -> tuple[str, tuple[Any, ...]]:
        """The SQL, in the project's time zone and language, and its parameters; columns as in `names`.

        The work is done once: each batch asks for the check of the source, the fingerprint and more.
        """
        return self._compiled

    @cached_property
    def _compiled(self) -> tuple[str, tuple[Any, ...]]:
        query = self.query.clone()
        # Else a column that only the ordering of a slice wants would be one too many.
        query.subquery = query.is_sliced and not query.combinator
        with project_locale():
            sql, params = query.get_compiler(self.using, elide_empty=False).as_sql()
            params = _evaluated(params)
        if query.combinator or query.is_sliced:
            sql = f"SELECT * FROM ({sql}) matviews_whole"
        return sql, params

    def restricted(self, condition: Any) -> "SourceQuery":
        """The same with a condition on rows, before they are grouped."""
        return SourceQuery(self.rows.filter(condition), self.using)

    def keys_only(self, names: Sequence[str]) -> "SourceQuery":
        """The same with some of the columns, in the order given.

        Where no condition on groups needs them, tables that were joined for the other columns alone
        are left out; some rows may be there less often then.
        """
        rows = self.rows.values(*names)
        query: Any = rows.query
        _where, having, _qualify = query.where.split_having_qualify(must_group_by=False)
        if having is None and not query.annotation_select.keys() - set(names):
            used = {each.alias for each in _walk(query) if isinstance(each, Col)}
            for alias, table in reversed(query.alias_map.items()):
                if alias in used or not isinstance(table, Join) or table.join_type != LOUTER:
                    used.add(table.parent_alias)
                else:
                    query.alias_refcount[alias] = 0
        return SourceQuery(rows, self.using)

    def ungrouped(self, names: Sequence[str]) -> "SourceQuery":
        """Some of the columns of the rows that are grouped, whatever HAVING makes of their groups."""
        rows = self.rows.values(*names)
        query: Any = rows.query
        grouped = query.group_by is not None
        where, _having, _qualify = query.where.split_having_qualify(must_group_by=grouped)
        query.where, query.group_by = where or WhereNode(), None
        return SourceQuery(rows.distinct(), self.using).keys_only(names)

    def spelt(
        self, expression: Any, aliases: Mapping[str, str] | None = None
    ) -> tuple[str, tuple[Any, ...]]:
        """The SQL of an expression of this query, with other names for its tables, and its parameters."""
        renamed = expression.relabeled_clone(aliases) if aliases else expression
        with project_locale():
            sql, params = self._compiler(self.query).compile(renamed)
            return sql, _evaluated(params)

    def with_join_condition(self, alias: str, condition: Any) -> "SourceQuery":
        """The same with a condition more on the rows that are joined as `alias`."""
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
        """Whether it has SQL of `QuerySet.extra`."""
        return bool(self.query.extra or self.query.extra_tables)

    @property
    def has_raw_sql(self) -> bool:
        """Whether there is SQL in it that Django does not understand."""
        raw = (RawSQL, ExtraWhere)
        return self.has_extra or any(isinstance(each, raw) for each in self.walk())

    @property
    def locks(self) -> bool:
        """Whether it locks the rows that it reads."""
        return bool(self.query.select_for_update)

    @cached_property
    def parts(self) -> list[tuple[str, Any]]:
        """What it is made of: what a person calls a part, and the expression or query that it is."""
        if self.query.combinator:
            queries = enumerate(self.query.combined_queries, 1)
            return [(f"query {number} of the {self.query.combinator}", q) for number, q in queries]
        columns = [(f"the column {name}", each) for name, each in self.expressions.items()]
        conditions = [("the filter", self.query.where)]
        if not self.query.is_sliced:
            return [*columns, *conditions]
        compiler = self._compiler(self.query)
        return [*columns, *conditions, *(("the ordering", by) for by, _ in compiler.get_order_by())]

    def part_with_table(self, table: str) -> str:
        """What a person calls the part that reads a table in a subquery; "a join" if none does."""
        for name, part in self.parts:
            queries = (each for each in (part, *_walk(part)) if isinstance(each, Query))
            if any(each.table == table for query in queries for each in _tables(query)):
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
        """What is in it that may read what cannot be found here, for a person; "" if nothing is."""
        for query in (self.query, *(each for each in self.walk() if isinstance(each, Query))):
            if type(query) is not Query:
                return (
                    f"its query is a {type(query).__name__}, which may read more than Django's own"
                )
            joins = (type(each) for each in query.alias_map.values())
            if other := next((each for each in joins if each not in (BaseTable, Join)), None):
                return f"a join is a {other.__name__}, which may read more than Django's own"
        return ""

    def never_null(self) -> set[tuple[str, str | None]]:
        """The columns that its filter takes no row without, as `(alias, column)`."""
        lookups = (each for each in _conjunction(self.query.where) if _excludes_null(each))
        columns = (getattr(each, "lhs", None) for each in lookups)
        return {(each.alias, each.target.column) for each in columns if isinstance(each, Col)}

    def zones(self) -> set[str]:
        """The time zones that MariaDB and MySQL convert times to in it."""
        return zones_named(*self.compile())

    def other_tables(self) -> set[str]:
        """Names of tables in its SQL beside those that Django knows it reads."""
        return tables_named(self.compile()[0]) - {plain_name(each) for each in self.all_tables()}

    @staticmethod
    def volatile(part: Any) -> list[str]:
        """The functions in a part that give another value each time, by name."""
        found = [part, *_walk(part)]
        bases = {base.__name__ for each in found for base in type(each).__mro__}
        if known := VOLATILE & bases:
            return sorted(known)
        called = {str(_function_of(each)).lower() for each in found if isinstance(each, Func)}
        return sorted(VOLATILE_FUNCTIONS & called)

    def _compiler(self, query: Any) -> Any:
        compiler = query.clone().get_compiler(self.using, elide_empty=False)
        compiler.setup_query()
        return compiler

    @property
    def has_window(self) -> bool:
        """Whether it has a window function at its own level."""
        own = [*self.expressions.values(), *self.query.where.children]
        return any(getattr(each, "contains_over_clause", False) for each in own)

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
            self.query.annotations[each.refs] if isinstance(each, Ref) else each  # type: ignore[attr-defined]
            for each in given
        ]
        selected = [
            column
            for each in self.expressions.values()
            if not each.contains_aggregate
            for column in each.get_group_by_cols()
        ]
        return [*explicit, *selected]

    @property
    def tables(self) -> list[Joined]:
        """The tables that it reads itself, the first table first; not those of its subqueries."""
        return list(_tables(self.query))

    def all_tables(self) -> set[str]:
        """The names of all tables that Django knows it reads, in subqueries too."""
        queries = [self.query, *(each for each in self.walk() if isinstance(each, Query))]
        return {table.table for query in queries for table in _tables(query)}

    def columns_read(self) -> dict[str, set[str] | None]:
        """The columns, of each table that Django knows it reads, that decide about its rows.

        None stands for all columns. A table of which only the number of rows counts has none.
        """
        read: dict[str, set[str] | None] = {}
        for table, column in _columns_of(self.query, self.using, ()):
            known = read.setdefault(table, set())
            if column is ALL:
                read[table] = None
            elif column and known is not None:
                known.add(column)
        return read

    def graph(self) -> tuple[dict[Place, str], list[Edge]]:
        """The tables that it and its subqueries read, and which columns of theirs are always equal.

        A place is the number of the query, 0 for this one, and an alias in it.
        """
        graph = _Graph(self.query, self.using)
        return graph.tables, graph.edges

    def walk(self) -> Iterator[Any]:
        """Every expression and every subquery in it, at any depth."""
        yield from _walk(self.query)


def _evaluated(params: Iterable[Any]) -> tuple[Any, ...]:
    """Parameters of which none is a text that the language of the moment decides about."""
    return tuple(
        each._proxy____cast() if isinstance(each, Promise) else each  # type: ignore[attr-defined]
        for each in params
    )


def _tables(query: Any) -> Iterator[Joined]:
    if query.model and not query.combinator and not any(query.alias_refcount.values()):
        first = query.alias_map.get(query.base_table)  # Django joins it when it compiles the query
        table = first.table_name if first else query.get_meta().db_table
        yield Joined(first.table_alias if first else table, table)
        return
    for alias, table in query.alias_map.items():
        if not query.alias_refcount.get(alias):
            continue
        if isinstance(table, BaseTable):
            yield Joined(alias, table.table_name)
        else:
            pairs = tuple((one.column, other.column) for one, other in table.join_fields)
            outer = table.join_type.startswith("LEFT")
            yield Joined(alias, table.table_name, table.parent_alias, pairs, outer)


ALL = "*"
Scope = dict[str, str]  # tables by their aliases


def _columns_of(
    query: Any, using: str, outer: tuple[Scope, ...], *, counted: bool = False
) -> Iterator[tuple[str, str]]:
    """Tables and columns that decide about the rows of a query, `ALL` for every column.

    Args:
        query: Django's.
        using: alias of the database.
        outer: the tables of the queries around it, the innermost first.
        counted: whether nothing but the number of its rows matters.
    """
    query, ordering = _with_ordering(query, using, counted=counted)
    tables = list(_tables(query))
    own = {each.alias: each.table for each in tables}
    implicit = query.default_cols and not (counted or query.combinator)
    for each in tables:
        yield each.table, ALL if implicit or query.distinct_fields else ""
        for of_parent, of_table in each.pairs:
            yield own[each.parent or ""], of_parent
            yield each.table, of_table
    yield from _columns_in([*_parts(query), *ordering], using, (own, *outer))


def _with_ordering(query: Any, using: str, *, counted: bool) -> tuple[Any, list[Any]]:
    """A query with the tables that only its ordering wants, which Django joins late; and the ordering.

    Args:
        query: Django's.
        using: alias of the database.
        counted: whether nothing but the number of its rows matters.
    """
    if query.combinator or not (query.order_by or (query.is_sliced and not counted)):
        return query, []
    query = query.clone()
    compiler = query.get_compiler(using, elide_empty=False)
    compiler.setup_query()
    return query, [by for by, _sql in compiler.get_order_by()]


class _Graph:
    """Which tables a query and its subqueries read, and what equals what among their columns.

    Attributes:
        tables: the tables, by number of the query and alias.
        edges: pairs of tables with the columns that are equal.
    """

    def __init__(self, query: Any, using: str) -> None:
        self.using = using
        self.tables: dict[Place, str] = {}
        self.edges: list[Edge] = []
        self.queries = 0
        self._add(query, (), counted=False)

    def _add(self, query: Any, outer: tuple[tuple[int, set[str]], ...], *, counted: bool) -> None:
        number = self.queries
        self.queries += 1
        query, ordering = _with_ordering(query, self.using, counted=counted)
        own = set()
        for each in _tables(query):
            own.add(each.alias)
            self.tables[number, each.alias] = each.table
            if each.parent is not None:
                self.edges.append(((number, each.parent), (number, each.alias), each.pairs))
        scopes = ((number, own), *outer)
        for lookup in _conjunction(query.where):
            self._add_equality(lookup, scopes)
        self._add_parts([*_parts(query), *ordering], scopes, counted=False)

    def _add_parts(
        self, parts: Iterable[Any], scopes: tuple[tuple[int, set[str]], ...], *, counted: bool
    ) -> None:
        for part in parts:
            if isinstance(part, Query):
                self._add(part, scopes, counted=counted)
            else:
                self._add_parts(_parts(part), scopes, counted=isinstance(part, Exists))

    def _add_equality(self, lookup: Any, scopes: tuple[tuple[int, set[str]], ...]) -> None:
        """Two columns of which a condition says that they are equal, as `OuterRef` makes them."""
        sides = (getattr(lookup, "lhs", None), getattr(lookup, "rhs", None))
        if getattr(lookup, "lookup_name", "") != "exact" or not all(
            isinstance(side, Col) for side in sides
        ):
            return
        one, other = (
            next((number, side.alias) for number, own in scopes if side.alias in own)  # type: ignore[union-attr]
            for side in sides
        )
        # What a subquery says of two tables outside holds where it has a row, and not elsewhere.
        if one != other and scopes[0][0] in (one[0], other[0]):
            columns = tuple(side.target.column for side in sides)  # type: ignore[union-attr]
            self.edges.append((one, other, (columns,)))


def _conjunction(where: Any) -> Iterator[Any]:
    """The conditions that must all hold."""
    if where.connector == AND and not where.negated:
        for child in where.children:
            yield from _conjunction(child) if isinstance(child, WhereNode) else (child,)
    elif where.negated and len(where.children) == 1 and isinstance(where.children[0], IsNull):
        yield IsNull(where.children[0].lhs, not where.children[0].rhs)


def _excludes_null(condition: Any) -> bool:
    """Whether a condition on a column, as `filter` and `exclude` make it, holds for no NULL."""
    if isinstance(condition, IsNull):
        return not condition.rhs
    return isinstance(condition, Lookup)


def _columns_in(
    parts: Iterable[Any], using: str, scopes: tuple[Scope, ...], *, counted: bool = False
) -> Iterator[tuple[str, str]]:
    for part in parts:
        if isinstance(part, Query):
            yield from _columns_of(part, using, scopes, counted=counted)
            continue
        if isinstance(part, Col):
            column: Any = part
            table = next(scope[column.alias] for scope in scopes if column.alias in scope)
            yield table, column.target.column
        yield from _columns_in(_parts(part), using, scopes, counted=isinstance(part, Exists))


def _walk(node: Any) -> Iterator[Any]:
    for part in _parts(node):
        yield part
        yield from _walk(part)


def _parts(node: Any) -> list[Any]:
    """What a query or an expression is made of, one level down."""
    if isinstance(node, Query):
        joins = (getattr(each, "filtered_relation", None) for each in node.alias_map.values())
        conditions = [getattr(each, "resolved_condition", each) for each in joins if each]
        group_by = node.group_by if isinstance(node.group_by, tuple) else ()
        own = [*node.annotation_select.values(), *node.select, node.where, *conditions, *group_by]
        return [*node.combined_queries, *own] if node.combinator else own
    if isinstance(node, WhereNode):
        return list(node.children)
    if isinstance(node, FilteredRelation):
        relation: Any = node
        return [relation.resolved_condition]
    if isinstance(node, Subquery):
        return [node.query]
    sources = getattr(node, "get_source_expressions", None)
    found = [each for each in sources() if each is not None] if sources else []
    listed = getattr(node, "rhs", None)  # of x__in=[F(...)] and x__range=(F(...), F(...))
    members = listed if isinstance(listed, (list, tuple, set)) else ()
    return [*found, *(each for each in members if hasattr(each, "as_sql"))]


def _function_of(expression: Func) -> object:
    return expression.extra.get("function", expression.function)


def columns_in(expression: Any) -> list[Col] | None:
    """The plain columns that an expression reads; None if it reads others too."""
    found = [expression, *_walk(expression)]
    if any(isinstance(each, (Query, OuterRef, ResolvedOuterRef, RawSQL, Window)) for each in found):
        return None
    return [each for each in found if isinstance(each, Col)]


def is_plainly_computed(expression: Any) -> bool:
    """Whether only such functions of columns compute it as return the type that they say, everywhere."""
    plain = (Col, Coalesce, Extract, TruncBase, Value)
    return all(isinstance(each, plain) for each in (expression, *_walk(expression)))


def is_truncated(expression: Any) -> bool:
    """Whether it is the beginning of a period that a moment lies in, or the day."""
    return isinstance(expression, TruncBase)


def compiled(rows: QuerySet[Any, Any], using: str) -> tuple[str, tuple[Any, ...]]:
    """The SQL of a queryset that does not order by itself, and its parameters."""
    sql, params = rows.query.get_compiler(using, elide_empty=False).as_sql()
    return sql, tuple(params)


def adds_up(expression: Any) -> bool:
    """Whether there is an aggregate or a window function in an expression, at any depth."""
    return any(
        getattr(each, "contains_aggregate", False) or getattr(each, "contains_over_clause", False)
        for each in (expression, *_walk(expression))
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
