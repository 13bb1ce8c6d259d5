"""What the triggers of all databases share, and what each database implements."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, NamedTuple

from django.db import DatabaseError, connections, transaction

from ..sql import SQL
from ..trigger_spec import TriggerSpec

__all__ = ["MAX_DISTINCT_CHANGES", "TriggerName", "Triggers"]

PREFIX = "matviews"
# The tables of `models.Change` and `models.LogSecret`.
CHANGE_LOG, LOG_SECRET = "matviews_change", "matviews_logsecret"
MAX_DISTINCT_CHANGES = 50_000  # beyond that, changes are not resolved to keys
MAX_VALUES = 200_000  # rows whose values one statement logs; beyond that, sums are recomputed
TOO_MANY = f"more than {MAX_DISTINCT_CHANGES:,} rows have changed at once"
MAX_LINK_BYTES = 10_000  # an index could not hold a longer one either
TOO_LONG = f"a changed row has a value of more than {MAX_LINK_BYTES:,} bytes that leads to keys"
MISSING = "there is no such table: run `manage.py makemigrations` and `manage.py migrate`"
NOT_ORDINARY = "it is not an ordinary table"
# In place of a trigger's identity: one of the table's partitions lacks it.
INCOMPLETE = "incomplete"


class TriggerName(NamedTuple):
    """The parts of a trigger's name."""

    #: A digest of the table's name.
    table: str
    #: A digest of all the table's triggers.
    version: str
    #: "insert", "update", "delete" or "truncate"; with a digest of its table, if it is on another.
    event: str

    def __str__(self) -> str:
        return f"{PREFIX}_{self.table}_{self.version}_{self.event}"


NAME_REGEX = re.compile(rf"{PREFIX}_[0-9a-f]{{8}}_[0-9a-f]{{8}}_[a-z]+(_[0-9a-f]{{8}})?")


