"""MariaDB and MySQL: log rows that a foreign key changes, which fires no trigger of their table.

Triggers of the referenced table log them before the foreign key acts, for each table that it may
reach. A trigger locks the rows that it reads, as the foreign key does next: without the lock, it
would not see rows that others have committed since its transaction began. The locks are shared,
because FOR UPDATE is refused where the writer's statement reads the same table.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from ..base.sums import WEIGHT
from ..base.triggers import TriggerName, digest
from ..trigger_spec import TriggerSpec
from .references import Cascade, Reference, cascades_to, read_references
from .trigger_sql import (
    MODE_BACK,
    NO_SUCH_COLUMN,
    NO_SUCH_TABLE,
    OWN_NUMBER,
    PLAIN_MODE,
    UTC_NOW,
    MySQLTriggerSQL,
)

__all__ = ["CascadeTrigger", "CascadeTriggers"]

NEW_KEY = "a foreign key with ON DELETE or ON UPDATE, which fires no trigger here, was added"


class CascadeTrigger(NamedTuple):
    """A trigger of a referenced table."""

    #: What stands for the event in its name.
    name: str
    #: Its event and table, in SQL.
    on: str
    body: str


class CascadeTriggers(MySQLTriggerSQL):
    """A table's triggers, and those of the tables whose changes cascade to it."""

    def _create(self, table: str, spec: TriggerSpec, version: str) -> Iterator[str]:
        yield from super()._create(table, spec, version)
        for each in self._cascading(table, spec):
            trigger = self.name(str(TriggerName(digest(table), version, each.name)))
            yield PLAIN_MODE
            yield f"CREATE TRIGGER {trigger} BEFORE {each.on} FOR EACH ROW {each.body}"
            yield MODE_BACK

    def names(self, table: str, spec: TriggerSpec) -> set[str]:
        version = self.version(table, spec)
        return super().names(table, spec) | {
            str(TriggerName(digest(table), version, each.name))
            for each in self._cascading(table, spec)
        }

    def _bodies(self, table: str, spec: TriggerSpec) -> dict[str, str]:
        cascading = {each.name: each.body for each in self._cascading(table, spec)}
        return super()._bodies(table, spec) | cascading

    def unlogged(self, tables: Collection[str]) -> dict[str, str]:
        """Tables that gained a foreign key with an action since their triggers were created."""
        present = self.installed_triggers() if self._references else {}
        return {
            table: NEW_KEY
            for table in tables
            for ends in [{name.split("_", 3)[3] for name in present.get(table, ())}]
            if {each.trigger for each in cascades_to(table, self._references)} - ends
        }

    @cached_property
    def _references(self) -> list[Reference]:
        return read_references(self.connection)

    def _cascading(self, table: str, spec: TriggerSpec) -> list[CascadeTrigger]:
        by_name: dict[str, list[Cascade]] = {}
        for each in cascades_to(table, self._references):
            by_name.setdefault(each.trigger, []).append(each)
        return [
            CascadeTrigger(
                name,
                f"{cascades[0].event.upper()} ON {self.name(cascades[0].on_table)}",
                self._cascade_body(table, spec, cascades),
            )
            for name, cascades in sorted(by_name.items())
        ]

    def _cascade_body(self, table: str, spec: TriggerSpec, cascades: Sequence[Cascade]) -> str:
        """The body of a trigger of a referenced table; it logs nothing if `table` is gone."""
        logs = " ".join(self._cascade_logs(table, spec, each) for each in cascades)
        return (
            f"matviews: BEGIN DECLARE EXIT HANDLER FOR {NO_SUCH_TABLE} BEGIN END; "
            f"DECLARE EXIT HANDLER FOR {NO_SUCH_COLUMN} {self._log(table, 'NULL', {})} "
            f"{self._leave_if_suppressed(table)} {OWN_NUMBER} {logs} END"
        )

    def _cascade_logs(self, table: str, spec: TriggerSpec, cascade: Cascade) -> str:
        """Statements that log the rows that a foreign key is about to change."""
        limit = "" if cascade.exact and spec.links else " LIMIT 1"
        logs = ""
        for entry in self._cascade_entries(table, spec, cascade):
            values = {"table": self.literal(table), "logged_at": UTC_NOW, **entry}
            logs += (
                f"{self.insert(values)} SELECT {', '.join(values.values())} "
                f"{self._reached(cascade.path)}{limit} LOCK IN SHARE MODE; "
            )
        if logs and spec.value_logs:
            # A missing value log must not keep the changes after it from being logged.
            logs += (
                f"BEGIN DECLARE EXIT HANDLER FOR {NO_SUCH_TABLE} {self._log(table, 'NULL', {})} "
            )
            for log in sorted(spec.value_logs):
                logs += (
                    f"INSERT INTO {self.name(log.name)} ({WEIGHT}) SELECT NULL "
                    f"{self._reached(cascade.path)} LIMIT 1 LOCK IN SHARE MODE; "
                )
            logs += "END; "
        if cascade.event == "update" and logs:
            same = self._same(cascade.on_table, cascade.path[-1].on_columns)
            return f"IF NOT ({same}) THEN {logs}END IF;"
        return logs

    def _cascade_entries(
        self, table: str, spec: TriggerSpec, cascade: Cascade
    ) -> list[Mapping[str, str]]:
        """The links and changed columns of the entries for one row."""
        if not cascade.exact or (not cascade.removes and self._computes(table, spec)):
            return [{"links": "NULL"}]
        links, key = self._links(table, "matviews_0", spec), cascade.path[0]
        if cascade.removes:
            return [{"links": links}]
        if spec.columns is not None and spec.columns.isdisjoint(key.columns):
            return []
        changed = (
            {"changed": self._json(sorted(spec.recorded.intersection(key.columns)))}
            if spec.recorded
            else {}
        )
        becomes = {
            own: f"NEW.{self.name(other)}" if cascade.copies else "NULL"
            for own, other in zip(key.columns, key.on_columns, strict=True)
            if own in spec.links
        }
        after = [self._links(table, "matviews_0", spec, becomes)] if becomes else []
        return [{"links": each, **changed} for each in (links, *after)]

    def _computes(self, table: str, spec: TriggerSpec) -> bool:
        """Whether a tracked column is computed from others, perhaps from a foreign key's."""
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT column_name FROM information_schema.columns "
                "WHERE table_schema = DATABASE() AND table_name = %s "
                "AND COALESCE(generation_expression, '') <> ''",
                [table],
            )
            computed = {name for (name,) in cursor.fetchall()}
        counts = spec.compared | spec.links
        return bool(computed if spec.columns is None else computed & counts)

    def _reached(self, path: Sequence[Reference]) -> str:
        """The rows that refer over a path to the row of the trigger, from FROM on."""
        tables = [f"{self.name(each.table)} matviews_{n}" for n, each in enumerate(path)]
        refers = [
            f"matviews_{n}.{self.name(own)} = {row}.{self.name(other)}"
            for n, each in enumerate(path)
            for row in ["OLD" if n == len(path) - 1 else f"matviews_{n + 1}"]
            for own, other in zip(each.columns, each.on_columns, strict=True)
        ]
        return f"FROM {' JOIN '.join(tables)} WHERE {' AND '.join(refers)}"
