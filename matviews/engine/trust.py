"""Detecting triggers that are no longer reliable; views of their tables get full refreshes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from django.db import DatabaseError, connections

from .. import changes
from ..logs import log
from ..models import ViewControl
from ..redact import error_text, loggable
from .transactions import alias, short_transaction

logger = logging.getLogger(__name__)

__all__ = [
    "finish_triggers", "mark_missing_triggers", "mark_mistyped_views", "mark_truncated",
    "mark_untrackable",
]  # fmt: skip


def mark_missing_triggers() -> bool:
    """Stop trusting triggers that were dropped, disabled or replaced; full refreshes follow.

    Returns:
        Whether no missing trigger is trusted any more.
    """
    with _limited():
        return changes.mark_missing_triggers(alias())


def mark_truncated() -> None:
    """Queue full refreshes after a TRUNCATE that fired no trigger."""
    with _limited():
        truncated = changes.mark_truncated(alias())
    for table in truncated:
        sentence = (
            "the table was truncated or rebuilt, which fires no trigger: a full refresh follows"
        )
        log(logger, logging.WARNING, sentence, table=table)


def mark_untrackable() -> None:
    """Stop trusting triggers on tables that became untrackable; full refreshes follow."""
    with _limited():
        untrackable = changes.mark_untrackable(alias())
    for table, reason in untrackable.items():
        sentence = "changes are no longer logged, so every refresh is full"
        log(logger, logging.WARNING, sentence, table=table, reason=reason)


@contextmanager
def _limited() -> Iterator[None]:
    """A short transaction on databases with row locks.

    SQLite has none, and the reads need no write lock there.
    """
    locks = connections[alias()].features.has_select_for_update
    with short_transaction() if locks else nullcontext():
        yield


def finish_triggers() -> None:
    """Create the triggers that `migrate` could not: another transaction had locked their tables."""
    try:
        unfinished = changes.finish(alias())
    except DatabaseError as error:
        log(
            logger, logging.WARNING,
            "triggers are still missing: run `manage.py update_materialized_views --triggers "
            "install` as the owner of the tables",
            exception=loggable(error), error=error_text(error),
        )  # fmt: skip
        return
    for table, reason in unfinished.items():
        log(logger, logging.WARNING, "triggers are still missing", table=table, reason=reason)


def mark_mistyped_views() -> None:
    """Distrust the log for views whose key or link columns changed type; full refreshes follow."""
    reasons = changes.mistyped(alias())
    controls = dict(ViewControl.objects.filter(label__in=reasons).values_list("pk", "label"))
    with short_transaction():
        for pk in changes.untrust(controls.keys()):
            sentence = "logged changes are no longer trusted, so every refresh is full"
            view = controls[pk]
            log(logger, logging.WARNING, sentence, view=view, reason=reasons[view])
