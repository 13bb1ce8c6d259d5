"""How a view's `source()` is read, for a person: strategy, reason, SQL and indexes."""

import json
import re
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from ..databases import catalog_of, dialect_of
from ..databases.keys import Range
from ..databases.sql import SQL, joined
from ..definition import ViewDefinition
from ..phases import Phase
from .analysis.boundary import looking
from .plan import Plan, plan_of
from .sql.readers import whole
from .sql.staging import SAMPLE_STAGE
from .strategy.additive import obstacles_of
from .strategy.indexes import in_database, required_indexes

__all__ = ["ExplainedIndex", "Explanation", "additive_obstacles", "explain", "source_sql"]

SAMPLE_WINDOW = 5_000  # keys
JSON_WRAPPERS = {"Json", "Jsonb"}  # psycopg's


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplainedIndex:
    """An index that finds windows."""

    #: The label of the model.
    model: str
    #: The names of the fields that the index begins with.
    fields: tuple[str, ...]
    #: Whether the model declares such an index.
    declared: bool
    #: Whether the table has one.
    in_database: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """How a view's `source()` is read."""

    #: The label of the view.
    label: str
    #: "windowed" or "staged".
    strategy: str
    #: Why this strategy was chosen.
    reason: str
    #: The names of the key's fields, in order.
    key: tuple[str, ...]
    #: The database's estimate of the view's rows, None if it has none.
    estimated_rows: int | None
    #: How many rows of the source are left out because their key is NULL.
    null_keys: int
    #: The query that fills the staging table; "" for a windowed view.
    staging: str
    #: SQL of each derived phase, for one window, to be read and not to be run: the values are
    #: written into it. UPDATE is not there if the view has nothing but its key.
    statements: dict[Phase, str]
    #: The indexes that the strategy needs.
    indexes: tuple[ExplainedIndex, ...]


def explain(definition: ViewDefinition, using: str) -> Explanation:
    """Explain how a view's `source()` is read. It reads the keys of one window and writes nothing.

    Raises:
        InvalidView: nothing can be derived from `source()`.
        DatabaseError: the view's table, or that of its key, is missing.
    """
    with looking():
        return _explained(definition, plan_of(definition, using).checked(), using)


def source_sql(plan: Plan, using: str) -> str:
    """What `source()` is in SQL, with its parameters filled in, to be read and not to be run."""
    return _shown(whole(plan.source, plan.dialect), using)


def _explained(definition: ViewDefinition, plan: Plan, using: str) -> Explanation:
    indexes = (
        ExplainedIndex(
            model=index.model._meta.label,
            fields=index.fields,
            declared=index.declared,
            in_database=in_database(index, using),
        )
        for index in required_indexes(plan.source, plan.strategy)
    )
    return Explanation(
        label=definition.label,
        strategy=plan.strategy.name,
        reason=plan.strategy.reason,
        key=tuple(column.field.name for column in plan.source.key),
        estimated_rows=_estimated_rows(definition, using),
        null_keys=plan.null_keys(),
        staging=_shown(whole(plan.source, plan.dialect), using) if plan.strategy.staged else "",
        statements={phase: _shown(sql, using) for phase, sql in _statements(plan).items()},
        indexes=tuple(indexes),
    )


def additive_obstacles(plan: Plan) -> list[str]:
    """Why the changes of a view cannot be added up, for a person; none if they can be."""
    return obstacles_of(plan.source, plan.inspection)


def _estimated_rows(definition: ViewDefinition, using: str) -> int | None:
    rows = catalog_of(using).estimated_rows().get(definition.model._meta.db_table, -1)
    return rows if rows >= 0 else None


def _statements(plan: Plan) -> dict[Phase, SQL]:
    statements = plan.statements(SAMPLE_STAGE if plan.strategy.staged else "")
    window = _sample_window(plan)
    written = {
        Phase.INSERT: statements.insert(window, empty=False),
        Phase.DELETE: joined("; ", statements.delete(window)),
    }
    if statements.update_columns:
        written[Phase.UPDATE] = statements.update(window)
    derived = plan.source.definition.derived
    return {phase: written[phase] for phase in Phase if phase in derived and phase in written}


def _sample_window(plan: Plan) -> Range:
    """A window of the view's keys, or else of the source's; open at both ends if there are none."""
    statements = plan.statements()
    if not statements.exact:
        return None, None
    aheads = (statements.next_view_keys, statements.next_source_keys)
    for ahead in aheads[:1] if plan.strategy.staged else aheads:
        low = ahead(None, 1).high
        if low is not None:
            return low, ahead(low, SAMPLE_WINDOW).high
    return None, None


def _shown(sql: SQL, using: str) -> str:
    """SQL with its parameters filled in."""
    values = iter(sql.params)

    def written(mark: re.Match[str]) -> str:
        return "%" if mark[0] == "%%" else _literal(next(values), using)

    return re.sub("%%|%s", written, sql.text)


def _literal(value: Any, using: str) -> str:
    value, dialect = _unwrapped(value), dialect_of(using)
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, (int, float, Decimal)):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return dialect.bytes_literal(bytes(value).hex())
    if not isinstance(value, (str, date, time, timedelta, UUID)):
        value = json.dumps(value, default=str)
    return dialect.text_literal(str(value))


def _unwrapped(value: Any) -> Any:
    """A value without psycopg's wrappers around JSON and bytes."""
    if type(value).__name__ in JSON_WRAPPERS:
        return json.dumps(value.obj)
    return getattr(value, "obj", value)
