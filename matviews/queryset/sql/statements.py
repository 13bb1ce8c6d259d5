"""The statements of the phases, each for one range of keys and writing only what differs."""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from django.db import connections

from ...databases import ROWS, Dialect
from ...databases.fields import Column
from ...databases.keys import Key, Keys, KeySelection, Range, shown
from ...databases.sql import SQL, Array, equal, joined, qualified
from ...exceptions import NotAdvancing
from ...phases import Phase
from ..analysis.columns import exact_values
from ..analysis.source import Source
from .date_ranges import DateBound
from .readers import KeyReader, SourceReader, StageReader, next_keys

__all__ = ["Statements"]

KEYS = "matviews_keys"  # alias of the next keys
EVALUATED = "matviews_evaluated"  # the part of a statement that has the source's rows
EVERYTHING: Range = (None, None)


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
    """

    def __init__(
        self, source: Source, reader: SourceReader, dialect: Dialect, kinds: Sequence[str] = ()
    ) -> None:
        self.source, self.reader, self.dialect = source, reader, dialect
        self.table = dialect.name(source.model._meta.db_table)
        self.key_fields = [column.field for column in source.key]
        self.kinds = kinds or [dialect.kind_of(field) for field in self.key_fields]
        self.key = dialect.names(self.key_fields)
        # Whether a row of the view and one of `ROWS` have the same key.
        self.same = equal(qualified(self.table, self.key), qualified(ROWS, self.key))
        self.update_columns = [*source.values, *self._collation_updates()]
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
        keyed = isinstance(self.reader, KeyReader)
        return self.dialect.update(
            self.table, self.key, values, rows, where, self._pk(), keyed=keyed
        )

    def delete(self, within: KeySelection, skipped: Iterable[Range] = ()) -> list[SQL]:
        """Statements, to be run in order, that delete the rows whose keys are not in the source."""
        keys, where = self.reader.keys(within), self.of_view(within, skipped)
        return self.dialect.delete(self.table, self.key, keys, where, self._pk())

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

    def next_source_keys(self, low: Key | None, count: int) -> NextKeys:
        """The next `count` keys after `low` that the source may have.

        Raises:
            NotAdvancing: to the database, the last of them is not after `low`.
        """
        same = equal(qualified(self.table, self.key), qualified(KEYS, self.key))
        missing = f"SELECT 1 FROM {self.table} WHERE {same}"
        has_missing = f"EXISTS (SELECT 1 FROM {KEYS} WHERE NOT EXISTS ({missing}))"
        return self._next_keys(self.reader.keys_after(low, count), low, count, has_missing)

    def next_view_keys(
        self, low: Key | None, count: int, skipped: Iterable[Range] = ()
    ) -> NextKeys:
        """The next `count` keys of the view after `low`, without the skipped ranges.

        Raises:
            NotAdvancing: as in `next_source_keys`.
        """
        keys = next_keys(self.table, self.key, self.of_view((low, None), skipped), count)
        return self._next_keys(keys, low, count, "NULL")

    def _next_keys(self, keys: SQL, low: Key | None, count: int, has_missing: str) -> NextKeys:
        advances = self._advances(low)
        order = ", ".join(f"{name} DESC" for name in qualified(KEYS, self.key))
        row = self._row(
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
            after = f" after {shown(low)}" if low else ""
            raise NotAdvancing(
                f"the database returns the key {shown(high)}{after}, but does not find it there "
                f"again: check the type, collation and index of its columns."
            )
        return NextKeys(tuple(high) if found == count else None, found, bool(is_missing))

    def _advances(self, low: Key | None) -> SQL:
        """Whether the exact values of the next keys read back as the same keys, after `low`."""
        pairs = zip(self.kinds, self.exact, strict=True)
        given_back = [self.dialect.read_back(kind, exact) for kind, exact in pairs]
        beyond = self.dialect.beyond(given_back, ">", low) if low else SQL("")
        same = SQL(equal(given_back, qualified(KEYS, self.key)))
        return SQL(f"({same.text}{' AND ' * bool(beyond)}{beyond.text})", beyond.params)

    def before(self, key: Key) -> Key | None:
        """The last key of the view before this one."""
        columns = qualified(self.table, self.key)
        order = ", ".join(f"{name} DESC" for name in columns)
        condition = self.dialect.beyond(columns, "<", key)
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
        row = self._row(
            SQL(f"SELECT {', '.join(self.exact)} FROM ({query.text}) {KEYS}", query.params)
        )
        return None if row is None else tuple(row)

    def _row(self, query: SQL) -> tuple[Any, ...] | None:
        with connections[self.dialect.using].cursor() as cursor:
            cursor.execute(*query)
            row: tuple[Any, ...] | None = cursor.fetchone()
        return row

    def unknown(self, keys: Sequence[Key]) -> list[Key]:
        """The keys that neither the view nor the source has; as many as one statement takes."""
        within = Keys(tuple(keys), tuple(self.kinds))
        of_view = joined(" AND ", self.of_view(within))
        of_source = self.reader.keys(within)
        names, found = ", ".join(self.key), qualified("matviews_found", self.key)
        among = [self.dialect.among(found, Keys((key,), within.kinds)) for key in keys]
        columns = joined(
            ", ",
            (SQL(f"EXISTS (SELECT 1 FROM matviews_found WHERE {e.text})", e.params) for e in among),
        )
        row = self._row(
            SQL(
                f"WITH matviews_found AS (SELECT {names} FROM {self.table} WHERE {of_view.text} "
                f"UNION ALL SELECT {names} FROM ({of_source.text}) {ROWS}) SELECT {columns.text}",
                (*of_view.params, *of_source.params, *columns.params),
            )
        )
        return [key for key, known in zip(keys, row or (), strict=True) if not known]

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
        yield self.dialect.inside(columns, within)
        for skipped_range in skipped:
            inside = self.dialect.inside(columns, skipped_range)
            yield SQL(f"NOT ({inside.text})", inside.params)

    def do(
        self, phase: Phase, within: Range, skipped: Iterable[Range] = (), *, empty: bool = False
    ) -> int:
        """Run a phase in a range; the number of rows written. `empty`: the view has none there."""
        return self._rows(phase, self._of(phase, within, skipped, empty=empty))

    def do_keys(self, phase: Phase, keys: Keys, arrays: Sequence[Array]) -> int:
        """Run a phase for keys, whose parts are `Dialect.arrays`; the number of rows written."""
        if not arrays:
            return self._rows(phase, self._of(phase, keys))
        compiled = self._compiled_once([phase], keys, arrays, lambda: self._of(phase, keys))
        return self._rows(phase, compiled)

    def _rows(self, phase: Phase, statements: Iterable[SQL]) -> int:
        rows = self.run(*statements)
        return self.dialect.updated(rows) if phase is Phase.UPDATE else rows

    def _of(
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

    def do_keys_together(
        self, phases: Collection[Phase], keys: Keys, arrays: Sequence[Array]
    ) -> dict[Phase, int]:
        """Run phases for some keys, with one evaluation of the source; the rows that each wrote."""
        [statement] = self._compiled_once(
            phases, keys, arrays, lambda: [self._together(phases, keys)]
        )
        _keys, *written = self._row(statement) or ()
        return dict(zip(phases, written, strict=True))

    def do_together(self, phases: Collection[Phase]) -> tuple[int, dict[Phase, int]]:
        """Run phases for all keys; how many keys the source has, and rows that each wrote."""
        keys, *written = self._row(self._together(phases, EVERYTHING)) or ()
        return keys, dict(zip(phases, written, strict=True))

    def _together(self, phases: Collection[Phase], within: KeySelection) -> SQL:
        """A statement that runs phases, each as a part of it, and counts keys and rows.

        All parts see the view as it was before. None writes a row that another one does: of a key,
        either the source has a row, or the view, or both.
        """
        rows, parts = self.reader.rows(within), list[SQL]()
        reader = StageReader(self.source, self.dialect, EVALUATED)
        evaluated = Statements(self.source, reader, self.dialect, self.kinds)
        for phase in phases:
            [part] = evaluated._of(phase, within if phase is Phase.DELETE else EVERYTHING)
            parts.append(SQL(f"matviews_{phase.value} AS ({part.text} RETURNING 1)", part.params))
        counts = ", ".join(f"(SELECT count(*) FROM matviews_{phase.value})" for phase in phases)
        columns = ", ".join(self.dialect.names([column.field for column in self.source.columns]))
        written = joined(", ", parts)
        return SQL(
            f"WITH {EVALUATED} ({columns}) AS MATERIALIZED ({rows.text}), {written.text} "
            f"SELECT (SELECT count(*) FROM {EVALUATED}), {counts}",
            (*rows.params, *written.params),
        )

    def _compiled_once(
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
        return self._row(query) is not None
