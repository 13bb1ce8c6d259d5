"""SQLite: a trigger per row.

There is one writer at a time, so a change that is already in the log is not logged again until that
entry is moved.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import ClassVar

from ..base.sums import WEIGHT
from ..base.triggers import MAX_LINK_BYTES, NAME_REGEX, NOT_ORDINARY, TOO_LONG, Triggers, json_of
from ..trigger_spec import TriggerSpec

__all__ = ["SQLiteTriggers"]


WEIGHTS = {"OLD": -1, "NEW": 1}


class SQLiteTriggers(Triggers):
    """They call no function that Django adds to its own connections: other programs write too."""

    catalog: ClassVar[str] = (
        "SELECT tbl_name AS matviews_table, name AS matviews_made FROM sqlite_master "
        "WHERE type = 'trigger' AND name LIKE %s ESCAPE '\\'"
    )
    concat_sql: ClassVar[str] = "GROUP_CONCAT(matviews_made, ' ')"

    events: ClassVar[tuple[str, ...]] = ("insert", "update", "delete", "replace")

    def events_of(self, spec: TriggerSpec) -> list[str]:
        """ "replace" is only needed if links or values are logged."""
        needed = spec.links or spec.value_logs
        return [event for event in super().events_of(spec) if event != "replace" or needed]

    def statements(self, name: str, event: str, table: str, spec: TriggerSpec) -> Iterator[str]:
        """REPLACE fires no trigger for the rows it deletes, so each INSERT looks for them first."""
        if event == "replace":
            replaced = f"FROM {self.name(table)} WHERE ({self._replaced(table)})"
            log = self._log(table, spec, self.name(table), rows=replaced)
            doubts = "".join(f" {each} {replaced};" for each in self._doubts(table, spec))
            yield (
                f"CREATE TRIGGER {self.name(name)} BEFORE INSERT ON {self.name(table)} BEGIN "
                f"{log};{doubts} END"
            )
            return
        when, rows = "", {"insert": ["NEW"], "delete": ["OLD"]}.get(event, ["OLD", "NEW"])
        if event == "update" and spec.columns is not None:
            when = f"WHEN NOT ({self._same(table, spec.columns)}) "
        changed = self._changed(spec) if event == "update" else ""
        logs = [
            self._log(table, spec, row, changed) for row in rows if row == rows[0] or spec.links
        ]
        if event == "update" and spec.links:
            logs[1] += f" WHERE NOT ({self._same(table, spec.links)})"
        yield (
            f"CREATE TRIGGER {self.name(name)} AFTER {event.upper()} ON {self.name(table)} {when}"
            f"BEGIN {' '.join(f'{log};' for log in [*logs, *self._values(rows, spec)])} END"
        )

    def _values(self, rows: Collection[str], spec: TriggerSpec) -> Iterator[str]:
        """Statements that write the values of `OLD` and `NEW` to the value logs."""
        for log in sorted(spec.value_logs):
            names = list(map(self.name, log.columns))
            for row in rows:
                values = [str(WEIGHTS[row]), *(f"{row}.{name}" for name in names)]
                yield (
                    f"INSERT INTO {self.name(log.name)} ({', '.join([WEIGHT, *names])}) "
                    f"SELECT {', '.join(values)}"
                )

    def _doubts(self, table: str, spec: TriggerSpec) -> Iterator[str]:
        """The beginnings of statements that have the groups of rows recomputed.

        The rows may be there afterwards: the trigger of an INSERT that ignores a conflict, or
        becomes an UPDATE, is the same.
        """
        for log in sorted(spec.value_logs):
            names = ", ".join(map(self.name, log.columns))
            yield f"INSERT INTO {self.name(log.name)} ({WEIGHT}, {names}) SELECT 0, {names}"

    def _log(
        self, table: str, spec: TriggerSpec, row: str, changed: str = "", rows: str = ""
    ) -> str:
        """A statement that logs `row`; or each of `rows`, which are FROM and WHERE."""
        values = {"table": self.literal(table), "links": self._links(row, spec.links)}
        if changed:
            values["changed"] = changed
        log = f"{self.insert(values)} SELECT {', '.join(values.values())} {rows}".rstrip()
        if spec.links:
            return log
        waiting = self.name("changed")
        covered = f"{waiting} IS NULL{changed and f' OR {waiting} = {changed}'}"
        return (
            f"{log} {'AND' if rows else 'WHERE'} NOT EXISTS (SELECT 1 FROM {self.log} "
            f"WHERE {self.name('table')} = {values['table']} AND ({covered}))"
            f"{' LIMIT 1' * bool(rows)}"
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

    def _replaced(self, table: str) -> str:
        """Whether a new row would replace this one."""
        row = self.name(table)
        same = (
            " AND ".join(
                f"{row}.{self.name(name)} = NEW.{self.name(name)} COLLATE {self.name(collation)}"
                for name, collation in key
            )
            for key in sorted(self._keys(table))
        )
        return " OR ".join(f"({condition})" for condition in same) or "FALSE"

    def _keys(self, table: str) -> set[tuple[tuple[str, str], ...]]:
        """The columns of each unique index that the database has, declared in a model or not.

        Each with the collation in which the index compares it. Indexes of expressions are left out.
        """
        found: dict[str, list[tuple[str | None, str]]] = {}
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT '', name, 'BINARY' FROM pragma_table_info(%s) WHERE pk UNION ALL "
                "SELECT i.name, c.name, c.coll FROM pragma_index_list(%s) i, "
                """pragma_index_xinfo(i.name) c WHERE i."unique" AND c.key""",
                [table, table],
            )
            for index, column, collation in cursor.fetchall():
                found.setdefault(index, []).append((column, collation))
        return {
            tuple((column, collation) for column, collation in key if column is not None)
            for key in found.values()
            if all(column is not None for column, _collation in key)
        }

    def _same(self, table: str, columns: Collection[str]) -> str:
        return " AND ".join(map(self._same_value, sorted(columns)))

    def _same_value(self, column: str) -> str:
        name = self.name(column)
        return f"OLD.{name} COLLATE BINARY IS NEW.{name}"
