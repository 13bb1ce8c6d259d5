"""How a view's `source()` is worked through, for a person: the strategy, its SQL and its indexes."""

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
from .strategy.indexes import in_database, required_indexes

__all__ = ["ExplainedIndex", "Explanation", "explain"]

SAMPLE_WINDOW = 5_000  # keys
JSON_WRAPS = {"Json", "Jsonb"}  # psycopg's


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplainedIndex:
    """An index that windows are found by."""

    #: Label of the model whose table it is of.
    model: str
    #: Names of the fields that it begins with.
    fields: tuple[str, ...]
    #: Whether the model declares one.
    declared: bool
    #: Whether the table has one.
    in_database: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """How a view's `source()` is worked through."""

    #: The view.
    label: str
    #: "windowed" or "staged".
    strategy: str
    #: Why.
    reason: str
    #: Names of the fields of the key, in order.
    key: tuple[str, ...]
    #: What the database takes the view's rows to be, None if it has no idea.
    estimated_rows: int | None
    #: Rows of the source that are left out because their key is NULL.
    null_keys: int
    #: SQL that is evaluated into the staging table; "" for a windowed view.
    staging: str
    #: SQL of each derived phase, for one window, to be read and not to be run: the values are
    #: written into it. UPDATE is not there if the view has nothing but its key.
    statements: dict[Phase, str]
    #: Those on the way of the key.
    indexes: tuple[ExplainedIndex, ...]


def explain(definition: ViewDefinition, using: str) -> Explanation:
    """Tell how a view's `source()` is worked through. Reads the keys of one window, writes nothing.

    Raises:
        InvalidView: it cannot be derived from.
        DatabaseError: the view's table, or that of its key, is not there.
    """
    with looking():
        return _explained(definition, plan_of(definition, using).checked(), using)


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
    """A window of the view's keys, or of those that will come; open at both ends if there are none."""
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
    """SQL with its parameters written into it."""
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
    """A value without what psycopg wraps JSON and bytes in."""
    if type(value).__name__ in JSON_WRAPS:
        return json.dumps(value.obj)
    return getattr(value, "obj", value)
