"""The statements of the phases, each for one range of keys and writing only what differs."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from django.db import connections

from ...databases import ROWS, Dialect
from ...databases.fields import Column
from ...databases.keys import Key, Keys, KeySelection, Range
from ...databases.sql import SQL, Array, equal, joined, qualified
from ...phases import Phase
from ..analysis.columns import exact_values
from ..analysis.source import Source
from .date_ranges import DateBound
from .readers import KeyReader, SourceReader, next_keys, not_advancing
from .stage_reader import StageReader

__all__ = ["EVERYTHING", "KEYS", "Statements"]

KEYS = "matviews_keys"  # alias of the next keys
EVERYTHING: Range = (None, None)
MAX_COUNT = 2**63 - 1  # of a LIMIT


class NextKeys(NamedTuple):
    """The next keys of the view, or of the table that has the source's keys."""

    #: The last of these keys; None if there are fewer than requested.
    high: Key | None
    #: How many keys there are.
    keys: int
    #: For the source: whether one is missing in the view. The source may not have it either: the
    #: statement of the phase finds out.
    has_missing: bool = True


class Statements:
    """The SQL that brings a view up to date with its source, range by range.

    Args:
        source: the view's source.
        reader: how its rows are read.
        dialect: the SQL dialect of its database.
        kinds: the kinds of the key's columns, by default those of the model.
        are_few: whether the reader returns so few rows that each is looked up in the view.
    """

    def __init__(
        self,
        source: Source,
        reader: SourceReader,
        dialect: Dialect,
        kinds: Sequence[str] = (),
        *,
        are_few: bool = False,
    ) -> None:
        self.source, self.reader, self.dialect = source, reader, dialect
        self.table = dialect.name(source.model._meta.db_table)
        self.key_fields = [column.field for column in source.key]
        self.kinds = kinds or [dialect.kind_of(field) for field in self.key_fields]
        self.key = dialect.names(self.key_fields)
        # Whether a row of the view and one of `ROWS` have the same key.
        self.same = equal(qualified(self.table, self.key), qualified(ROWS, self.key))
        self.update_columns = [*source.values, *self._collation_updates()]
        self.are_few = are_few or isinstance(reader, KeyReader)
        self._compiled: dict[tuple[Any, ...], list[SQL]] = {}

    def _collation_updates(self) -> list[Column]:
        """Key columns with a case-insensitive collation: equal keys may differ in spelling.

        Not of grouped rows: which of several spellings stands for a group is arbitrary.
        """
        if self.source.query.grouped or self.source.query.distinct:
            return []
        return [column for column in self.source.key if self.dialect.has_ci_collation(column.field)]

    def insert(self, within: KeySelection, *, empty: bool) -> SQL:
        """Insert the source's rows that the view lacks; `empty`: it has no rows in the range."""
        columns = ", ".join(self.dialect.names([column.field for column in self.source.columns]))
        rows = self.reader.rows(within, missing=not empty)
        return SQL(f"INSERT INTO {self.table} ({columns}) {rows.text}", rows.params)

    def update(self, within: KeySelection, skipped: Iterable[Range] = ()) -> SQL:
        """Write the values that differ. Only for views with `update_columns`."""
        rows = self.reader.rows(within)
        where = joined(" AND ", [*self.of_view(within, skipped), self.differs_sql()])
        values = self.dialect.names([column.field for column in self.update_columns])
        return self.dialect.update(
            self.table, self.key, values, rows, where, self._pk(), keyed=self.are_few
        )

    def delete(self, within: KeySelection, skipped: Iterable[Range] = ()) -> list[SQL]:
        """Statements, to be run in order, that delete the rows whose keys are not in the source."""
        keys, where = self.reader.keys(within), self.of_view(within, skipped)
        few = isinstance(within, Keys)
        stored = few and isinstance(self.reader, StageReader) and self.reader.is_stored
        return self.dialect.delete(self.table, self.key, keys, where, self._pk(), stored=stored)

    def differs_sql(self) -> SQL:
        """Whether a value differs between a row of the view and the one of `ROWS` with its key."""
        differences = (
            self.dialect.differs(column, f"{self.table}.{name}", f"{ROWS}.{name}")
            for column, name in zip(
                self.update_columns,
                self.dialect.names([column.field for column in self.update_columns]),
                strict=True,
            )
        )
        return SQL(f"({' OR '.join(differences) or '1 = 0'})")

    def _pk(self) -> list[str]:
        return self.dialect.names(self.source.model._meta.pk_fields, self.table)

    def surplus_sql(self, within: KeySelection) -> SQL:
        """Whether the source does not have the key of a row of the view in the range."""
        of_view = self.dialect.names(self.key_fields, self.table)
        return self.dialect.not_in_source(self.reader.keys(within), self.key, of_view)

    @cached_property
    def exact(self) -> list[str]:
        """The columns of the next keys as exact values; empty if one of them has no exact form."""
        return exact_values(self.key_fields, KEYS, self.dialect, self.kinds)

    def next_source_keys(self, low: Key | None, count: int, high: Key | None = None) -> NextKeys:
        """The next `count` keys after `low`, up to `high`, that the source may have.

        Raises:
            NotAdvancing: to the database, the last of them is not after `low`.
        """
        same = equal(qualified(self.table, self.key), qualified(KEYS, self.key))
        missing = f"SELECT 1 FROM {self.table} WHERE {same}"
        has_missing = f"EXISTS (SELECT 1 FROM {KEYS} WHERE NOT EXISTS ({missing}))"
        return self._next_keys(self.reader.keys_after(low, count, high), low, count, has_missing)

    def count_source_keys(self) -> int:
        """How many keys `next_source_keys` finds in all."""
        keys = self.reader.keys_after(None, MAX_COUNT)
        row = self.row(SQL(f"SELECT COUNT(*) FROM ({keys.text}) {KEYS}", keys.params))
        return int(row[0]) if row else 0

    def next_view_keys(
        self,
        low: Key | None,
        count: int,
        skipped: Iterable[Range] = (),
        high: Key | None = None,
    ) -> NextKeys:
        """The next `count` keys of the view after `low`, up to `high`, not in skipped ranges.

        Raises:
            NotAdvancing: as in `next_source_keys`.
        """
        keys = next_keys(self.table, self.key, self.of_view((low, high), skipped), count)
        return self._next_keys(keys, low, count, "NULL")

    def _next_keys(self, keys: SQL, low: Key | None, count: int, has_missing: str) -> NextKeys:
        advances = self.advances(low)
        order = ", ".join(f"{name} DESC" for name in qualified(KEYS, self.key))
        row = self.row(
            SQL(
                f"WITH {KEYS} ({', '.join(self.key)}) AS ({keys.text}) "
                f"SELECT {', '.join(self.exact)}, "
                f"(SELECT COUNT(*) FROM {KEYS}), {has_missing}, {advances.text} "
                f"FROM {KEYS} ORDER BY {order} LIMIT 1",
                (*keys.params, *advances.params),
            )
        )
        if row is None:
            return NextKeys(None, 0, False)
        *high, found, is_missing, is_advancing = row
        if not is_advancing:
            raise not_advancing(tuple(high), low)
        return NextKeys(tuple(high) if found == count else None, found, bool(is_missing))

    def advances(self, low: Key | None) -> SQL:
        """Whether the exact values of the next keys read back as the same keys, after `low`."""
        pairs = zip(self.kinds, self.exact, strict=True)
        given_back = [self.dialect.read_back(kind, exact) for kind, exact in pairs]
        beyond = self.dialect.compares(given_back, ">", low) if low else SQL("")
        same = SQL(equal(given_back, qualified(KEYS, self.key)))
        return SQL(f"({same.text}{' AND ' * bool(beyond)}{beyond.text})", beyond.params)

    def before(self, key: Key) -> Key | None:
        """The last key of the view before this one."""
        columns = qualified(self.table, self.key)
        order = ", ".join(f"{name} DESC" for name in columns)
        condition = self.dialect.compares(columns, "<", key)
        return self._key(
            SQL(
                f"SELECT {', '.join(self.key)} FROM {self.table} WHERE {condition.text} "
                f"ORDER BY {order} LIMIT 1",
                condition.params,
            )
        )

    def first(self, low: Key | None, skipped: Iterable[Range]) -> Key | None:
        """The view's next key after `low` outside the skipped ranges."""
        return self._key(next_keys(self.table, self.key, self.of_view((low, None), skipped), 1))

    def _key(self, query: SQL) -> Key | None:
        row = self.row(
            SQL(f"SELECT {', '.join(self.exact)} FROM ({query.text}) {KEYS}", query.params)
        )
        return None if row is None else tuple(row)

    def row(self, query: SQL) -> tuple[Any, ...] | None:
        with connections[self.dialect.using].cursor() as cursor:
            cursor.execute(*query)
            row: tuple[Any, ...] | None = cursor.fetchone()
        return row

    def in_view(self, within: Range) -> SQL:
        """A query for whether the view has a row in the range."""
        where = joined(" AND ", self.of_view(within))
        condition = f" WHERE {where.text}" if where else ""
        return SQL(f"SELECT 1 FROM {self.table}{condition} LIMIT 1", where.params)

    def pending_sql(self, phase: Phase) -> SQL:
        """A query for whether a phase has any row to write."""
        if phase is Phase.INSERT:
            rows = self.reader.rows(EVERYTHING, missing=True)
            return SQL(f"SELECT 1 FROM ({rows.text}) {ROWS} LIMIT 1", rows.params)
        if phase is Phase.UPDATE:
            rows = self.reader.rows(EVERYTHING)
            return SQL(
                f"SELECT 1 FROM ({rows.text}) {ROWS} JOIN {self.table} ON {self.same} "
                f"WHERE {self.differs_sql().text} LIMIT 1",
                rows.params,
            )
        surplus = self.surplus_sql(EVERYTHING)
        return SQL(f"SELECT 1 FROM {self.table} WHERE {surplus.text} LIMIT 1", surplus.params)

    def of_view(self, within: KeySelection, skipped: Iterable[Range] = ()) -> Iterable[SQL]:
        """Conditions on rows of the view: in the selection, and outside the skipped ranges."""
        columns = self.dialect.names(self.key_fields, self.table)
        yield self.dialect.selects(columns, within, self.key_fields)
        for skipped_range in skipped:
            inside = self.dialect.selects(columns, skipped_range)
            yield SQL(f"NOT ({inside.text})", inside.params)

    def do(
        self,
        phase: Phase,
        within: KeySelection,
        skipped: Iterable[Range] = (),
        *,
        empty: bool = False,
    ) -> int:
        """Run a phase; the number of rows written. `empty`: the view has none there."""
        return self.written(phase, self.of(phase, within, skipped, empty=empty))

    def do_keys(self, phase: Phase, keys: Keys, arrays: Sequence[Array]) -> int:
        """Run a phase for keys, whose parts are `Dialect.arrays`; the number of rows written."""
        if not arrays:
            return self.written(phase, self.of(phase, keys))
        compiled = self.compiled_once([phase], keys, arrays, lambda: self.of(phase, keys))
        return self.written(phase, compiled)

    def written(self, phase: Phase, statements: Iterable[SQL]) -> int:
        rows = self.run(*statements)
        return self.dialect.updated(rows) if phase is Phase.UPDATE else rows

    def of(
        self,
        phase: Phase,
        within: KeySelection,
        skipped: Iterable[Range] = (),
        *,
        empty: bool = False,
    ) -> list[SQL]:
        if phase is Phase.INSERT:
            return [self.insert(within, empty=empty)]
        if phase is Phase.UPDATE:
            return [self.update(within, skipped)] if self.update_columns else []
        return self.delete(within, skipped)

    def compiled_once(
        self,
        phases: Iterable[Phase],
        keys: Keys,
        arrays: Sequence[Array],
        compiled: Callable[[], list[SQL]],
    ) -> list[SQL]:
        """Statements that are compiled once, with the parameters of these keys."""
        ends = self.reader.bounds(keys) if isinstance(self.reader, KeyReader) else []
        bounds = {(bound.part, bound.is_upper): bound for bound in ends}
        types = tuple(frozenset(map(type, part)) for part in zip(*keys.keys, strict=True))
        kind = (*phases,), types, tuple(bounds)
        if kind not in self._compiled:
            self._compiled[kind] = compiled()

        def current(param: Any) -> Any:
            if isinstance(param, DateBound):
                return bounds[param.part, param.is_upper]
            return arrays[param.part] if isinstance(param, Array) else param

        return [SQL(text, tuple(map(current, params))) for text, params in self._compiled[kind]]

    def run(self, *statements: SQL) -> int:
        """Run statements of which one writes; the row count of its driver."""
        rows = 0
        with connections[self.dialect.using].cursor() as cursor:
            for statement in statements:
                cursor.execute(*statement)
                rows = max(rows, int(cursor.rowcount))
        return rows

    def finds(self, query: SQL) -> bool:
        """Whether a query returns a row."""
        return self.row(query) is not None
