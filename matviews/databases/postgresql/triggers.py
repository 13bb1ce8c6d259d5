"""PostgreSQL: finding, securing and suppressing the triggers."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from django.db import DatabaseError

from ...sqlstate import sqlstate
from ..base.triggers import LOG_SECRET, MISSING, NAME_REGEX, NOT_ORDINARY, digest
from .partitions import IDENTITY, PARTS, PartitionTriggers
from .table_names import LIKE, MAX_NAME_BYTES, cut, identifiers, quoted_sql, regclass
from .trigger_sessions import BATCH, SUPPRESSED
from .trigger_sql import ARGUMENTS, doubled

__all__ = ["PostgreSQLTriggers"]

TOO_LONG_NAME = f"its name is longer than {MAX_NAME_BYTES} bytes"
# Of a transaction that creates or drops triggers.
LOCK_TIMEOUT_MS = 500
IDLE_TIMEOUT_MS = 1_000
LOCKED_STATES = {"55P03", "40P01", "25P03"}  # lock timeout, deadlock, idle timeout
UNLOGGED = "it is unlogged: a crash empties it without firing a trigger"
INHERITED = (
    "it is a parent or child by INHERITS: make it a partitioned table, or detach it with NO INHERIT"
)
PARTLY_UNLOGGED = "one of its partitions is unlogged or a foreign table"
SUBSCRIBED = "a subscription writes to it, and logical replication fires no statement trigger"
LOGS = "pg_catalog.has_table_privilege(p.proowner, pg_catalog.to_regclass(%s), 'INSERT')"


class PostgreSQLTriggers(PartitionTriggers):
    """Recognizes functions and triggers by their names and by what the owners may do."""

    def installed_triggers(self) -> dict[str, dict[str, str]]:
        """Triggers that call functions of this package, in whatever schema their table is.

        A function whose owner may not write the log is not ours, whatever its name. Nor is a
        trigger with one of our names that calls a function of another name.
        """
        found: dict[str, dict[str, str]] = {}
        with self.connection.cursor() as cursor:
            cursor.execute(
                f"SELECT n.nspname, c.relname, pg_catalog.pg_table_is_visible(c.oid), t.tgname, "
                f"{IDENTITY} FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
                "JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_proc p ON p.oid = t.tgfoid "
                "JOIN pg_namespace s ON s.oid = p.pronamespace "
                f"WHERE s.nspname = %s AND t.tgname {LIKE} %s AND t.tgenabled IN ('O', 'A') "
                f"AND {LOGS} AND p.proname = t.tgname AND p.pronargs = 0 AND t.tgnargs = 0",
                [self._schema, *self.NAME_PATTERN, self.log],
            )
            for schema, table, visible, name, made in cursor.fetchall():
                if NAME_REGEX.fullmatch(name):
                    spelled = _spelled(schema, table, visible, name)
                    found.setdefault(spelled, {})[name] = made
        whole = self.with_partitions({table: found[table].values() for table in found})
        return {
            table: {made.partition(":")[0]: made for made in triggers}
            for table, triggers in whole.items()
        }

    def installed_sql(self, table: str) -> str:
        """Planning the query of `installed_triggers` would take longer than the rest."""
        return (
            f"(SELECT pg_catalog.string_agg({IDENTITY}, ' ') FROM pg_trigger t "
            f"WHERE t.tgrelid = (SELECT pg_catalog.to_regclass({quoted_sql(table)})"
            f"::pg_catalog.oid) "
            f"AND t.tgname {LIKE} %s AND t.tgenabled IN ('O', 'A') AND t.tgnargs = 0)"
        )

    @contextmanager
    def suppressed(self, tables: Collection[str], secret: Callable[[], str]) -> Iterator[None]:
        """With a setting of the transaction."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT current_setting(%s, true)", [SUPPRESSED])
            before = cursor.fetchone()[0] or ""
        self._set(SUPPRESSED, self.password(before, tables, secret()))
        yield
        self._set(SUPPRESSED, before)

    @contextmanager
    def as_batch(self, table: str, secret: str) -> Iterator[None]:
        """With a setting of the transaction, which ends with it, also behind PgBouncer."""
        self._set(BATCH, self.password("", [table], secret))
        yield
        self._set(BATCH, "")

    def _set(self, setting: str, value: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT set_config(%s, %s, true)", [setting, value])

    def orphans(self) -> set[str]:
        """A function survives when its table is dropped."""
        present = set[str]().union(*self.installed_triggers().values())
        return {name for name, _arguments, _public in self._functions()} - present

    def _functions(self) -> list[tuple[str, str, bool]]:
        """The functions of our triggers, their arguments, and whether any role may call them."""
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT p.proname, p.proargtypes::pg_catalog.text, EXISTS (SELECT 1 "
                "FROM pg_catalog.aclexplode("
                "coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a "
                "WHERE a.grantee = 0) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
                f"WHERE n.nspname = %s AND p.proname {LIKE} %s "
                f"AND ({LOGS} OR pg_catalog.pg_has_role(p.proowner, 'USAGE'))",
                [self._schema, *self.NAME_PATTERN, self.log],
            )
            return [
                (name, ARGUMENTS[types], public)
                for name, types, public in cursor.fetchall()
                if types in ARGUMENTS and NAME_REGEX.fullmatch(name)
            ]

    def exposed(self) -> list[str]:
        names = sorted({name for name, _arguments, public in self._functions() if public})
        found = [f"the function {name}" for name in names]
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_catalog.has_any_column_privilege('public', pg_catalog.to_regclass(%s), "
                "'SELECT, INSERT, UPDATE')",
                [self._of_ours(LOG_SECRET)],
            )
            [(readable,)] = cursor.fetchall()
        return [*found, f"the table {LOG_SECRET}"] if readable else found

    def secure(self) -> None:
        self.execute(
            f"REVOKE ALL ON FUNCTION {self._of_ours(name)}({arguments}) FROM PUBLIC"
            for name, arguments, public in self._functions()
            if public
        )

    def untrackable_tables(self, tables: Collection[str]) -> dict[str, str]:
        """A statement on one table of an inheritance tree may change another."""
        names = [table for table in tables if regclass(self.name(table))]
        faults = dict.fromkeys(tables, MISSING)
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT given.name, "
                "CASE WHEN c.relkind NOT IN ('r', 'p') OR c.relpersistence = 't' THEN %s "
                "WHEN c.relpersistence = 'u' THEN %s "
                "WHEN EXISTS (SELECT 1 FROM pg_inherits i JOIN pg_class child "
                "ON child.oid = i.inhrelid WHERE c.oid IN (i.inhrelid, i.inhparent) "
                "AND NOT child.relispartition) THEN %s "
                "WHEN EXISTS (SELECT 1 FROM pg_class part WHERE part.oid = ANY (parts.oids) "
                "AND (part.relkind = 'f' OR part.relpersistence = 'u')) THEN %s "
                "WHEN EXISTS (SELECT 1 FROM pg_subscription_rel s "
                "WHERE s.srrelid = ANY (pg_catalog.array_append(parts.oids, c.oid))) THEN %s END "
                "FROM unnest(%s::pg_catalog.text[], %s::pg_catalog.text[]) given (name, quoted) "
                "JOIN pg_class c ON c.oid = pg_catalog.to_regclass(given.quoted)::pg_catalog.oid "
                "CROSS JOIN LATERAL (SELECT "
                f"{PARTS.format(of='coalesce(pg_catalog.pg_partition_root(c.oid), c.oid)')} "
                "AS oids) parts",
                [
                    *(NOT_ORDINARY, UNLOGGED, INHERITED, PARTLY_UNLOGGED, SUBSCRIBED),
                    *(names, list(map(self.name, names))),
                ],
            )
            faults |= dict(cursor.fetchall())
        faults |= {
            table: TOO_LONG_NAME
            for table in names
            if any(cut(part) != part for part in identifiers(self.name(table)))
        }
        return {table: fault for table, fault in faults.items() if fault}

    @contextmanager
    def definitions(self, tables: int = 1) -> Iterator[None]:
        """Also limits how long an idle process can keep a table locked."""
        alone = not self.connection.in_atomic_block
        with super().definitions(tables):
            self.execute([f"SET LOCAL lock_timeout = {max(LOCK_TIMEOUT_MS // max(tables, 1), 50)}"])
            if alone:
                self.execute([f"SET LOCAL idle_in_transaction_session_timeout = {IDLE_TIMEOUT_MS}"])
            yield

    def is_locked(self, error: DatabaseError) -> bool:
        """A connection that was closed for being idle counts too."""
        return sqlstate(error) in LOCKED_STATES


def _spelled(schema: str, table: str, visible: bool, name: str) -> str:
    """The spelling of a table's name that the trigger was created for, or else its own."""
    schema, table = doubled(schema), doubled(table)
    plain, qualified = [table] if visible else [], f'{schema}"."{table}'
    names = [*plain, qualified, f'"{qualified}"', f'"{table}"']
    created_for = name.split("_")[1]
    return next((name for name in names if digest(name) == created_for), names[0])
