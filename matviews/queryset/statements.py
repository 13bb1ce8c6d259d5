"""The statements of the phases: each for one range of keys, each writing only what differs."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from django.db import connections

from ..phases import Phase
from .conditions import Inside
from .dialects import ROWS, Dialect
from .keys import Key, Keys, Range, Within, prepared_within
from .query import from_database
from .readings import Keyed, Reading
from .source import Column, Source
from .sql import SQL, Array, equal, joined, qualified

__all__ = ["Statements"]


class Ahead(NamedTuple):
    """The next keys that the source may have.

    Attributes:
        high: the last one of them; None if there are fewer than were asked for.
        keys: how many there are.
        lacking: whether the view lacks one. The source may lack it as well: that is for the
            statement of the phase to find out.
    """

    high: Key | None
    keys: int
    lacking: bool


class Statements:
    """The SQL that brings a view to its source, range by range.

    Args:
        source: the view's source.
        reading: how its rows are read.
        dialect: the SQL of its database.
    """

    def __init__(self, source: Source, reading: Reading, dialect: Dialect) -> None:
        self.source, self.reading, self.dialect = source, reading, dialect
        self.table = dialect.name(source.model._meta.db_table)
        self.key_fields = [column.field for column in source.key]
        self.key = dialect.names(self.key_fields)
        # A condition on a row of the view and one of `ROWS`: they have the same key.
        self.same = equal(qualified(self.table, self.key), qualified(ROWS, self.key))
        self.written = [*source.values, *self._respelt()]
        self._compiled: dict[tuple[Phase, type], list[SQL]] = {}

    def _respelt(self) -> list[Column]:
        """Columns of the key whose letters may change while the key stays the same to the database.

        Grouped rows are left alone: which of several spellings stands for the group is chance.
        """
        if self.source.query.grouping is not None or self.source.query.distinct:
            return []
        return [column for column in self.source.key if self.dialect.folds(column.field)]

    def insert(self, within: Within, *, empty: bool) -> SQL:
        """Write the rows of the source that the view lacks; `empty`: it has none in the range."""
        columns = ", ".join(self.dialect.names([column.field for column in self.source.columns]))
        rows = self.reading.rows(within, missing=not empty)
        return SQL(f"INSERT INTO {self.table} ({columns}) {rows.text}", rows.params)

    def update(self, within: Within, skipped: Iterable[Range] = ()) -> SQL:
        """Write the values that differ. Only for views that have values."""
        rows = self.reading.rows(within)
        where = joined(" AND ", [*self.of_view(within, skipped), self.differing()])
        values = self.dialect.names([column.field for column in self.written])
        keyed = isinstance(self.reading, Keyed)
        return self.dialect.update(
            self.table, self.key, values, rows, where, self._pk(), keyed=keyed
        )

    def delete(self, within: Within, skipped: Iterable[Range] = ()) -> list[SQL]:
        """Remove the rows whose keys the source lacks; statements one after the other."""
        keys, where = self.reading.keys(within), self.of_view(within, skipped)
        return self.dialect.delete(self.table, self.key, keys, where, self._pk())

    def differing(self) -> SQL:
        """A condition on a row of the view and that of `ROWS` with its key: a value differs."""
        unlike = (
            self.dialect.differs(column, f"{self.table}.{name}", f"{ROWS}.{name}")
            for column, name in zip(
                self.written,
                self.dialect.names([column.field for column in self.written]),
                strict=True,
            )
        )
        return SQL(f"({' OR '.join(unlike) or '1 = 0'})")

    def _pk(self) -> list[str]:
        return self.dialect.names(self.source.model._meta.pk_fields, self.table)

    def surplus(self, within: Within) -> SQL:
        """A condition on a row of the view in the range: the source lacks its key."""
        wanted = self.dialect.names(self.key_fields, self.table)
        return self.dialect.lacking(self.reading.keys(within), self.key, wanted)

    def look_ahead(self, low: Key | None, count: int) -> "Ahead":
        """What the next `count` keys after `low` are."""
        ahead, keys = self.reading.keys_after(low, count), "matviews_keys"
        same = equal(qualified(self.table, self.key), qualified(keys, self.key))
        missing = f"SELECT 1 FROM {self.table} WHERE {same}"
        statement = SQL(
            f"WITH {keys} ({', '.join(self.key)}) AS ({ahead.text}) SELECT {', '.join(self.key)}, "
            f"(SELECT COUNT(*) FROM {keys}), EXISTS (SELECT 1 FROM {keys} WHERE NOT EXISTS ({missing})) "
            f"FROM {keys} ORDER BY {', '.join(f'{name} DESC' for name in self.key)} LIMIT 1",
            ahead.params,
        )
        with connections[self.dialect.using].cursor() as cursor:
            cursor.execute(*statement)
            row = cursor.fetchone()
        if row is None:
            return Ahead(None, 0, False)
        *values, found, lacks = row
        high = tuple(
            from_database(field, value, self.dialect.using)
            for field, value in zip(self.key_fields, values, strict=True)
        )
        return Ahead(high if found == count else None, found, bool(lacks))

    def in_view(self, within: Range) -> SQL:
        """A query for whether the view has a row in the range."""
        where = joined(" AND ", self.of_view(within))
        condition = f" WHERE {where.text}" if where else ""
        return SQL(f"SELECT 1 FROM {self.table}{condition} LIMIT 1", where.params)

    def waiting(self, phase: Phase) -> SQL:
        """A query for whether a phase has a row to write at all."""
        everything: Range = (None, None)
        if phase is Phase.INSERT:
            rows = self.reading.rows(everything, missing=True)
            return SQL(f"SELECT 1 FROM ({rows.text}) {ROWS} LIMIT 1", rows.params)
        if phase is Phase.UPDATE:
            rows = self.reading.rows(everything)
            return SQL(
                f"SELECT 1 FROM ({rows.text}) {ROWS} JOIN {self.table} ON {self.same} "
                f"WHERE {self.differing().text} LIMIT 1",
                rows.params,
            )
        surplus = self.surplus(everything)
        return SQL(f"SELECT 1 FROM {self.table} WHERE {surplus.text} LIMIT 1", surplus.params)

    def of_view(self, within: Within, skipped: Iterable[Range] = ()) -> Iterable[SQL]:
        """Conditions on rows of the view: in the range or among the keys, and in no range skipped."""
        columns = self.dialect.names(self.key_fields, self.table)
        yield self.dialect.inside(columns, self._prepared(within))
        for each in skipped:
            inside = self.dialect.inside(columns, self._prepared(each))
            yield SQL(f"NOT ({inside.text})", inside.params)

    def within(self, within: Range) -> Inside:
        """A condition on rows of the view, for its queryset: in the range."""
        names = [field.attname for field in self.key_fields]
        return Inside(*names, dialect=self.dialect, within=self._prepared(within))

    def _prepared(self, within: Within) -> Within:
        return prepared_within(self.key_fields, within, self.dialect.using)

    def do(
        self, phase: Phase, within: Range, skipped: Iterable[Range] = (), *, empty: bool = False
    ) -> int:
        """Do a phase in a range; the rows that it wrote. `empty`: the view has none there."""
        return self._rows(phase, self._of(phase, within, skipped, empty=empty))

    def do_keys(self, phase: Phase, keys: Keys, array: Array | None) -> int:
        """Do a phase for some keys; the rows that it wrote.

        Args:
            phase: the phase.
            keys: the keys, prepared.
            array: the same as the dialect's `array` has them.
        """
        if array is None:
            return self._rows(phase, self._of(phase, keys))
        return self._rows(phase, self._of_array(phase, keys, array))

    def _rows(self, phase: Phase, statements: Iterable[SQL]) -> int:
        rows = self.run(*statements)
        return self.dialect.updated(rows) if phase is Phase.UPDATE else rows

    def _of(
        self, phase: Phase, within: Within, skipped: Iterable[Range] = (), *, empty: bool = False
    ) -> list[SQL]:
        if phase is Phase.INSERT:
            return [self.insert(within, empty=empty)]
        if phase is Phase.UPDATE:
            return [self.update(within, skipped)] if self.written else []
        return self.delete(within, skipped)

    def _of_array(self, phase: Phase, keys: Keys, array: Array) -> list[SQL]:
        """The statements for some keys that are one parameter: compiled once."""
        kind = phase, type(keys.keys[0][0])
        if kind not in self._compiled:
            self._compiled[kind] = self._of(phase, keys)
        return [
            SQL(text, tuple(array if isinstance(each, Array) else each for each in params))
            for text, params in self._compiled[kind]
        ]

    def run(self, *statements: SQL) -> int:
        """Run statements of which one writes; the rows that its driver counts."""
        rows = 0
        with connections[self.dialect.using].cursor() as cursor:
            for statement in statements:
                cursor.execute(*statement)
                rows = max(rows, int(cursor.rowcount))
        return rows

    def finds(self, query: SQL) -> Any:
        """Whether a query has a row."""
        with connections[self.dialect.using].cursor() as cursor:
            cursor.execute(*query)
            return cursor.fetchone() is not None
