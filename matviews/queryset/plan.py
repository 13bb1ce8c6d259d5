"""A queryset view, ready to be worked on: its source, the way through it, its SQL."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import Any

from django.db import DatabaseError, connections
from django.db.models import Model

from ..databases import Dialect, dialect_of
from ..databases.fields import AnyField, Column, column_of
from ..databases.keys import Key
from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..phases import Phase
from ..registry import registry
from .analysis.fingerprint import exact_fingerprint, fingerprint, has_dates
from .analysis.parameters import parameter_text
from .analysis.reading import read_query, read_source
from .analysis.source import Source
from .analysis.source_query import SourceQuery
from .analysis.sql_text import tables_named
from .sql.lookups import dependency_keys, linked_keys
from .sql.readers import KeyReader, SourceReader, StageReader, WindowReader
from .sql.statements import Statements
from .sql.windows import BatchRunner
from .strategy.assumptions import Compared, compared_columns, find_mismatch, stored_columns
from .strategy.choose import Strategy
from .strategy.inspection import Inspection, inspect
from .strategy.links import Link

__all__ = ["Plan", "fault_of", "find_mismatches", "fingerprint_of", "plan_of", "tables_read"]

MAX_KEYS_PER_LOOKUP = 200  # keys, each of which is a column of one statement


@dataclass(frozen=True, eq=False)
class Plan:
    """What a view's `source()` comes to at this moment."""

    #: The source.
    source: Source
    #: What looking into it has told.
    inspection: Inspection
    #: The SQL of its database.
    dialect: Dialect

    @property
    def strategy(self) -> Strategy:
        """How the source is worked through."""
        return self.inspection.strategy

    @cached_property
    def fingerprint(self) -> str:
        """What tells this definition of the view from another."""
        return fingerprint(self.source)

    @cached_property
    def exact_fingerprint(self) -> str:
        """As the fingerprint, with the dates in it: `now() - 30 days` makes another each time."""
        return exact_fingerprint(self.source)

    @cached_property
    def has_dates(self) -> bool:
        """Whether the moment may be another one while the fingerprint stays."""
        return has_dates(self.source)

    @cached_property
    def compared_columns(self) -> list[tuple[Compared, ...]]:
        """The columns that are taken to be what the models say."""
        links = (link for found in self.links.values() for link in found)
        return compared_columns(self.source, links)

    def mismatch(self) -> str:
        """Where the database's columns are not what the models say; "" if they are. Looks into its catalog."""
        if self.inspection.unknown:
            return ""
        groups = self.compared_columns
        return find_mismatch(groups, stored_columns(groups, self.dialect), self.dialect)

    def checked(self) -> "Plan":
        """The same, by way of a staging table alone where the models cannot be believed."""
        if not (reason := self.mismatch()):
            return self
        strategy = Strategy(True, reason, incremental_obstacle=reason)
        return replace(self, inspection=replace(self.inspection, strategy=strategy, links={}))

    @property
    def links(self) -> Mapping[str, tuple[Link, ...]]:
        """How changed rows of its tables lead to keys; of the tables that lead to none in particular, none."""
        return self.inspection.links

    def linked_keys(
        self,
        link: Link,
        values: Collection[Sequence[Any]],
        most: int,
        stages: Collection[str] = (),
    ) -> set[Key] | None:
        """The keys that rows with some values in a link's columns lead to, at most `most`; None for any.

        `stages` are staging tables whose rows the view may still get.

        Raises:
            InvalidView: what the view itself gives as keys are none.
        """
        if link.dependency:
            return dependency_keys(link.dependency, values, self.source, most)
        return linked_keys(link, values, self.source, self.dialect, most, stages)

    @property
    def key_fields(self) -> list[AnyField]:
        """The fields of the view's key."""
        return [column.field for column in self.source.key]

    def reader(self, stage: str = "") -> SourceReader:
        """How the source's rows are read; without a stage, a staged source is evaluated at once."""
        if stage or self.strategy.staged:
            return StageReader(self.source, self.dialect, stage)
        return WindowReader(self.source, self.strategy, self.dialect)

    def batch_runner(self, stage: str = "") -> BatchRunner:
        """What does the batches; `stage` is the staging table of a staged source."""
        return BatchRunner(self.statements(stage) if stage else self._unstaged)

    @cached_property
    def _unstaged(self) -> Statements:
        return self.statements()

    def key_batch_runner(self) -> BatchRunner:
        """What does the batches of dirty keys; only where the strategy is keyed."""
        return BatchRunner(self._of_keys)

    @cached_property
    def _of_keys(self) -> Statements:
        if not self.strategy.staged:
            return self._unstaged
        return Statements(self.source, KeyReader(self.source, self.dialect), self.dialect)

    def unknown_keys(self, keys: Sequence[Key]) -> list[Key]:
        """Those of some keys that neither the view nor the source has; only where the strategy is keyed."""
        unknown: list[Key] = []
        for at in range(0, len(keys), MAX_KEYS_PER_LOOKUP):
            unknown += self._of_keys.unknown(keys[at : at + MAX_KEYS_PER_LOOKUP])
        return unknown

    def statements(self, stage: str = "") -> Statements:
        """The SQL of the phases; with a staging table, by the types that the view's key has in the database."""
        kinds = self._kinds_in_view() if stage else []
        return Statements(self.source, self.reader(stage), self.dialect, kinds)

    def _kinds_in_view(self) -> list[str]:
        """The kinds of the columns of the view's key, as the database has them."""
        table = self.source.model._meta.db_table
        stored = self.dialect.columns([table])
        of_models = {field.column: self.dialect.kind_of(field) for field in self.key_fields}
        return [
            self.dialect.kind(stored[table, column or ""][0]) if (table, column) in stored else kind
            for column, kind in of_models.items()
        ]

    def null_keys(self) -> int:
        """How many rows of the source are left out because a part of their key is NULL."""
        if not any(map(self._may_be_null, self.source.key)):
            return 0
        names = self.dialect.names([column.field for column in self.source.columns])
        missing = " OR ".join(f"{name} IS NULL" for name in self.dialect.names(self.key_fields))
        sql, params = self.source.query.compile()
        with connections[self.dialect.using].cursor() as cursor:
            cursor.execute(
                f"WITH matviews_computed ({', '.join(names)}) AS ({sql}) "
                f"SELECT COUNT(*) FROM matviews_computed WHERE {missing}",
                params,
            )
            return int(cursor.fetchone()[0])

    def _may_be_null(self, column: Column) -> bool:
        if self.inspection.unknown:
            return True
        place = column_of(column.expression)
        never_outer = {table.alias for table in self.source.query.tables[:1]}
        return place is None or place[1].null or place[0] not in never_outer

    def needs(self, phase: Phase) -> bool:
        """Whether a phase has any work; asks the database for all keys at once."""
        statements = self.statements()
        if phase is Phase.UPDATE and not statements.update_columns:
            return False
        return bool(statements.finds(statements.pending_sql(phase)))


