"""A view's source: its query, its columns and its key."""

from dataclasses import dataclass

from django.db.models import Model

from ...databases.fields import Column
from ...definition import ViewDefinition
from .source_query import SourceQuery

__all__ = ["Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """What `source()` returned, read."""

    #: The definition of the view.
    definition: ViewDefinition
    #: Its query.
    query: SourceQuery
    #: All columns, including the key.
    columns: tuple[Column, ...]
    #: The columns of the key, in order.
    key: tuple[Column, ...]

    @property
    def model(self) -> type[Model]:
        """The view's class."""
        return self.definition.model

    @property
    def values(self) -> tuple[Column, ...]:
        """The columns that are not part of the key."""
        return tuple(column for column in self.columns if column not in self.key)
