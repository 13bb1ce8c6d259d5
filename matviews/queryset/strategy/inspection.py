"""The analysis of a source's query: how it is read, and which changes concern which keys.

If it fails, or the query may read something that cannot be found, every refresh evaluates the whole
source.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...logs import log
from ..analysis.boundary import NotUnderstood, looking
from ..analysis.dependencies import declared_dependencies
from ..analysis.expressions import volatile_functions
from ..analysis.source import Source
from .choose import Strategy, choose_strategy
from .links import KeyColumn, Link, find_links, with_dependencies

__all__ = ["Inspection", "inspect"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The result of analysing a source's query."""

    #: How the source is read.
    strategy: Strategy
    #: How changed rows of each table lead to keys; a table without links may concern any key.
    links: Mapping[str, tuple[Link, ...]] = field(default_factory=dict)
    #: The columns of each table that decide about the source's rows; None for all.
    columns: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    #: Why its rows may change without a change to these tables; "" if they cannot.
    untrackable: str = ""
    #: Why the query cannot be analysed; "" if it can.
    unknown: str = ""


def inspect(source: Source) -> Inspection:
    """Analyse a source's query.

    Raises:
        DatabaseError: a query to the database's catalog failed.
    """
    try:
        with looking():
            unknown = _unknown(source)
            return _not_inspected(unknown) if unknown else _inspected(source)
    except NotUnderstood as error:
        view = source.definition.label
        log(logger, logging.INFO, "source() cannot be analysed", exception=error, view=view)
        return _not_inspected(str(error))


def _not_inspected(why: str) -> Inspection:
    reason = f"source() cannot be analysed ({why})"
    strategy = Strategy(staged=True, reason=reason, incremental_obstacle=reason)
    return Inspection(strategy=strategy, untrackable=reason, unknown=why)


def _unknown(source: Source) -> str:
    """What the query may read that cannot be found, "" if nothing; raw SQL must be declared."""
    query = source.query
    if query.unknown or query.has_raw_sql:
        return query.unknown
    known = declared_dependencies(source.definition).keys()
    if others := sorted(query.other_tables() - known):
        return f"its SQL names {', '.join(others)}, but none of its expressions does"
    return ""


def _inspected(source: Source) -> Inspection:
    query, strategy = source.query, choose_strategy(source)
    dependencies = declared_dependencies(source.definition)
    columns = query.columns_read()
    if query.has_raw_sql:  # it may read any of their columns
        columns = dict.fromkeys(columns)
    columns |= dict.fromkeys(dependencies)
    links = with_dependencies(find_links(source, strategy), dependencies, strategy)
    return Inspection(
        strategy=strategy,
        links=_own_link(source, strategy) | links,
        columns={
            table: None if read is None else frozenset(read) for table, read in columns.items()
        },
        untrackable=_moving(source),
    )


def _own_link(source: Source, strategy: Strategy) -> dict[str, tuple[Link, ...]]:
    """The link of a read-only view's own table: its key, by which a refresh restores a row."""
    if not (source.definition.options.read_only and strategy.is_incremental):
        return {}
    columns = tuple(part.field.column or "" for part in source.key)
    table = source.model._meta.db_table
    link = Link(table, columns, key_columns=tuple(KeyColumn(0, column) for column in columns))
    return {table: (link,)} if link.can_be_logged else {}


def _moving(source: Source) -> str:
    for name, part in source.query.parts:
        if functions := volatile_functions(part):
            return f"{name} of source() changes by itself ({functions[0]})"
    return ""
