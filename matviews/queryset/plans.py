"""A queryset view, ready to be worked on: its source, the way through it, its SQL."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

from django.db import DatabaseError
from django.db.models import Model

from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..phases import Phase
from ..registry import registry
from .declared import declared, declared_keys
from .dialects import Dialect, dialect_of
from .fields import AnyField
from .fingerprint import fingerprint, moment
from .keys import Key
from .links import Link, find_links, linked_keys, with_declared
from .paths import Path, find_path
from .query import SourceQuery
from .readings import Keyed, Reading, Staged, Windowed
from .source import Source, read_query, read_source
from .statements import Statements
from .walk import Walker

__all__ = ["Plan", "fingerprint_of", "plan_of", "tables_read"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a view's `source()` comes to at this moment.

    Attributes:
        source: the source.
        path: how it is worked through.
        dialect: the SQL of its database.
    """

    source: Source
    path: Path
    dialect: Dialect

    @cached_property
    def fingerprint(self) -> str:
        """What tells this definition of the view from another."""
        return fingerprint(self.source)

    @cached_property
    def moment(self) -> str:
        """As the fingerprint, with the dates in it: `now() - 30 days` makes another each time."""
        return moment(self.source)

    @cached_property
    def links(self) -> dict[str, tuple[Link, ...]]:
        """How changed rows of its tables lead to keys; of the tables that lead to none in particular, none."""
        links = find_links(self.source, self.path)
        return with_declared(links, declared(self.source.definition), self.path)

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
        if link.declared:
            return declared_keys(link.declared, values, self.source, most)
        return linked_keys(link, values, self.source, self.dialect, most, stages)

    @property
    def key_fields(self) -> list[AnyField]:
        """The fields of the view's key."""
        return [column.field for column in self.source.key]

    def reading(self, stage: str = "") -> Reading:
        """How the source's rows are read; without a stage, a staged source is evaluated at once."""
        if self.path.staged:
            return Staged(self.source, self.dialect, stage)
        return Windowed(self.source, self.path, self.dialect)

    def walker(self, stage: str = "") -> Walker:
        """What does the batches; `stage` is the staging table of a staged source."""
        return Walker(self.statements(stage) if stage else self._unstaged)

    @cached_property
    def _unstaged(self) -> Statements:
        return self.statements()

    def walker_of_keys(self) -> Walker:
        """What does the batches of dirty keys; only where the path is keyed."""
        return Walker(self._of_keys)

    @cached_property
    def _of_keys(self) -> Statements:
        if not self.path.staged:
            return self._unstaged
        return Statements(self.source, Keyed(self.source, self.dialect), self.dialect)

    def statements(self, stage: str = "") -> Statements:
        """The SQL of the phases."""
        return Statements(self.source, self.reading(stage), self.dialect)

    def needs(self, phase: Phase) -> bool:
        """Whether a phase has any work; asks the database for all keys at once."""
        statements = self.statements()
        if phase is Phase.UPDATE and not statements.written:
            return False
        return bool(statements.finds(statements.waiting(phase)))


def plan_of(definition: ViewDefinition, using: str) -> Plan:
    """Call a view's `source()`, in the project's time zone, and plan what is to be done.

    Raises:
        InvalidView: it cannot be derived from; `manage.py check` says the same.
    """
    query = read_query(definition, using)
    try:
        return _plan_of(_Asked(definition, query))
    except _Unhashable:
        return _planned(definition, query)


class _Unhashable(Exception):
    """A query cannot be told from another by its parameters."""


class _Asked:
    """A view and its query: the same as another if SQL and parameters are."""

    def __init__(self, definition: ViewDefinition, query: SourceQuery) -> None:
        self.definition, self.query = definition, query
        sql, params = query.compile()
        # True is 1 to Python, and Decimal("1.0") is Decimal("1.00").
        typed = tuple((type(each), each, str(each)) for each in params)
        self._identity = (id(definition), query.using, sql, typed)

    def __hash__(self) -> int:
        try:
            return hash(self._identity)
        except TypeError as error:
            raise _Unhashable from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self._identity == other._identity


@lru_cache(maxsize=64)
def _plan_of(asked: _Asked) -> Plan:
    """Each batch asks, and what takes time is not the call of `source()` but to look into it."""
    return _planned(asked.definition, asked.query)


def _planned(definition: ViewDefinition, query: SourceQuery) -> Plan:
    source = read_source(definition, query)
    return Plan(source, find_path(source), dialect_of(query.using))


def fingerprint_of(definition: ViewDefinition, using: str) -> str:
    """The fingerprint of a view's definition as this process first saw it; "" if it is faulty.

    For showing many views at once: compiling a queryset takes milliseconds.
    """
    return _fingerprint_of(definition.model, using)


def tables_read(definition: ViewDefinition, using: str) -> set[str]:
    """The tables that a view's source reads, as far as Django knows or it says; none if it is faulty."""
    try:
        return plan_of(definition, using).source.query.all_tables() | declared(definition).keys()
    except (InvalidView, DatabaseError):
        return set()


@cache
def _fingerprint_of(model: type[Model], using: str) -> str:
    try:
        return plan_of(registry.find(model), using).fingerprint
    except (InvalidView, DatabaseError):
        return ""
