"""The plan of a queryset view: its source, the strategy to read it, and its SQL."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import Any

from django.db import DatabaseError, connections
from django.db.models import Model

from ..databases import Dialect, dialect_of
from ..databases.fields import AnyField, Column, column_of
from ..databases.keys import Key, Range
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
from .sql import key_lookups
from .sql.lookups import dependency_keys, linked_keys
from .sql.readers import KeyReader, SourceReader, WindowReader
from .sql.stage_reader import StageReader
from .sql.statements import EVERYTHING, Statements
from .sql.sums import GroupSums, SumsReader
from .sql.windows import BatchRunner
from .strategy.additive import find_additive
from .strategy.assumptions import Compared, compared_columns, find_mismatch, stored_columns
from .strategy.choose import Strategy
from .strategy.inspection import Inspection, inspect
from .strategy.links import Link

__all__ = ["Plan", "fault_of", "find_mismatches", "fingerprint_of", "plan_of", "tables_read"]

MAX_KEYS_PER_LOOKUP = 200  # each is a column of the statement


@dataclass(frozen=True, eq=False)
class Plan:
    """What a view's `source()` returns now, and how it is refreshed."""

    #: The source that `source()` returned.
    source: Source
    #: The result of analysing it.
    inspection: Inspection
    #: The SQL dialect of its database.
    dialect: Dialect

    @property
    def strategy(self) -> Strategy:
        """How the source is read."""
        return self.inspection.strategy

    @cached_property
    def fingerprint(self) -> str:
        """A digest that distinguishes this definition of the view from others."""
        return fingerprint(self.source)

    @cached_property
    def exact_fingerprint(self) -> str:
        """The fingerprint with dates: with `now() - 30 days`, another one each time."""
        return exact_fingerprint(self.source)

    @cached_property
    def has_dates(self) -> bool:
        """Whether the exact fingerprint may change while the fingerprint does not."""
        return has_dates(self.source)

    @cached_property
    def additive(self) -> GroupSums | None:
        """The sums that the view can have; None if it is not additive, or may not be."""
        if self.source.definition.options.additive is False:
            return None
        found = find_additive(self.source, self.inspection)
        return GroupSums(self.source, found, self.dialect) if found else None

    @cached_property
    def compared_columns(self) -> list[tuple[Compared, ...]]:
        """The columns that the plan assumes to be as the models say."""
        links = (link for found in self.links.values() for link in found)
        return compared_columns(self.source, links)

    def mismatch(self) -> str:
        """Where the catalog's columns contradict the models; "" if they do not."""
        if self.inspection.unknown:
            return ""
        groups = self.compared_columns
        return find_mismatch(groups, stored_columns(groups, self.dialect), self.dialect)

    def checked(self) -> "Plan":
        """The same plan; a staged one if the models contradict the database."""
        if not (reason := self.mismatch()):
            return self
        strategy = Strategy(True, reason, incremental_obstacle=reason)
        return replace(self, inspection=replace(self.inspection, strategy=strategy, links={}))

    def staged(self) -> "Plan":
        """The same plan, with full refreshes through a staging table."""
        strategy = replace(self.strategy, staged=True, reason="the view is pinned to staging")
        return replace(self, inspection=replace(self.inspection, strategy=strategy))

    @property
    def has_unique_keys(self) -> bool:
        """Whether it is known that no two rows of the source have the same key."""
        return not self.strategy.staged or self.strategy.is_incremental

    @property
    def links(self) -> Mapping[str, tuple[Link, ...]]:
        """How changed rows of each table lead to keys; without tables that may concern any key."""
        return self.inspection.links

    def linked_keys(
        self,
        link: Link,
        values: Collection[Sequence[Any]],
        limit: int,
        stages: Collection[str] = (),
    ) -> set[Key] | None:
        """The keys that logged values of a link lead to, at most `limit`; None for any key.

        `stages` are staging tables whose rows may still be written to the view.

        Raises:
            InvalidView: the view itself returned an invalid key.
        """
        if link.dependency:
            return dependency_keys(link.dependency, values, self.source, limit)
        return linked_keys(link, values, self.source, self.dialect, limit, stages)

    @property
    def key_fields(self) -> list[AnyField]:
        """The fields of the view's key."""
        return [column.field for column in self.source.key]

    def reader(self, stage: str = "") -> SourceReader:
        """Reads the source's rows; without a stage, each statement evaluates a staged source."""
        if stage or self.strategy.staged:
            return StageReader(self.source, self.dialect, stage)
        return WindowReader(self.source, self.strategy, self.dialect)

    def batch_runner(
        self, stage: str = "", without: Collection[Key] = (), within: Range = EVERYTHING
    ) -> BatchRunner:
        """Runs batches of windows.

        Args:
            stage: the staging table of a staged source.
            without: the keys that windows leave out.
            within: the range in which they are.
        """
        return BatchRunner(self.statements(stage) if stage else self._unstaged, without, within)

    @cached_property
    def _unstaged(self) -> Statements:
        return self.statements()

    def key_batch_runner(self, within: Range = EVERYTHING) -> BatchRunner:
        """Runs batches of dirty keys; only for incremental strategies.

        Args:
            within: the range of the keys that it lists itself.
        """
        return BatchRunner(self._of_keys, within=within)

    def sums_runner(self, table: str, *, of_keys: bool) -> BatchRunner:
        """Runs batches that read the sums of an additive view.

        Args:
            table: the name of the table of sums.
            of_keys: whether the batches are of dirty keys.
        """
        if (table, of_keys) not in self._of_sums:
            assert self.additive is not None
            reader = SumsReader(self.additive, table)
            statements = Statements(self.source, reader, self.dialect, are_few=of_keys)
            self._of_sums[table, of_keys] = statements
        return BatchRunner(self._of_sums[table, of_keys])

    @cached_property
    def _of_sums(self) -> dict[tuple[str, bool], Statements]:
        return {}

    @cached_property
    def _of_keys(self) -> Statements:
        if not self.strategy.staged:
            return self._unstaged
        return Statements(self.source, KeyReader(self.source, self.dialect), self.dialect)

    def unknown_keys(self, keys: Sequence[Key]) -> list[Key]:
        """The keys that neither the view nor the source has; only for incremental strategies."""
        unknown: list[Key] = []
        for at in range(0, len(keys), MAX_KEYS_PER_LOOKUP):
            unknown += key_lookups.unknown(self._of_keys, keys[at : at + MAX_KEYS_PER_LOOKUP])
        return unknown

    def statements(self, stage: str = "") -> Statements:
        """The statements of the phases. With a staging table, the key has the database's types."""
        kinds = self._kinds_in_view() if stage else []
        return Statements(self.source, self.reader(stage), self.dialect, kinds)

    def _kinds_in_view(self) -> list[str]:
        """The kinds of the view's key columns in the database."""
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
        """Whether a phase has work to do; checks all keys in one query."""
        statements = self.statements()
        if phase is Phase.UPDATE and not statements.update_columns:
            return False
        return bool(statements.finds(statements.pending_sql(phase)))


