"""A source with a key and a tracked view of it, for tests of how keys are kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, models
from django.db.models import F, Sum

from matviews import changes, engine
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.tables import derived_view, made, model

__all__ = ["Kept"]

AS_TEXT = f"CAST({{}} AS {'char' if connection.vendor == 'mysql' else 'text'})"
EXACT = "quote({})" if connection.vendor == "sqlite" else AS_TEXT


class Kept:
    """A source with the columns k and n, and a view of it.

    Args:
        field: makes the field of the key.
        grouped: whether the view has a row for each key and not for each row of the source.
        indexed: whether an index serves the key of the source, so that it is windowed.
    """

    def __init__(self, field: Any, *, grouped: bool = False, indexed: bool = True) -> None:
        of_row = {"db_index": indexed} if grouped else {"unique": True}
        self.Row = row = model("Row", k=field(**of_row), n=models.IntegerField())
        rows, groups = {"total": F("n")}, {"total": Sum("n")}
        self.View = derived_view(
            lambda cls: (
                row._base_manager.values(ref=F("k")).annotate(**groups)
                if grouped
                else row._base_manager.values(ref=F("k"), **rows)
            ),
            ref=field(unique=True),
            total=models.IntegerField(null=True),
        )

    @contextmanager
    def tracked(self, alter: Callable[[], object] = list) -> Iterator[None]:
        """The tables are there until the end, altered, with triggers."""
        with made(self.Row, self.View):
            alter()
            changes.install(engine.alias())
            try:
                yield
            finally:
                changes.remove(engine.alias())

    def sql(self, statement: str, *params: Any) -> None:
        """Run a statement of somebody else: on MariaDB and MySQL, in a lax mode."""
        for name, each in (("ROWS", self.Row), ("VIEW", self.View)):
            statement = statement.replace(name, each._meta.db_table)
        with connection.cursor() as cursor:
            if connection.vendor == "mysql":
                cursor.execute("SET @sql_mode = @@sql_mode, sql_mode = ''")
            try:
                cursor.execute(statement, params or None)
            finally:
                if connection.vendor == "mysql":
                    cursor.execute("SET sql_mode = @sql_mode")

    def insert(self, *pairs: tuple[Any, int]) -> None:
        for key, n in pairs:
            self.sql("INSERT INTO ROWS (k, n) VALUES (%s, %s)", key, n)

    def change(self, **request: Any) -> None:
        """Refresh the view by its dirty keys alone."""
        assert self.refresh(**request) == {""}

    def refresh(self, **request: Any) -> set[str]:
        """Refresh the view; why its phases have looked at all keys, "" where they have not."""
        refresh = view_classes.run(self.View, **request)
        assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
        return {run.full_refresh_reason for run in refresh.runs.all()}

    @property
    def rows(self) -> dict[Any, int]:
        """The view's keys, as texts of the database, and their values."""
        return dict(self._pairs(self.View, "ref", "total", AS_TEXT))

    @property
    def exact_rows(self) -> list[tuple[str, int]]:
        """The same in order; on SQLite, a text and a number that look alike are two."""
        return sorted(self._pairs(self.View, "ref", "total", EXACT))

    @property
    def exact_source_rows(self) -> list[tuple[str, int]]:
        """As `exact_rows`, of the source."""
        return sorted(self._pairs(self.Row, "k", "n", EXACT))

    def _pairs(self, of: Any, key: str, value: str, shown: str) -> list[tuple[str, int]]:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {shown.format(key)}, {value} FROM {of._meta.db_table}")
            return list(cursor.fetchall())
