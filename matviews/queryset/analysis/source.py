"""What a view's `source()` is: its columns, its key, and what is wrong with them."""

from dataclasses import dataclass

from django.db.models import Model

from ...databases.fields import (
    Column,
)
from ...definition import ViewDefinition
from .source_query import SourceQuery

__all__ = ["Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """What `source()` returned, read."""

    #: The view.
    definition: ViewDefinition
    #: Its query.
    query: SourceQuery
    #: Its columns, the key among them.
    columns: tuple[Column, ...]
    #: The columns of the key, in the order of the key.
    key: tuple[Column, ...]

    @property
    def model(self) -> type[Model]:
        """The view's class."""
        return self.definition.model

    @property
    def values(self) -> tuple[Column, ...]:
        """The columns that are not of the key."""
        return tuple(column for column in self.columns if column not in self.key)
