"""When triggers can no longer be trusted: the views that read their tables are refreshed in full."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from django.db import DatabaseError, connections

from .. import changes
from ..models import ViewControl
from .transactions import alias, short_transaction

logger = logging.getLogger(__name__)

__all__ = ["finish_triggers", "mark_missing_triggers", "mark_mistyped_views", "mark_untrackable"]


def mark_missing_triggers() -> None:
    """Stop trusting triggers that somebody has dropped, disabled or made anew; full passes follow then."""
    with _limited():
        changes.mark_missing_triggers(alias())


def mark_untrackable() -> None:
    """Look whether somebody has made a table such as triggers cannot tell of; full passes follow then."""
    with _limited():
        untrackable = changes.mark_untrackable(alias())
    for table, reason in untrackable.items():
        logger.warning(
            "changes are not logged any more, so each refresh is a full pass table=%s reason=%s",
            table, reason,
        )  # fmt: skip


@contextmanager
def _limited() -> Iterator[None]:
    """A short transaction where rows are locked. SQLite locks none, and need not let a reader write."""
    locks = connections[alias()].features.has_select_for_update
    with short_transaction() if locks else nullcontext():
        yield


def finish_triggers() -> None:
    """Make the triggers that `migrate` had to leave, for somebody wrote to their tables."""
    try:
        left = changes.finish(alias())
    except DatabaseError as error:
        logger.warning(
            "triggers are still to be made: run `manage.py update_materialized_views --triggers "
            "install` as the owner of the tables error=%s", str(error).strip(),
        )  # fmt: skip
        return
    for table, reason in left.items():
        logger.warning("triggers are still to be made table=%s reason=%s", table, reason)


def mark_mistyped_views() -> None:
    """Look whether somebody has given columns of keys or links another type; full refreshes follow then."""
    found = changes.mistyped(alias())
    controls = dict(ViewControl.objects.filter(label__in=found).values_list("pk", "label"))
    with short_transaction():
        for pk in changes.untrust(controls.keys()):
            logger.warning(
                "changes are not believed any more, so each refresh is a full one view=%s reason=%s",
                controls[pk], found[controls[pk]],
            )  # fmt: skip
