"""What looking into a source's query tells: how it is worked through, and which changes concern which keys.

Where that fails, or something in the query may read what cannot be found, the view needs none of it: its
source is evaluated as a whole at each refresh.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..analysis.boundary import NotUnderstood, looking
from ..analysis.dependencies import declared_dependencies
from ..analysis.source import Source
from .choose import Strategy, choose_strategy
from .links import Link, find_links, with_dependencies

__all__ = ["Inspection", "inspect"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What looking into a source's query has told."""

    #: How it is worked through.
    strategy: Strategy
    #: How changed rows of its tables lead to keys; of tables that lead to none in particular, none.
    links: Mapping[str, tuple[Link, ...]] = field(default_factory=dict)
    #: The columns of each table that decide about its rows; None for any.
    columns: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    #: Why changes of these tables do not tell all changes of its rows; "" if they do.
    untrackable: str = ""
    #: Why the query cannot be looked into; "" if it can.
    unknown: str = ""


def inspect(source: Source) -> Inspection:
    """Look into a source's query.

    Raises:
        DatabaseError: what had to be asked of the database failed.
    """
    try:
        with looking():
            unknown = _unknown(source)
            return _not_inspected(unknown) if unknown else _inspected(source)
    except NotUnderstood as error:
        logger.info(
            "source() cannot be looked into view=%s", source.definition.label, exc_info=True
        )
        return _not_inspected(str(error))


def _not_inspected(why: str) -> Inspection:
    reason = f"source() cannot be looked into ({why})"
    strategy = Strategy(staged=True, reason=reason, incremental_obstacle=reason)
    return Inspection(strategy=strategy, untrackable=reason, unknown=why)


def _unknown(source: Source) -> str:
    """What the query may read that cannot be found, "" if nothing: raw SQL must be declared."""
    query = source.query
    if query.unknown or query.has_raw_sql:
        return query.unknown
    known = declared_dependencies(source.definition).keys()
    if others := sorted(query.other_tables() - known):
        return f"its SQL names {', '.join(others)}, and no expression of Django's does"
    return ""


def _inspected(source: Source) -> Inspection:
    query, strategy = source.query, choose_strategy(source)
    dependencies = declared_dependencies(source.definition)
    columns = query.columns_read()
    if query.has_raw_sql:  # which may read any column of these
        columns = dict.fromkeys(columns)
    columns |= dict.fromkeys(dependencies)
    return Inspection(
        strategy=strategy,
        links=with_dependencies(find_links(source, strategy), dependencies, strategy),
        columns={
            table: None if read is None else frozenset(read) for table, read in columns.items()
        },
        untrackable=_moving(source),
    )


def _moving(source: Source) -> str:
    for name, part in source.query.parts:
        if functions := source.query.volatile(part):
            return f"{name} of source() changes by itself ({functions[0]})"
    return ""
