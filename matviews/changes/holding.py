"""Making and removing triggers while others write: whoever writes waits a moment for us, and not longer."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from django.db import DatabaseError

from ..databases import Triggers
from ..exceptions import TablesHeld
from ..models import TrackedTable

__all__ = ["HELD", "drop_all", "for_each_table"]

MAX_ROUNDS = 5
PAUSE_SECONDS = 0.5  # seconds between two of them, in which those who have waited for us go on
HELD = "a transaction that is still open has written to it"


def for_each_table(
    dialect: Triggers, work: Mapping[str, Callable[[], object]], rounds: int = MAX_ROUNDS
) -> dict[str, str]:
    """Do something with each table. Those that somebody holds are left, and come back to.

    Returns:
        The tables that were held to the end, and why.

    Raises:
        DatabaseError: what the database refused for one of them. The others are done all the same.
    """
    left, refused = dict(work), None
    for number in range(rounds):
        if number and left:
            time.sleep(PAUSE_SECONDS)
        for table, do in [*left.items()]:
            try:
                do()
            except DatabaseError as error:
                if dialect.is_held(error):
                    continue
                refused = refused or error
            del left[table]
    if refused:
        raise refused
    return dict.fromkeys(left, HELD)


def drop_all(dialect: Triggers, present: Mapping[str, Mapping[str, str]]) -> None:
    """Remove the triggers of several tables, all or none.

    Raises:
        TablesHeld: somebody held one of them to the end.
    """
    if not present:
        return
    held, saved = "", dialect.saved(name for made in present.values() for name in made)
    for number in range(MAX_ROUNDS):
        time.sleep(PAUSE_SECONDS if number else 0)
        table = ""
        try:
            with dialect.definitions(len(present)):
                for table, made in sorted(present.items()):
                    TrackedTable.objects.filter(table=table).update(triggers=[])
                    dialect.execute(dialect.drop(table, made))
            return
        except DatabaseError as error:
            if not dialect.is_held(error):
                raise
            held = table
    with (
        suppress(DatabaseError),
        dialect.definitions(),
    ):  # full refreshes follow where that fails too
        dialect.execute(dialect.lost(saved))
    raise TablesHeld(
        f"The triggers of {held} could not be removed, which has to be done before it may be altered: {HELD}. "
        f"Nothing has been altered. See that the transaction ends, and begin again."
    )
