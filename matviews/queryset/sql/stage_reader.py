"""Reading the rows of a source from a staging table, or from its query as a whole."""

from ...databases import Dialect
from ...databases.fields import AnyField, Column
from ...databases.keys import Key, KeySelection
from ...databases.sql import SQL, equal, joined
from ..analysis.source import Source
from .readers import as_stored, next_keys, whole

__all__ = ["RAW", "StageReader", "is_raw"]

#: How the name of a staging table ends whose values are as they were computed, see `is_raw`.
RAW = "_raw"


def is_raw(stage: str) -> bool:
    """Whether a staging table, given by its name, also takes values that the view refuses.

    Its columns have the types of the source's expressions, and may be NULL. Only its key is as in
    the view.
    """
    return stage.endswith(RAW)


class StageReader:
    """Reads a staging table, or evaluates the source as a whole in each statement.

    Args:
        source: the source.
        dialect: the SQL dialect of its database.
        stage: the name of the staging table; "" evaluates the source.
        table: the same, already quoted.
    """

    def __init__(
        self, source: Source, dialect: Dialect, stage: str = "", *, table: str = ""
    ) -> None:
        self.source, self.dialect = source, dialect
        self.stage = table or dialect.name(stage or "matviews_whole")
        self.table = SQL(self.stage)
        self.is_stored = bool(stage or table)
        self.is_raw = is_raw(stage)
        if not self.is_stored:
            computed = whole(source, dialect)
            self.table = SQL(f"({computed.text}) {self.stage}", computed.params)
        self.key_fields: list[AnyField] = [column.field for column in source.key]

    def rows(self, within: KeySelection, *, missing: bool = False) -> SQL:
        condition = [self._inside(within)]
        if missing:
            condition.append(self._missing())
        return self._select(joined(", ", map(self._stored, self.source.columns)), condition)

    def keys(self, within: KeySelection) -> SQL:
        names = ", ".join(self.dialect.names(self.key_fields))
        return self._select(SQL(names), [self._inside(within)])

    def keys_after(self, low: Key | None, count: int, high: Key | None = None) -> SQL:
        names = self.dialect.names(self.key_fields)
        keys = next_keys(self.table.text, names, [self._inside((low, high))], count)
        return SQL(keys.text, (*self.table.params, *keys.params))

    def _stored(self, column: Column) -> SQL:
        """A column as the view will store it."""
        [name] = self.dialect.names([column.field])
        if not self.is_raw or column in self.source.key:
            return SQL(name)
        return joined(" AS ", (as_stored(column, name, self.dialect), SQL(name)))

    def _inside(self, within: KeySelection) -> SQL:
        names = self.dialect.names(self.key_fields, self.stage)
        return self.dialect.selects(names, within, self.key_fields)

    def _missing(self) -> SQL:
        view = self.dialect.name(self.source.model._meta.db_table)
        mine = self.dialect.names(self.key_fields, self.stage)
        theirs = self.dialect.names(self.key_fields, view)
        return SQL(f"NOT EXISTS (SELECT 1 FROM {view} WHERE {equal(mine, theirs)})")

    def _select(self, columns: SQL, conditions: list[SQL]) -> SQL:
        where = joined(" AND ", conditions)
        text = f" WHERE {where.text}" if where else ""
        return SQL(
            f"SELECT {columns.text} FROM {self.table.text}{text}",
            (*columns.params, *self.table.params, *where.params),
        )