def plan_of(definition: ViewDefinition, using: str) -> Plan:
    """Call a view's `source()`, in the project's time zone, and plan its refresh.

    Raises:
        InvalidView: nothing can be derived from it; `manage.py check` reports the same.
    """
    return _plan_of(_QueriedView(definition, read_query(definition, using)))


class _QueriedView:
    """A view and its query; equal if SQL and parameters are equal."""

    def __init__(self, definition: ViewDefinition, query: SourceQuery) -> None:
        self.definition, self.query = definition, query
        sql, params = query.compile()
        self._identity = (id(definition), query.using, sql, *map(parameter_text, params))

    def __hash__(self) -> int:
        return hash(self._identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _QueriedView) and self._identity == other._identity


@lru_cache(maxsize=64)
def _plan_of(queried: _QueriedView) -> Plan:
    """Cached: analysing the queryset is slow, calling source() is not."""
    source = read_source(queried.definition, queried.query)
    return Plan(source, inspect(source), dialect_of(source.query.using))


def find_mismatches(
    compared: Mapping[str, list[tuple[Compared, ...]]], using: str
) -> dict[str, str]:
    """Where the database's columns contradict the models, by label of the view.

    Args:
        compared: the columns that the plan of each view compares, by label.
        using: alias of the database.
    """
    dialect = dialect_of(using)
    stored = stored_columns([group for groups in compared.values() for group in groups], dialect)
    found = {label: find_mismatch(each, stored, dialect) for label, each in compared.items()}
    return {label: fault for label, fault in found.items() if fault}


def fingerprint_of(definition: ViewDefinition, using: str) -> str:
    """The fingerprint of a view's definition as this process first saw it; "" if it has faults.

    For pages that show many views: compiling a queryset takes milliseconds.
    """
    try:
        return _fingerprint_of(definition.model, using)
    except (InvalidView, DatabaseError):
        return ""


def fault_of(definition: ViewDefinition, using: str) -> str:
    """Why nothing can be derived from a view's `source()`; "" if this process could once."""
    try:
        _fingerprint_of(definition.model, using)
    except InvalidView as error:
        return str(error)
    except DatabaseError:  # a database that is missing is no fault of the view
        return ""
    return ""


@cache
def _fingerprint_of(model: type[Model], using: str) -> str:
    return plan_of(registry.find(model), using).fingerprint


def tables_read(definition: ViewDefinition, using: str) -> set[str]:
    """The tables that a view's source reads, as far as known; none if it has faults."""
    try:
        plan = plan_of(definition, using)
        return set(plan.inspection.columns) or tables_named(plan.source.query.compile()[0])
    except (InvalidView, DatabaseError):
        return set()
