"""What batches write to a read-only view, and what others have written to it."""

import logging
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext

from ... import changes
from ...changes import QueuedChange
from ...definition import ViewDefinition
from ...logs import log
from ..transactions import alias

__all__ = ["note_foreign_writes", "own_writes"]

logger = logging.getLogger(__name__)


def own_writes(definition: ViewDefinition) -> AbstractContextManager[None]:
    """A context, in the transaction of a batch or a repair, that writes to a view's table.

    Raises:
        NotPermitted: this role may not write to a read-only view.
    """
    if not definition.options.read_only:
        return nullcontext()
    return changes.as_batch(alias(), definition.model._meta.db_table)


def note_foreign_writes(definition: ViewDefinition, drained: Collection[QueuedChange]) -> None:
    """Log that something other than a batch has written to a read-only view."""
    table = definition.model._meta.db_table
    found = [change for change in drained if change.table == table]
    if definition.options.read_only and found:
        log(
            logger, logging.WARNING, "rows were written outside of batches, they are restored now",
            view=definition.label, table=table, changes=len(found),
            since=min(change.logged_at for change in found).isoformat(),
        )  # fmt: skip
