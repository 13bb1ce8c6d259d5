"""One batch of a derived phase: the next window of keys, and the one statement for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...databases.keys import Key, Keys, from_json, to_json
from ...databases.sql import Array
from ...phases import Phase
from .statements import Statements

__all__ = ["Walk", "Walker"]

MOST_FILLED = 8  # ranges that are remembered; each is a condition of the later statements

JsonKey = list[Any] | None


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Where a phase run stands in its walk through the keys, as JSON holds it.

    Attributes:
        cursor: the key after which the next window begins, None at the start and at the end.
        rows: rows written by the last batch.
        keys_scanned: keys that the last batch has scanned, as far as that is known.
        inserted_ranges: ranges `[low, high]` of keys that the insert phase of this refresh has written
            where the view had nothing: the other phases have nothing to do there.
    """

    cursor: JsonKey = None
    rows: int = 0
    keys_scanned: int = 0
    inserted_ranges: tuple[tuple[JsonKey, JsonKey], ...] = ()


class Walker:
    """Does the batches of a view's phases.

    Args:
        statements: the SQL of the phases.
    """

    def __init__(self, statements: Statements) -> None:
        self.statements = statements
        self._keys = Keys(())
        self._array: Array | None = None

    def step(self, phase: Phase, walk: Walk, limit: int) -> Walk:
        """Do one batch of about `limit` keys; of all, where a key has no exact value to go on from.

        Raises:
            DatabaseError: what the database made of it.
            NotAdvancing: the walk does not get on.
        """
        if phase is Phase.UPDATE and not self.statements.written:
            return replace(walk, cursor=None, rows=0, keys_scanned=0)
        if not self.statements.exact:
            return self.step_whole(phase, walk)
        if phase is Phase.INSERT:
            return self._insert(walk, limit)
        return self._change(phase, walk, limit)

    def step_whole(self, phase: Phase, walk: Walk) -> Walk:
        """Do a phase in one statement: its batch is the whole of it.

        Raises:
            DatabaseError: what the database made of it.
        """
        over = replace(walk, cursor=None, rows=0, keys_scanned=0)
        if (None, None) in walk.inserted_ranges or (
            phase is Phase.UPDATE and not self.statements.written
        ):
            return over
        everything = (None, None)
        empty = phase is Phase.INSERT and not self.statements.finds(
            self.statements.in_view(everything)
        )
        rows = self.statements.do(phase, everything, empty=empty)
        return replace(
            over, rows=rows, keys_scanned=rows, inserted_ranges=(everything,) if empty else ()
        )

    def step_keys(self, phase: Phase, keys: Sequence[Key]) -> int:
        """Do one batch of some keys; the rows that it wrote.

        Raises:
            DatabaseError: what the database made of it.
        """
        if not keys or (phase is Phase.UPDATE and not self.statements.written):
            return 0
        if tuple(keys) != self._keys.keys:  # one phase after the other comes with the same
            self._keys = Keys(tuple(keys))
            self._array = self.statements.dialect.array(self._keys)
        return self.statements.do_keys(phase, self._keys, self._array)

    def _insert(self, walk: Walk, limit: int) -> Walk:
        low = self._key(walk.cursor)
        high, keys_scanned, lacking = self.statements.look_ahead(low, limit)
        cursor = self._json(high)
        if not lacking:
            return replace(walk, cursor=cursor, rows=0, keys_scanned=keys_scanned)
        empty = not self.statements.finds(self.statements.in_view((low, high)))
        rows = self.statements.do(Phase.INSERT, (low, high), empty=empty)
        inserted_ranges = (
            _with_range(walk.inserted_ranges, (walk.cursor, cursor))
            if empty
            else walk.inserted_ranges
        )
        return Walk(
            cursor=cursor, rows=rows, keys_scanned=keys_scanned, inserted_ranges=inserted_ranges
        )

    def _change(self, phase: Phase, walk: Walk, limit: int) -> Walk:
        """The next rows of the view, held against the source."""
        over = replace(walk, cursor=None, rows=0, keys_scanned=0)
        if (None, None) in walk.inserted_ranges:
            return over
        low = self._key(walk.cursor)
        skipped = [(self._key(low), self._key(high)) for low, high in walk.inserted_ranges]
        high, keys_scanned, _lacking = self.statements.ahead_in_view(low, limit, skipped)
        if not keys_scanned:
            return over
        if skipped:  # else those of the ranges would be computed for nothing
            first = self.statements.first(low, skipped)
            low = self.statements.before(first) if first else low
        rows = self.statements.do(phase, (low, high), skipped)
        return replace(walk, cursor=self._json(high), rows=rows, keys_scanned=keys_scanned)

    def _key(self, key: JsonKey) -> Key | None:
        return None if key is None else from_json(key)

    def _json(self, key: Key | None) -> JsonKey:
        return None if key is None else to_json(key)


def _with_range(
    ranges: Sequence[tuple[JsonKey, JsonKey]], added: tuple[JsonKey, JsonKey]
) -> tuple[tuple[JsonKey, JsonKey], ...]:
    """Ranges with one more, joined to the last one where it goes on from there."""
    if ranges and ranges[-1][1] == added[0] is not None:
        return (*ranges[:-1], (ranges[-1][0], added[1]))
    return (*ranges, added) if len(ranges) < MOST_FILLED else tuple(ranges)
