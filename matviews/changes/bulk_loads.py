"""Bulk loads: one entry of the log for each table, instead of one for each change."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from django.db import transaction

from ..databases import triggers_of
from ..models import Change, TrackedTable
from .secret import log_secret

__all__ = ["untracked"]


@contextmanager
def untracked(using: str, tables: Collection[str]) -> Iterator[None]:
    """A transaction that logs one entry per table, instead of one per change."""
    with transaction.atomic(using=using):
        with triggers_of(using).suppressed(tables, lambda: log_secret(using)):
            yield
        tracked = TrackedTable.objects.filter(table__in=tables).values_list("table", flat=True)
        Change.objects.bulk_create(Change(table=table, links=None) for table in tracked)
