"""What Django's expressions and queries consist of.

Only this module, `tables` and `source_query` read their internals.
"""

from collections.abc import Iterator
from typing import Any

from django.db.models import FilteredRelation, Func, Subquery
from django.db.models.expressions import Col, OuterRef, RawSQL, ResolvedOuterRef, Window
from django.db.models.functions.datetime import TruncBase
from django.db.models.lookups import IsNull, Lookup
from django.db.models.sql import Query
from django.db.models.sql.where import AND, OR, WhereNode

__all__ = [
    "columns_in",
    "conjunction",
    "disjunctions",
    "excludes_null",
    "has_aggregate_or_window",
    "is_truncated",
    "parts_of",
    "volatile_functions",
    "walk",
]


# Django's classes; below, the functions that other classes may call, in lower case.
VOLATILE = {"Now", "Random", "RandomUUID", "TransactionNow", "UUID4", "UUID7"}

VOLATILE_FUNCTIONS = {
    "clock_timestamp", "current_date", "current_time", "current_timestamp", "curdate", "curtime",
    "gen_random_uuid", "last_insert_id", "localtime", "localtimestamp", "nextval", "now", "rand",
    "random", "randomblob", "statement_timestamp", "sysdate", "timeofday", "transaction_timestamp",
    "unix_timestamp", "utc_date", "utc_time", "utc_timestamp", "uuid", "uuid_generate_v1",
    "uuid_generate_v4", "uuidv4", "uuidv7",
}  # fmt: skip


def conjunction(where: Any) -> Iterator[Any]:
    """The conditions that must all hold."""
    if where.connector == AND and not where.negated:
        for child in where.children:
            yield from conjunction(child) if isinstance(child, WhereNode) else (child,)
    elif where.negated and len(where.children) == 1 and isinstance(where.children[0], IsNull):
        yield IsNull(where.children[0].lhs, not where.children[0].rhs)


def disjunctions(where: Any) -> Iterator[list[list[Any]]]:
    """The alternatives of each OR that must hold: of each alternative, what must all hold."""
    if where.connector == OR and not where.negated:
        yield [
            list(conjunction(child)) if isinstance(child, WhereNode) else [child]
            for child in where.children
        ]
    elif where.connector == AND and not where.negated:
        for child in where.children:
            if isinstance(child, WhereNode):
                yield from disjunctions(child)


def excludes_null(condition: Any) -> bool:
    """Whether a condition on a column, made by `filter` or `exclude`, is never true for NULL."""
    if isinstance(condition, IsNull):
        return not condition.rhs
    return isinstance(condition, Lookup)


def walk(node: Any) -> Iterator[Any]:
    """Every part of a query or expression, at any depth."""
    for part in parts_of(node):
        yield part
        yield from walk(part)


def parts_of(node: Any) -> list[Any]:
    """The direct parts of a query or expression."""
    if isinstance(node, Query):
        joins = (getattr(join, "filtered_relation", None) for join in node.alias_map.values())
        conditions = [
            getattr(relation, "resolved_condition", relation) for relation in joins if relation
        ]
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
    found = [source for source in sources() if source is not None] if sources else []
    listed = getattr(node, "rhs", None)  # of x__in=[F(...)] and x__range=(F(...), F(...))
    members = listed if isinstance(listed, (list, tuple, set)) else ()
    return [*found, *(member for member in members if hasattr(member, "as_sql"))]


def volatile_functions(expression: Any) -> list[str]:
    """The functions in a query or expression that return another value each time, by name."""
    found = [expression, *walk(expression)]
    bases = {base.__name__ for part in found for base in type(part).__mro__}
    if known := VOLATILE & bases:
        return sorted(known)
    called = {str(_function_of(part)).lower() for part in found if isinstance(part, Func)}
    return sorted(VOLATILE_FUNCTIONS & called)


def _function_of(expression: Func) -> object:
    return expression.extra.get("function", expression.function)


def columns_in(expression: Any) -> list[Col] | None:
    """The plain columns that an expression reads; None if it reads anything else."""
    found = [expression, *walk(expression)]
    if any(isinstance(part, (Query, OuterRef, ResolvedOuterRef, RawSQL, Window)) for part in found):
        return None
    return [part for part in found if isinstance(part, Col)]


def is_truncated(expression: Any) -> bool:
    """Whether it truncates a date or datetime to the start of a period."""
    return isinstance(expression, TruncBase)


def has_aggregate_or_window(expression: Any) -> bool:
    """Whether an expression contains an aggregate or a window function, at any depth."""
    return any(
        getattr(part, "contains_aggregate", False) or getattr(part, "contains_over_clause", False)
        for part in (expression, *walk(expression))
    )
