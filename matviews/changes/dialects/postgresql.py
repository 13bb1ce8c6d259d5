"""PostgreSQL: one trigger per statement, which sees all the rows that the statement has changed."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import ClassVar

from ...models import Change
from ..watched import Watch
from .base import (
    MANY,
    NOT_ORDINARY,
    OURS,
    PATIENCE,
    TOO_MANY,
    TriggerDialect,
    digest,
    digests,
)

__all__ = ["PostgreSQLTriggers"]

BEFORE, AFTER = "matviews_before", "matviews_after"
MUTED = "matviews.muted"
UNLOGGED = "it is unlogged: a crash empties it, and tells nobody"
FAMILY = "it is partitioned, or inherits from another table"
TRANSITIONS = {
    "insert": f"REFERENCING NEW TABLE AS {AFTER}",
    "update": f"REFERENCING OLD TABLE AS {BEFORE} NEW TABLE AS {AFTER}",
    "delete": f"REFERENCING OLD TABLE AS {BEFORE}",
    "truncate": "",
}


class PostgreSQLTriggers(TriggerDialect):
    """Which rows are the same does not matter: no source can tell rows apart that are alike in all
    that it reads.
    """

    events: ClassVar[tuple[str, ...]] = ("insert", "update", "delete", "truncate")
    json_array: ClassVar[str] = "jsonb_build_array"
    # xmin is another one, too, when a trigger was switched off and on again.
    made: ClassVar[str] = "concat(t.tgname, ':', t.oid, '.', t.xmin)"
    catalog: ClassVar[str] = (
        f"SELECT c.relname AS matviews_table, {made} AS matviews_made "
        "FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
        "WHERE t.tgname LIKE %s AND t.tgenabled IN ('O', 'A') AND pg_table_is_visible(c.oid)"
    )

    def present_of(self, table: str) -> str:
        """As the base class has it; to plan the whole catalog would take longer than all else of a query."""
        return (
            f"(SELECT string_agg({self.made}, ' ') FROM pg_trigger t WHERE t.tgrelid = "
            f"(SELECT to_regclass(quote_ident({table}))) AND t.tgname LIKE %s "
            f"AND t.tgenabled IN ('O', 'A'))"
        )

    def statements(self, name: str, event: str, table: str, watch: Watch) -> Iterator[str]:
        """As the base class has it. The function writes the log with the rights of its owner, for
        those who may write to the table need not have them.
        """
        function = f"{self.name(self._schema)}.{self.name(name)}"
        yield (
            f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql "
            f"SECURITY DEFINER SET search_path = {self.name(self._schema)}, pg_temp "
            f"SET extra_float_digits = 1 AS $matviews$ BEGIN "
            f"IF strpos(coalesce(current_setting('{MUTED}', true), ''), '{digest(table)}') = 0 THEN "
            f"{self._log(event, table, watch)}; END IF; "
            f"RETURN NULL; END $matviews$"
        )
        yield (
            f"CREATE OR REPLACE TRIGGER {self.name(name)} AFTER {event.upper()} ON {self.name(table)} "
            f"{TRANSITIONS[event]} FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
        )

    @contextmanager
    def muted(self, tables: Collection[str]) -> Iterator[None]:
        """As the base class has it: by a setting of the transaction."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT current_setting(%s, true)", [MUTED])
            before = cursor.fetchone()[0] or ""
            cursor.execute(
                "SELECT set_config(%s, %s, true)", [MUTED, f"{before} {digests(tables)}"]
            )
        yield
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT set_config(%s, %s, true)", [MUTED, before])

    def _log(self, event: str, table: str, watch: Watch) -> str:
        """A statement that makes an entry in the log, one for all rows."""
        text, log = self.literal(table), f"INSERT INTO {self.logged}"
        if event == "truncate":
            return f"{log} VALUES ({text}, NULL)"
        rows = {"insert": AFTER, "delete": BEFORE}.get(event) or self._changed(table, watch)
        if not watch.links:
            return (
                f"{log} SELECT {text}, jsonb_build_array(jsonb_build_array()) "
                f"WHERE EXISTS (SELECT 1 FROM {rows})"
            )
        links = ", ".join(map(self.name, sorted(watch.links)))
        return (
            f"INSERT INTO {self.log} ({', '.join(map(self.name, ('table', 'count', 'links')))}) "
            f"SELECT {text}, COUNT(*), CASE WHEN COUNT(*) > {MANY} THEN {self._too_many} "
            f"ELSE jsonb_build_array({self.header(watch.links)}) "
            f"|| jsonb_agg(jsonb_build_array({links})) END "
            f"FROM (SELECT DISTINCT {links} FROM {rows} LIMIT {MANY + 1}) matviews_links "
            f"HAVING COUNT(*) > 0"
        )

    @property
    def _too_many(self) -> str:
        return f"to_jsonb({self.literal(TOO_MANY)}::text)"

    def _changed(self, table: str, watch: Watch) -> str:
        """The rows that an UPDATE has changed, as they were and as they are."""
        if watch.columns is None:
            links = ", ".join(map(self.name, sorted(watch.links))) or "1"
            each = [f"SELECT {links} FROM {rows}" for rows in (BEFORE, AFTER)]
            return f"({' UNION ALL '.join(each)}) matviews_changed"
        values = ", ".join(self._value(table, column) for column in sorted(watch.columns))
        before, after = (f"SELECT {values} FROM {rows}" for rows in (BEFORE, AFTER))
        return (
            f"(({before} EXCEPT ALL {after}) UNION ALL ({after} EXCEPT ALL {before})) "
            f"matviews_changed"
        )

    @cached_property
    def _schema(self) -> str:
        """That of the log, which the table's need not be."""
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE c.relname = %s AND pg_table_is_visible(c.oid)",
                [Change._meta.db_table],
            )
            return str(cursor.fetchone()[0])

    def _value(self, table: str, column: str) -> str:
        """A column, as a text of bytes where values may be equal and yet not the same."""
        name = self.name(column)
        return name if self.is_exact(table, column) else f'{name}::text COLLATE "C" AS {name}'

    def drop(self, table: str, names: Iterable[str]) -> list[str]:
        """As the base class has it; removing a function removes its trigger."""
        schema = self.name(self._schema)
        return [
            f"DROP FUNCTION IF EXISTS {schema}.{self.name(name)}() CASCADE"
            for name in sorted(names)
        ]

    def strays(self) -> set[str]:
        """As the base class has it: a function stays when its table is dropped."""
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
                "WHERE n.nspname = %s AND p.proname LIKE %s AND NOT EXISTS "
                "(SELECT 1 FROM pg_trigger t WHERE t.tgfoid = p.oid AND t.tgenabled IN ('O', 'A'))",
                [self._schema, *self.ours],
            )
            return {name for (name,) in cursor.fetchall() if OURS.fullmatch(name)}

    def untrackable(self, tables: Collection[str]) -> dict[str, str]:
        """As the base class has it; a statement on one table of a family may change another."""
        faults = super().untrackable(tables)
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT relname, relkind = 'f', relpersistence = 'u' FROM pg_class c "
                "WHERE relname = ANY(%s) AND pg_table_is_visible(oid) "
                "AND (relkind IN ('f', 'p') OR relpersistence = 'u' OR EXISTS "
                "(SELECT 1 FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)))",
                [list(tables)],
            )
            for table, foreign, unlogged in cursor.fetchall():
                faults[table] = NOT_ORDINARY if foreign else UNLOGGED if unlogged else FAMILY
        return faults

    @contextmanager
    def definitions(self) -> Iterator[None]:
        """As the base class has it."""
        with super().definitions():
            self.execute([f"SET LOCAL lock_timeout = '{PATIENCE}s'"])
            yield
