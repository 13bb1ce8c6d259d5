"""One batch of a derived phase: the next window of keys, or some keys, in one statement."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db import connections

from ...databases import sessions_of
from ...databases.keys import Key, Keys, KeySelection, Range, RangeWithout, from_json, to_json
from ...databases.sql import SQL, Array, joined, qualified
from ...phases import Phase
from .readers import next_keys, not_advancing
from .statements import EVERYTHING, KEYS, Statements
from .together import do_keys_together, do_together

__all__ = ["BatchRunner", "WindowProgress"]

MAX_INSERTED_RANGES = 8  # each is a condition in later statements

JsonKey = list[Any] | None


@dataclass(frozen=True, kw_only=True)
class WindowProgress:
    """How far a phase run has come, as JSON holds it."""

    #: The key after which the next window begins; None at the start and at the end.
    cursor: JsonKey = None
    #: How many rows the last batch wrote.
    rows: int = 0
    #: How many keys the last batch scanned, as far as known.
    keys_scanned: int = 0
    #: Ranges `[low, high]` of keys that the insert phase of this refresh has written where the view
    #: had nothing: the other phases have nothing to do there.
    inserted_ranges: tuple[tuple[JsonKey, JsonKey], ...] = ()


class BatchRunner:
    """Runs the batches of a view's phases.

    Args:
        statements: the SQL of the phases.
        without: the keys that windows leave out.
        within: the range in which windows are.
    """

    def __init__(
        self,
        statements: Statements,
        without: Collection[Key] = (),
        within: Range = EVERYTHING,
    ) -> None:
        self.statements = statements
        self._within = within
        self._everything = (self._json(within[0]), self._json(within[1]))
        self._without = Keys(tuple(without), tuple(statements.kinds))
        self._keys = Keys(())
        self._arrays: list[Array] = []
        #: Rows that were written for keys by phases that have yet to be run for them.
        self._written: dict[tuple[Phase, tuple[Key, ...]], int] = {}

    def run_window(self, phase: Phase, progress: WindowProgress, limit: int) -> WindowProgress:
        """Run one batch of about `limit` keys; of all keys, if keys have no exact form.

        Raises:
            DatabaseError: a statement failed.
            NotAdvancing: the next window does not come after this one.
        """
        if not self._writes(phase):
            return replace(progress, cursor=None, rows=0, keys_scanned=0)
        if not self.statements.exact:
            return self.run_whole(phase, progress)
        if phase is Phase.INSERT:
            return self._insert(progress, limit)
        return self._change(phase, progress, limit)

    def next_keys(
        self, phase: Phase, progress: WindowProgress, limit: int
    ) -> tuple[list[Key], JsonKey]:
        """The keys that `run_window` would process one by one, and its next cursor.

        Raises:
            DatabaseError: a statement failed.
            NotAdvancing: the next window does not come after this one.
        """
        if not self._writes(phase) or self._everything in progress.inserted_ranges:
            return [], None
        statements, (low, high) = self.statements, self._ahead(progress)
        keys = statements.reader.keys_after(low, limit, high)
        if phase is not Phase.INSERT:
            skipped = [(self._key(low), self._key(high)) for low, high in progress.inserted_ranges]
            of_view = statements.of_view((low, high), skipped)
            keys = next_keys(statements.table, statements.key, of_view, limit)
        found = self._listed(keys, low)
        return found, self._json(found[-1]) if len(found) == limit else None

    def _listed(self, keys: SQL, low: Key | None) -> list[Key]:
        """The exact values of keys after `low`, in order."""
        key, advances = self.statements.key, self.statements.advances(low)
        with connections[self.statements.dialect.using].cursor() as cursor:
            cursor.execute(
                f"WITH {KEYS} ({', '.join(key)}) AS ({keys.text}) "
                f"SELECT {', '.join(self.statements.exact)}, {advances.text} "
                f"FROM {KEYS} ORDER BY {', '.join(qualified(KEYS, key))}",
                (*keys.params, *advances.params),
            )
            rows = cursor.fetchall()
        for *found, is_advancing in rows:
            if not is_advancing:
                raise not_advancing(tuple(found), low)
        return [tuple(found) for *found, _is_advancing in rows]

    def compare(self, key: Key) -> None:
        """Compare a key with those of the view.

        Raises:
            DatabaseError: the columns of the view's key cannot hold it.
        """
        statements = self.statements
        where = joined(" AND ", statements.of_view(Keys((key,), tuple(statements.kinds))))
        statements.finds(
            SQL(f"SELECT 1 FROM {statements.table} WHERE {where.text} LIMIT 1", where.params)
        )

    def delete_rows(self, keys: Sequence[Key]) -> None:
        """Delete the view's rows of some keys, whatever the source has.

        Raises:
            DatabaseError: the statement failed.
        """
        statements = self.statements
        where = joined(" AND ", statements.of_view(Keys(tuple(keys), tuple(statements.kinds))))
        statements.run(SQL(f"DELETE FROM {statements.table} WHERE {where.text}", where.params))

    def plan_key(self, phase: Phase, key: Key) -> None:
        """Have the database plan a phase for a key, without running it.

        Raises:
            DatabaseError: it cannot be planned, whatever the key.
        """
        statements = self.statements
        of_key = statements.of(phase, Keys((key,), tuple(statements.kinds)))
        for each in of_key:
            sessions_of(statements.dialect.using).plan(*each)

    def run_whole(self, phase: Phase, progress: WindowProgress) -> WindowProgress:
        """Run a phase in one statement, as one batch.

        Raises:
            DatabaseError: the statement failed.
        """
        over = replace(progress, cursor=None, rows=0, keys_scanned=0)
        if self._everything in progress.inserted_ranges or not self._writes(phase):
            return over
        empty = phase is Phase.INSERT and not self.statements.finds(
            self.statements.in_view(self._within)
        )
        rows = self.statements.do(phase, self._within, empty=empty)
        return replace(
            over, rows=rows, keys_scanned=rows, inserted_ranges=(self._everything,) if empty else ()
        )

    def run_keys(self, phase: Phase, keys: Sequence[Key], others: Collection[Phase] = ()) -> int:
        """Run one batch of some keys; the number of rows written.

        Args:
            phase: the phase.
            keys: the keys.
            others: the phases that will be run for the same keys in this transaction: they are run
                at once, from one evaluation of the source.

        Raises:
            DatabaseError: a statement failed.
        """
        if not keys or not self._writes(phase):
            return 0
        if tuple(keys) != self._keys.keys:  # consecutive phases pass the same keys
            self._keys = Keys(tuple(keys), tuple(self.statements.kinds))
            self._arrays = self.statements.dialect.arrays(self._keys)
        if (phase, self._keys.keys) not in self._written:
            phases = [phase, *filter(self._writes, others)]
            if len(phases) == 1:
                return self.statements.do_keys(phase, self._keys, self._arrays)
            rows = do_keys_together(self.statements, phases, self._keys, self._arrays)
            self._written |= {(each, self._keys.keys): written for each, written in rows.items()}
        return self._written.pop((phase, self._keys.keys))

    def run_together(self, phases: Collection[Phase]) -> tuple[int, dict[Phase, int]]:
        """Run phases for all keys, from one evaluation of the source.

        Returns:
            The number of keys in the source, and of rows that each phase wrote.

        Raises:
            DatabaseError: the statement failed.
        """
        writing = [*filter(self._writes, phases)]
        keys, written = do_together(self.statements, writing) if writing else (0, {})
        return keys, {phase: written.get(phase, 0) for phase in phases}

    def _writes(self, phase: Phase) -> bool:
        """Whether a phase has anything to write: a view of keys alone has no values to update."""
        return phase is not Phase.UPDATE or bool(self.statements.update_columns)

    def _insert(self, progress: WindowProgress, limit: int) -> WindowProgress:
        low, end = self._ahead(progress)
        high, keys_scanned, has_missing = self.statements.next_source_keys(low, limit, end)
        cursor, window = self._json(high), (low, high or end)
        if not has_missing:
            return replace(progress, cursor=cursor, rows=0, keys_scanned=keys_scanned)
        empty = not self.statements.finds(self.statements.in_view(window))
        rows = self.statements.do(Phase.INSERT, self._left(window), empty=empty)
        inserted_ranges = (
            _with_range(progress.inserted_ranges, (self._json(low), self._json(high or end)))
            if empty
            else progress.inserted_ranges
        )
        return WindowProgress(
            cursor=cursor, rows=rows, keys_scanned=keys_scanned, inserted_ranges=inserted_ranges
        )

    def _change(self, phase: Phase, progress: WindowProgress, limit: int) -> WindowProgress:
        """Compare the next rows of the view with the source."""
        over = replace(progress, cursor=None, rows=0, keys_scanned=0)
        if self._everything in progress.inserted_ranges:
            return over
        low, end = self._ahead(progress)
        skipped = [(self._key(low), self._key(high)) for low, high in progress.inserted_ranges]
        high, keys_scanned, _has_missing = self.statements.next_view_keys(low, limit, skipped, end)
        if not keys_scanned:
            return over
        if skipped:  # otherwise the skipped ranges would be computed for nothing
            first = self.statements.first(low, skipped)
            low = self.statements.before(first) if first else low
        rows = self.statements.do(phase, self._left((low, high or end)), skipped)
        return replace(progress, cursor=self._json(high), rows=rows, keys_scanned=keys_scanned)

    def _ahead(self, progress: WindowProgress) -> Range:
        """What is left of the range."""
        low, high = self._within
        return (low if progress.cursor is None else self._key(progress.cursor)), high

    def _left(self, within: Range) -> KeySelection:
        """A range without the keys that are left out."""
        return RangeWithout(within, self._without) if self._without.keys else within

    def _key(self, key: JsonKey) -> Key | None:
        return None if key is None else from_json(key)

    def _json(self, key: Key | None) -> JsonKey:
        return None if key is None else to_json(key)


def _with_range(
    ranges: Sequence[tuple[JsonKey, JsonKey]], added: tuple[JsonKey, JsonKey]
) -> tuple[tuple[JsonKey, JsonKey], ...]:
    """Ranges with one more, merged with the last one if it continues that."""
    if ranges and ranges[-1][1] == added[0] is not None:
        return (*ranges[:-1], (ranges[-1][0], added[1]))
    return (*ranges, added) if len(ranges) < MAX_INSERTED_RANGES else tuple(ranges)
