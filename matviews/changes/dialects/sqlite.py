"""SQLite: a trigger per row. There is one writer at a time, so a change that is logged already, and
not yet moved, need not be logged again.
"""

from collections.abc import Collection, Iterator
from typing import ClassVar

from .base import TriggerDialect

__all__ = ["SQLiteTriggers"]


class SQLiteTriggers(TriggerDialect):
    """They call no function that Django adds to its own connections: others write as well."""

    catalog: ClassVar[str] = (
        "SELECT tbl_name, name FROM sqlite_master WHERE type = 'trigger' AND name LIKE %s ESCAPE '\\'"
    )

    def statements(
        self, name: str, event: str, table: str, columns: Collection[str] | None
    ) -> Iterator[str]:
        """As the base class has it."""
        text = self.literal(table)
        changed = ""
        if event == "update" and columns is not None:
            changed = f"WHEN {' OR '.join(map(self._unlike, sorted(columns)))} "
        yield (
            f"CREATE TRIGGER {self.name(name)} AFTER {event.upper()} ON {self.name(table)} {changed}"
            f"BEGIN INSERT INTO {self.log} ({self.logged_table}) SELECT {text} WHERE NOT EXISTS "
            f"(SELECT 1 FROM {self.log} WHERE {self.logged_table} = {text}); END"
        )

    def _unlike(self, column: str) -> str:
        return f"OLD.{self.name(column)} COLLATE BINARY IS NOT NEW.{self.name(column)}"
