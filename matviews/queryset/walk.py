"""One batch of a derived phase: the next window of keys, and the one statement for it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from django.db import IntegrityError
from django.db.models import Model, Q

from ..phases import Phase
from .keys import Key, Keys, Range, from_json, prepared_keys, to_json
from .readings import keys_after
from .sql import Array
from .statements import Statements

__all__ = ["Walk", "Walker"]

MOST_FILLED = 8  # ranges that are remembered; each is a condition of the later statements

JsonKey = list[str] | None


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Where a phase run stands in its walk through the keys, as JSON holds it.

    Attributes:
        cursor: the key after which the next window begins, None at the start and at the end.
        rows: rows written by the last batch.
        looked: keys that the last batch has looked through, as far as that is known.
        filled: ranges `[low, high]` of keys that the insert phase of this refresh has written
            where the view had nothing: the other phases have nothing to do there.
    """

    cursor: JsonKey = None
    rows: int = 0
    looked: int = 0
    filled: tuple[tuple[JsonKey, JsonKey], ...] = ()


class Walker:
    """Does the batches of a view's phases.

    Args:
        statements: the SQL of the phases.
    """

    def __init__(self, statements: Statements) -> None:
        self.statements = statements
        self.model = statements.source.model
        self.fields = tuple(statements.key_fields)
        self._keys: Sequence[Key] = ()
        self._prepared = Keys(())
        self._array: Array | None = None

    def step(self, phase: Phase, walk: Walk, limit: int) -> Walk:
        """Do one batch of about `limit` keys.

        Raises:
            DatabaseError: what the database made of it.
        """
        if phase is Phase.INSERT:
            return self._insert(walk, limit)
        if phase is Phase.UPDATE and not self.statements.written:
            return replace(walk, cursor=None, rows=0, looked=0)
        return self._change(phase, walk, limit)

    def step_keys(self, phase: Phase, keys: Sequence[Key]) -> int:
        """Do one batch of some keys; the rows that it wrote.

        Raises:
            DatabaseError: what the database made of it.
        """
        if not keys or (phase is Phase.UPDATE and not self.statements.written):
            return 0
        if keys != self._keys:  # one phase after the other comes with the same
            using = self.statements.dialect.using
            self._keys = keys
            self._prepared = prepared_keys(self.fields, keys, using)
            self._array = self.statements.dialect.array(self._prepared)
        with _explained(phase, self.model):
            return self.statements.do_keys(phase, self._prepared, self._array)

    def _insert(self, walk: Walk, limit: int) -> Walk:
        low = self._key(walk.cursor)
        high, looked, lacking = self.statements.look_ahead(low, limit)
        cursor = self._json(high)
        if not lacking:
            return replace(walk, cursor=cursor, rows=0, looked=looked)
        empty = not self.statements.finds(self.statements.in_view((low, high)))
        with _explained(Phase.INSERT, self.model):
            rows = self.statements.do(Phase.INSERT, (low, high), empty=empty)
        filled = _with_range(walk.filled, (walk.cursor, cursor)) if empty else walk.filled
        return Walk(cursor=cursor, rows=rows, looked=looked, filled=filled)

    def _change(self, phase: Phase, walk: Walk, limit: int) -> Walk:
        """The next rows of the view, held against the source."""
        over = replace(walk, cursor=None, rows=0, looked=0)
        if (None, None) in walk.filled:
            return over
        skipped = [(self._key(low), self._key(high)) for low, high in walk.filled]
        ahead = self._ahead(self._key(walk.cursor), skipped)
        first = ahead.first()
        if first is None:
            return over
        high = next(iter(ahead[limit - 1 : limit]), None)
        within = (self._before(first) if skipped else self._key(walk.cursor), high)
        rows = self.statements.do(phase, within, skipped)
        looked = limit if high else ahead[:limit].count()
        return replace(walk, cursor=self._json(high), rows=rows, looked=looked)

    def _ahead(self, low: Key | None, skipped: Sequence[Range]) -> Any:
        """The keys of the view after `low`, without those of the ranges."""
        rows = keys_after(self.model, self.fields, low, self.statements.dialect)
        for each in skipped:
            rows = rows.filter(~Q(self.statements.within(each)))
        return rows

    def _before(self, key: Key) -> Key | None:
        """The key of the view before this one."""
        keys = keys_after(self.model, self.fields, None, self.statements.dialect)
        up_to = keys.filter(self.statements.within((None, key)))
        return next(iter(up_to.reverse()[1:2]), None)

    def _key(self, key: JsonKey) -> Key | None:
        return None if key is None else from_json(self.fields, key)

    def _json(self, key: Key | None) -> JsonKey:
        return None if key is None else to_json(self.fields, key)


@contextmanager
def _explained(phase: Phase, model: type[Model]) -> Iterator[None]:
    """The database's word on a row that does not fit in, and what it means."""
    try:
        yield
    except IntegrityError as error:
        if phase is not Phase.INSERT:
            raise
        raise IntegrityError(
            f"{str(error).strip()} (A row of source() does not fit in: it has a key twice, or "
            f"breaks another constraint of {model._meta.label}.)"
        ) from error.__cause__


def _with_range(
    ranges: Sequence[tuple[JsonKey, JsonKey]], added: tuple[JsonKey, JsonKey]
) -> tuple[tuple[JsonKey, JsonKey], ...]:
    """Ranges with one more, joined to the last one where it goes on from there."""
    if ranges and ranges[-1][1] == added[0] is not None:
        return (*ranges[:-1], (ranges[-1][0], added[1]))
    return (*ranges, added) if len(ranges) < MOST_FILLED else tuple(ranges)
