"""Listing the parked keys of a view, and making them due for a retry."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ...databases.keys import from_json
from ...models import ParkedKey
from ...phases import Phase
from ...registry import registry
from ..transactions import now

__all__ = ["Parked", "list_parked", "retry_parked"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parked:
    """A key that a phase of a view leaves out, because its row cannot be computed or written."""

    label: str
    phase: Phase
    #: The values of the key's fields, as text or whole numbers of the database.
    key: tuple[Any, ...]
    #: The class of the error.
    error_class: str
    #: SQLSTATE on PostgreSQL, the number on MariaDB and MySQL, the name of the code on SQLite.
    code: str
    #: The violated constraint; "" if the database does not name it.
    constraint: str
    #: Columns that the database names.
    columns: tuple[str, ...]
    #: What is wrong, with values if the settings allow them.
    message: str
    first_seen: datetime
    last_seen: datetime
    #: How often it has failed on its own.
    tries: int
    #: When it is tried again, even if nothing changes.
    retry_at: datetime


def list_parked(view: str | type) -> list[Parked]:
    """The parked keys of a view, in the order in which they were parked.

    Raises:
        UnknownView: there is no such view.
    """
    label = registry.find(view).label
    rows = ParkedKey.objects.filter(shard__view__label=label).order_by("pk")
    return [
        Parked(
            label=label,
            phase=Phase(row.phase),
            key=from_json(row.key),
            error_class=row.error_class,
            code=row.code,
            constraint=row.constraint,
            columns=tuple(row.columns),
            message=row.message,
            first_seen=row.first_seen,
            last_seen=row.last_seen,
            tries=row.tries,
            retry_at=row.retry_at,
        )
        for row in rows
    ]


def retry_parked(view: str | type, ids: Collection[int] | None = None) -> int:
    """Make the next refresh of a view try its parked keys again; returns how many there are.

    It does not request a refresh.

    Args:
        view: the view.
        ids: primary keys of `ParkedKey`; None for all of the view.

    Raises:
        UnknownView: there is no such view.
    """
    label = registry.find(view).label
    parked = ParkedKey.objects.filter(shard__view__label=label)
    return (parked if ids is None else parked.filter(pk__in=ids)).update(retry_at=now())
