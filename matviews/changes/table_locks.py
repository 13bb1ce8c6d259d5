"""Creating and dropping triggers of tables in use: writers wait only a moment."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from django.db import DatabaseError

from ..databases import Triggers
from ..exceptions import TablesLocked
from ..models import TrackedTable

__all__ = ["LOCKED", "drop_all", "for_each_table"]

MAX_ROUNDS = 5
PAUSE_SECONDS = 0.5  # between rounds, in which waiting writers proceed
LOCKED = "a transaction that is still open has written to it"


def for_each_table(
    dialect: Triggers, work: Mapping[str, Callable[[], object]], rounds: int = MAX_ROUNDS
) -> dict[str, str]:
    """Call a function for each table, coming back to tables that are locked.

    Returns:
        The tables that stayed locked, and why.

    Raises:
        DatabaseError: the first that was not about a lock, once the other tables are done.
    """
    left, refused = dict(work), None
    for number in range(rounds):
        if number and left:
            time.sleep(PAUSE_SECONDS)
        for table, do in [*left.items()]:
            try:
                do()
            except DatabaseError as error:
                if dialect.is_locked(error):
                    continue
                refused = refused or error
            del left[table]
    if refused:
        raise refused
    return dict.fromkeys(left, LOCKED)


def drop_all(dialect: Triggers, present: Mapping[str, Mapping[str, str]]) -> None:
    """Drop the triggers of several tables, all or none.

    Raises:
        TablesLocked: one of the tables stayed locked.
    """
    if not present:
        return
    locked, saved = "", dialect.saved(name for triggers in present.values() for name in triggers)
    for number in range(MAX_ROUNDS):
        time.sleep(PAUSE_SECONDS if number else 0)
        table = ""
        try:
            with dialect.definitions(len(present)):
                for table, triggers in sorted(present.items()):
                    TrackedTable.objects.filter(table=table).update(triggers=[])
                    dialect.execute(dialect.drop(table, triggers))
            return
        except DatabaseError as error:
            if not dialect.is_locked(error):
                raise
            locked = table
    with (
        suppress(DatabaseError),
        dialect.definitions(),
    ):  # if that fails too, full refreshes follow
        dialect.execute(dialect.lost(saved))
    raise TablesLocked(
        f"The triggers of {locked} must be dropped before it is altered, but {LOCKED}. Nothing has "
        f"been altered. End that transaction, and migrate again."
    )