def digest(text: str) -> str:
    """Eight characters that stand for a text in a name."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def json_of(value: object) -> str:
    """A value as JSON, without escaping letters."""
    return json.dumps(value, ensure_ascii=False)


class Triggers:
    """Triggers that log that a table has changed.

    Args:
        using: alias of the database.
    """

    events: ClassVar[tuple[str, ...]] = ("insert", "update", "delete")
    NAME_PATTERN: ClassVar[list[str]] = [f"{PREFIX}\\_%"]  # the parameter of `catalog`

    def __init__(self, using: str) -> None:
        self.using = using
        self.log = self.name(CHANGE_LOG)
        self.secrets = self.name(LOG_SECRET)
        self._versions: dict[tuple[str, TriggerSpec], str] = {}

    @property
    def connection(self) -> Any:
        """This thread's connection. A cached object may be used by several threads."""
        return connections[self.using]

    def name(self, name: str) -> str:
        """A quoted identifier, for a statement without parameters."""
        quoted: str = self.connection.ops.quote_name(name)
        return quoted

    def literal(self, text: str) -> str:
        """A quoted text."""
        doubled = text.replace("'", "''")
        return f"'{doubled}'"

    def insert(self, values: Mapping[str, str]) -> str:
        """The beginning of a statement that writes a log entry, by columns of the log."""
        return f"INSERT INTO {self.log} ({', '.join(map(self.name, values))})"

    def version(self, table: str, spec: TriggerSpec) -> str:
        """A digest of a table's triggers, which changes with what they log and how."""
        if (table, spec) not in self._versions:  # writing the statements takes long
            statements = "\n".join(self._create(table, spec, version=""))
            self._versions[table, spec] = digest(statements)
        return self._versions[table, spec]

    def create(self, table: str, spec: TriggerSpec) -> list[str]:
        """Statements that create the triggers of a table."""
        return list(self._create(table, spec, self.version(table, spec)))

    def _create(self, table: str, spec: TriggerSpec, version: str) -> Iterator[str]:
        for event in self.events_of(spec):
            name = TriggerName(digest(table), version, event)
            yield from self.statements(str(name), event, table, spec)

    def events_of(self, spec: TriggerSpec) -> list[str]:
        """The events that need a trigger."""
        no_column = spec.columns is not None and not spec.columns
        return [event for event in self.events if not (event == "update" and no_column)]

    def statements(self, name: str, event: str, table: str, spec: TriggerSpec) -> Iterator[str]:
        """Statements that create one trigger."""
        raise NotImplementedError

    def names(self, table: str, spec: TriggerSpec) -> set[str]:
        """The names of the triggers that `create` creates."""
        version = self.version(table, spec)
        return {str(TriggerName(digest(table), version, event)) for event in self.events_of(spec)}

    def drop(self, table: str, names: Iterable[str]) -> list[str]:
        """Statements that drop triggers of a table."""
        return [f"DROP TRIGGER IF EXISTS {self.name(name)}" for name in sorted(names)]

    def script(self, statements: Iterable[str]) -> str:
        """Statements as a script for a client of the database; "" if there are none."""
        return "".join(f"{statement};\n" for statement in statements)

    def installed_triggers(self) -> dict[str, dict[str, str]]:
        """The enabled triggers of this package, by table and name, with their identities.

        An identity is a text that changes when the trigger is dropped and created again.
        """
        found: dict[str, dict[str, str]] = {}
        with self.connection.cursor() as cursor:
            cursor.execute(self.catalog, self.NAME_PATTERN)
            for table, made in cursor.fetchall():
                name = made.partition(":")[0]
                if NAME_REGEX.fullmatch(name):
                    found.setdefault(table, {})[name] = made
        return found

    #: A query for the table and the identity, `name:...`, of each trigger whose name is LIKE its
    #: parameter.
    catalog: ClassVar[str]
    #: An aggregate that joins texts with spaces.
    concat_sql: ClassVar[str] = "GROUP_CONCAT(matviews_made SEPARATOR ' ')"

    def installed_sql(self, table: str) -> str:
        """An expression for the identities of a table's triggers, as one text.

        Its parameter is `NAME_PATTERN`. It groups before it selects: otherwise MariaDB would read
        the catalog again for each table.
        """
        return (
            f"(SELECT matviews_all FROM (SELECT matviews_table, {self.concat_sql} AS matviews_all "
            f"FROM ({self.catalog}) matviews_present GROUP BY matviews_table) matviews_grouped "
            f"WHERE matviews_grouped.matviews_table = {table})"
        )

    def present_sql(self, table: str, *, in_parts: bool) -> SQL:
        """An expression for the identities of a table's triggers, as `with_partitions` has them.

        Args:
            table: an expression for its name.
            in_parts: whether it is one of `tables_in_parts`.
        """
        return SQL(self.installed_sql(table), tuple(self.NAME_PATTERN))

    def tables_in_parts(self, tables: Collection[str]) -> set[str]:
        """The tables for which `with_partitions` does more."""
        return set()

    def with_partitions(
        self, present: Mapping[str, Collection[str]]
    ) -> Mapping[str, Collection[str]]:
        """Identities of triggers that also stand for those of a table's partitions.

        Args:
            present: by table, the identities that `installed_sql` finds.
        """
        return present

    def lacking(self, tables: Collection[str]) -> dict[str, list[str]]:
        """The quoted names of partitions without a trigger that their table has, by table."""
        return {}

    def fill(self, table: str, spec: TriggerSpec, lacking: Collection[str]) -> list[str]:
        """Statements that create the triggers of a table on partitions that lack them."""
        return []

    def were_written(self, partitions: Collection[str]) -> bool:
        """Whether a partition may ever have had rows. Ask only once its triggers exist."""
        return False

    def replaced(self, table: str, spec: TriggerSpec) -> set[str]:
        """The triggers of a table with the right name that do something else.

        Only if this role may see what they do.
        """
        return set()

    def orphans(self) -> set[str]:
        """The names of functions whose trigger is gone or disabled."""
        return set()

    def exposed(self) -> list[str]:
        """What any role with write access may use, in words."""
        return []

    def ownerless(self) -> dict[str, str]:
        """Triggers whose owner is gone, and that owner: every write to their table fails."""
        return {}

    def secure(self) -> None:
        """Revoke what `exposed` found on trigger functions."""

    def untrackable_tables(self, tables: Collection[str]) -> dict[str, str]:
        """The tables whose triggers would miss changes, and why."""
        with self.connection.cursor() as cursor:
            found = self.connection.introspection.get_table_list(cursor)
        types = {table.name: table.type for table in found}
        return {
            table: NOT_ORDINARY if table in types else MISSING
            for table in tables
            if types.get(table) != "t"
        }

    def storage(self, tables: Collection[str]) -> dict[str, str]:
        """By table, a value that TRUNCATE changes; empty where TRUNCATE fires a trigger."""
        return {}

    def was_truncated(self, before: str, now: str) -> bool:
        """Whether a table may have been truncated between two results of `storage`."""
        return False

    def unlogged(self, tables: Collection[str]) -> dict[str, str]:
        """The tables that can be changed in a way that no trigger logs any more, and why."""
        return {}

    def suppressed(
        self, tables: Collection[str], secret: Callable[[], str]
    ) -> AbstractContextManager[None]:
        """A context, in a transaction, in which triggers log no change of this connection.

        A rollback undoes it; otherwise it ends with the block. `secret` returns the secret that
        proves the right.
        """
        raise NotImplementedError

    def password(self, before: str, tables: Collection[str], secret: str) -> str:
        """A session value that suppresses tables in addition to `before`: secret, then digests."""
        known = before.startswith(f"{secret} ")
        return f"{before if known else secret} {' '.join(map(digest, sorted(tables)))}"

    @contextmanager
    def definitions(self, tables: int = 1) -> Iterator[None]:
        """A transaction for statements that create or drop triggers, if the database allows it.

        They wait for writers to the table, and later writers wait for them: less than a second in
        all, however many tables there are.
        """
        with transaction.atomic(using=self.using):
            yield

    def is_locked(self, error: DatabaseError) -> bool:
        """Whether a statement in `definitions` gave up waiting for a lock."""
        return False

    def saved(self, names: Iterable[str]) -> dict[str, str]:
        """Statements that re-create triggers, by name, where a rollback would not restore them."""
        return {}

    def lost(self, saved: dict[str, str]) -> list[str]:
        """The statements whose triggers are gone."""
        return []

    def execute(self, statements: Iterable[str]) -> None:
        """Run statements that have no parameters."""
        with self.connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
