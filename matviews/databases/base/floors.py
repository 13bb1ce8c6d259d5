"""Which entries of the change log and of the queues a statement has to read."""

from collections.abc import Collection
from typing import Any

from django.db import connections

from .triggers import CHANGE_LOG

__all__ = ["LOG_FLOOR", "QUEUE", "Floors"]

QUEUE = "matviews_viewchange"
LOG_FLOOR = "matviews_logfloor"


class Floors:
    """Without transaction IDs, there is no floor: statements read all entries.

    What is returned goes into a FROM, and has all columns of the table.

    Args:
        using: alias of the database.
    """

    #: Whether `raise_floor` does anything.
    rise = False

    def __init__(self, using: str) -> None:
        self.using = using

    @property
    def connection(self) -> Any:
        """This thread's connection."""
        return connections[self.using]

    def name(self, name: str) -> str:
        """A quoted identifier, for a statement with parameters."""
        quoted: str = self.connection.ops.quote_name(name)
        return quoted

    @property
    def part(self) -> str:
        """What a statement has behind WITH, if it reads something that is not `alone`."""
        return ""

    def log(self, limit: int = 0, tables: Collection[str] = (), *, alone: bool = True) -> str:
        """At least the entries of the change log.

        Args:
            limit: how many may be enough; 0 for all.
            tables: those whose entries matter; none for all.
            alone: whether the statement does without `part`.
        """
        return self.name(CHANGE_LOG)

    def queue(self, view: str) -> str:
        """At least the entries of a view's queue.

        Args:
            view: SQL of the primary key of its control.
        """
        return self.name(QUEUE)

    def queues(self, views: Collection[int]) -> str:
        """At least the entries of the queues of these views, by primary keys of their controls."""
        return self.name(QUEUE)

    def queued(self, views: str = "", *, alone: bool = True) -> str:
        """At least one entry of each queue that has any.

        Args:
            views: a query for the views that matter, by primary keys of controls; "" for all.
            alone: whether the statement does without `part`.
        """
        return self.name(QUEUE)

    def raise_floor(self) -> None:
        """Raise the floor, so that later statements read less. Call it outside of a transaction."""

    def renumber(self) -> None:
        """Give new transaction IDs to entries below the floor, which somebody has loaded."""