def plan_of(definition: ViewDefinition, using: str) -> Plan:
    """Call a view's `source()`, in the project's time zone, and plan what is to be done.

    Raises:
        InvalidView: it cannot be derived from; `manage.py check` says the same.
    """
    return _plan_of(_Asked(definition, read_query(definition, using)))


class _Asked:
    """A view and its query: the same as another if SQL and parameters are."""

    def __init__(self, definition: ViewDefinition, query: SourceQuery) -> None:
        self.definition, self.query = definition, query
        sql, params = query.compile()
        self._identity = (id(definition), query.using, sql, *map(parameter_text, params))

    def __hash__(self) -> int:
        return hash(self._identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self._identity == other._identity


@lru_cache(maxsize=64)
def _plan_of(asked: _Asked) -> Plan:
    """Each batch asks, and what takes time is not the call of `source()` but to look into it."""
    source = read_source(asked.definition, asked.query)
    return Plan(source, inspect(source), dialect_of(source.query.using))


def find_mismatches(plans: Collection[Plan], using: str) -> dict[str, str]:
    """The views whose columns in the database are not what the models say, by label, and where."""
    dialect = dialect_of(using)
    stored = stored_columns([group for plan in plans for group in plan.compared_columns], dialect)
    found = {
        plan.source.definition.label: find_mismatch(plan.compared_columns, stored, dialect)
        for plan in plans
    }
    return {label: fault for label, fault in found.items() if fault}


def fingerprint_of(definition: ViewDefinition, using: str) -> str:
    """The fingerprint of a view's definition as this process first saw it; "" if it is faulty.

    For showing many views at once: compiling a queryset takes milliseconds.
    """
    try:
        return _fingerprint_of(definition.model, using)
    except (InvalidView, DatabaseError):
        return ""


def fault_of(definition: ViewDefinition, using: str) -> str:
    """What keeps a view from being derived from its `source()`; "" if it once could be in this process."""
    try:
        _fingerprint_of(definition.model, using)
    except InvalidView as error:
        return str(error)
    except (
        DatabaseError
    ):  # source() reads a database that is not there: that is no fault of the view
        return ""
    return ""


@cache
def _fingerprint_of(model: type[Model], using: str) -> str:
    return plan_of(registry.find(model), using).fingerprint


def tables_read(definition: ViewDefinition, using: str) -> set[str]:
    """The tables that a view's source reads, as far as anything tells; none if it is faulty."""
    try:
        plan = plan_of(definition, using)
        return set(plan.inspection.columns) or tables_named(plan.source.query.compile()[0])
    except (InvalidView, DatabaseError):
        return set()
