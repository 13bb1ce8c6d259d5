"""SQLite: a trigger per row.

There is one writer at a time, so a change that is in the log need not be logged again before it is
moved.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import ClassVar

from ..base.triggers import (
    MAX_LINK_BYTES,
    NAME_REGEX,
    NOT_ORDINARY,
    TOO_LONG,
    Triggers,
    digest,
    json_of,
)
from ..trigger_spec import BatchWrites, TriggerSpec

__all__ = ["SQLiteTriggers"]


class SQLiteTriggers(Triggers):
    """They call no function that Django adds to its own connections: other programs write too."""

    catalog: ClassVar[str] = (
        "SELECT tbl_name AS matviews_table, name AS matviews_made FROM sqlite_master "
        "WHERE type = 'trigger' AND name LIKE %s ESCAPE '\\'"
    )
    concat_sql: ClassVar[str] = "GROUP_CONCAT(matviews_made, ' ')"

    events: ClassVar[tuple[str, ...]] = ("insert", "update", "delete", "replace")

    def events_of(self, spec: TriggerSpec) -> list[str]:
        """ "replace" is only needed if links are logged."""
        return [event for event in super().events_of(spec) if event != "replace" or spec.links]

    def statements(self, name: str, event: str, table: str, spec: TriggerSpec) -> Iterator[str]:
        """REPLACE fires no trigger for the rows it deletes, so each INSERT looks for them first."""
        skipped = spec.batches is BatchWrites.SKIPPED
        conditions = [f"NOT {self.is_batch(table)}"] if skipped else []
        if event == "replace":
            log, when = self._log(table, spec, self.name(table)), _when(conditions)
            yield (
                f"CREATE TRIGGER {self.name(name)} BEFORE INSERT ON {self.name(table)} {when}BEGIN "
                f"{log} FROM {self.name(table)} WHERE {self._replaced(table)}; END"
            )
            return
        rows = {"insert": ["NEW"], "delete": ["OLD"]}.get(event, ["OLD", "NEW"])
        if event == "update" and spec.columns is not None:
            conditions.append(f"NOT ({self._same(table, spec.columns)})")
        changed = self._changed(spec) if event == "update" else ""
        logs = [
            self._log(table, spec, row, changed) for row in rows if row == rows[0] or spec.links
        ]
        if event == "update" and spec.links:
            logs[1] += f" WHERE NOT ({self._same(table, spec.links)})"
        yield (
            f"CREATE TRIGGER {self.name(name)} AFTER {event.upper()} ON {self.name(table)} "
            f"{_when(conditions)}BEGIN {' '.join(f'{log};' for log in logs)} END"
        )

    def _log(self, table: str, spec: TriggerSpec, row: str, changed: str = "") -> str:
        values = {"table": self.literal(table), "links": self._links(row, spec.links)}
        if changed:
            values["changed"] = changed
        values |= self.marks(table, spec)
        log = f"{self.insert(values)} SELECT {', '.join(values.values())}"
        if spec.links:
            return log
        waiting = self.name("changed")
        covered = f"{waiting} IS NULL{changed and f' OR {waiting} = {changed}'}"
        if spec.batches is BatchWrites.MARKED:
            covered = f"({covered}) AND by_batch <= {self.is_batch(table)}"
        return (
            f"{log} WHERE NOT EXISTS (SELECT 1 FROM {self.log} "
            f"WHERE {self.name('table')} = {values['table']} AND ({covered}))"
        )

    def _changed(self, spec: TriggerSpec) -> str:
        """The recorded columns that an UPDATE changed, as JSON; "" if none is recorded."""
        if not spec.recorded:
            return ""
        names = " || ".join(
            f"CASE WHEN {self._same_value(column)} THEN '' "
            f"ELSE {self.literal(f',{json_of(column)}')} END"
            for column in sorted(spec.recorded)
        )
        return f"'[' || substr({names}, 2) || ']'"

    def untrackable_tables(self, tables: Collection[str]) -> dict[str, str]:
        """A virtual table can have no trigger."""
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT name FROM sqlite_master WHERE sql LIKE 'CREATE VIRTUAL TABLE %%'"
            )
            virtual = {name for (name,) in cursor.fetchall()} & set(tables)
        return super().untrackable_tables(tables) | dict.fromkeys(virtual, NOT_ORDINARY)

    def _links(self, row: str, links: Collection[str]) -> str:
        """The links of a row as a log entry has them, as JSON: integers and texts.

        Any column may hold any value. What JSON cannot return unchanged is not written, nor is a
        value longer than a lower limit on the length of values might allow.
        """
        names = [f"{row}.{self.name(link)}" for link in sorted(links)]
        if not names:
            return self._json([[]])
        inexact = " OR ".join(
            f"typeof({name}) IN ('real', 'blob') "
            f"OR (typeof({name}) = 'text' AND instr({name}, char(0)))"
            for name in names
        )
        sizes = " + ".join(
            f"CASE typeof({name}) WHEN 'text' THEN LENGTH(CAST({name} AS BLOB)) ELSE 0 END"
            for name in names
        )
        header = ", ".join(map(self.literal, sorted(links)))
        return (
            f"CASE WHEN {inexact} THEN NULL "
            f"WHEN {sizes} > {MAX_LINK_BYTES} THEN {self._json(TOO_LONG)} "
            f"ELSE json_array(json_array({header}), json_array({', '.join(names)})) END"
        )

    def _json(self, value: object) -> str:
        return self.literal(json_of(value))

    @contextmanager
    def suppressed(self, tables: Collection[str], secret: Callable[[], str]) -> Iterator[None]:
        """Drops the triggers for a while, which no other connection sees."""
        marks = ", ".join(["%s"] * len(tables))
        with self.connection.cursor() as cursor:
            cursor.execute(
                f"SELECT name, sql FROM sqlite_master "
                f"WHERE tbl_name IN ({marks}) AND type = 'trigger'",
                list(tables),
            )
            triggers = {name: sql for name, sql in cursor.fetchall() if NAME_REGEX.fullmatch(name)}
        self.execute(f"DROP TRIGGER {self.name(name)}" for name in triggers)
        yield
        self.execute(triggers.values())

    @contextmanager
    def as_batch(self, table: str, secret: str) -> Iterator[None]:
        """With a value that only this transaction sees, because it never commits it."""
        self._set_batch(digest(table))
        yield
        self._set_batch("")

    def _set_batch(self, table: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(f"UPDATE {self.secrets} SET batch = %s", [table])

    def is_batch(self, table: str) -> str:
        return f"EXISTS (SELECT 1 FROM {self.secrets} WHERE batch = {self.literal(digest(table))})"

    def _replaced(self, table: str) -> str:
        """Whether a new row would replace this one."""
        row = self.name(table)
        same = (
            " AND ".join(f"{row}.{name} = NEW.{name}" for name in map(self.name, key))
            for key in sorted(self._keys(table))
        )
        return " OR ".join(f"({condition})" for condition in same) or "FALSE"

    def _keys(self, table: str) -> set[tuple[str, ...]]:
        """The columns of each unique index that the database has, declared in a model or not."""
        found: dict[str, list[str | None]] = {}
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT '', name FROM pragma_table_info(%s) WHERE pk UNION ALL "
                "SELECT i.name, c.name FROM pragma_index_list(%s) i, pragma_index_info(i.name) c "
                'WHERE i."unique"',
                [table, table],
            )
            for index, column in cursor.fetchall():
                found.setdefault(index, []).append(column)
        return {tuple(filter(None, columns)) for columns in found.values() if all(columns)}

    def _same(self, table: str, columns: Collection[str]) -> str:
        return " AND ".join(map(self._same_value, sorted(columns)))

    def _same_value(self, column: str) -> str:
        name = self.name(column)
        return f"OLD.{name} COLLATE BINARY IS NEW.{name}"


def _when(conditions: Collection[str]) -> str:
    return f"WHEN {' AND '.join(conditions)} " if conditions else ""
