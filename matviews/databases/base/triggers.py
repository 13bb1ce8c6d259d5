"""What the triggers of all databases share, and what each dialect must say."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, NamedTuple

from django.db import DatabaseError, connections, transaction

from ..trigger_spec import TriggerSpec

__all__ = ["MAX_DISTINCT_CHANGES", "TriggerName", "Triggers"]

PREFIX = "matviews"
# The tables of `models.Change` and `models.LogSecret`.
CHANGE_LOG, LOG_SECRET = "matviews_change", "matviews_logsecret"
MAX_DISTINCT_CHANGES = 50_000  # changes that are not looked at one by one any more
TOO_MANY = f"more than {MAX_DISTINCT_CHANGES:,} rows have changed at once"
MAX_LINK_BYTES = 10_000  # bytes of one link; more could not be an index's key either
TOO_LONG = f"a changed row has a value of more than {MAX_LINK_BYTES:,} bytes that leads to keys"
MISSING = "there is no such table: run `manage.py makemigrations` and `manage.py migrate`"
NOT_ORDINARY = "it is not an ordinary table"


class TriggerName(NamedTuple):
    """What the name of a trigger says."""

    #: A digest of its table's name.
    table: str
    #: A digest of all the table's triggers.
    version: str
    #: "insert", "update", "delete" or "truncate".
    event: str

    def __str__(self) -> str:
        return f"{PREFIX}_{self.table}_{self.version}_{self.event}"


NAME_REGEX = re.compile(rf"{PREFIX}_[0-9a-f]{{8}}_[0-9a-f]{{8}}_[a-z]+")


def digest(text: str) -> str:
    """Eight characters that stand for a text in a name."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def json_of(value: object) -> str:
    """A value as JSON, in the letters that it has."""
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
        self.logged = f"{self.log} ({self.name('table')}, {self.name('links')})"
        self.secrets = self.name(LOG_SECRET)

    @property
    def connection(self) -> Any:
        """This thread's connection: what is cached with a dialect may be used by another one."""
        return connections[self.using]

    def name(self, name: str) -> str:
        """An identifier in quotes, in a text without parameters."""
        quoted: str = self.connection.ops.quote_name(name)
        return quoted

    def literal(self, text: str) -> str:
        """A text in quotes."""
        doubled = text.replace("'", "''")
        return f"'{doubled}'"

    def version(self, table: str, spec: TriggerSpec) -> str:
        """What tells triggers of a table from others that log other columns, or do it otherwise."""
        return digest("\n".join(self._create(table, spec, version="")))

    def create(self, table: str, spec: TriggerSpec) -> list[str]:
        """Statements that make the triggers of a table.

        Args:
            table: its name.
            spec: what they are to do.
        """
        return list(self._create(table, spec, self.version(table, spec)))

    def _create(self, table: str, spec: TriggerSpec, version: str) -> Iterator[str]:
        for event in self.events_of(spec):
            name = TriggerName(digest(table), version, event)
            yield from self.statements(str(name), event, table, spec)

    def events_of(self, spec: TriggerSpec) -> list[str]:
        """The events that want a trigger."""
        no_column = spec.columns is not None and not spec.columns
        return [event for event in self.events if not (event == "update" and no_column)]

    def statements(self, name: str, event: str, table: str, spec: TriggerSpec) -> Iterator[str]:
        """Statements that make one trigger."""
        raise NotImplementedError

    def names(self, table: str, spec: TriggerSpec) -> set[str]:
        """The names of the triggers that `create` makes."""
        version = self.version(table, spec)
        return {str(TriggerName(digest(table), version, event)) for event in self.events_of(spec)}

    def drop(self, table: str, names: Iterable[str]) -> list[str]:
        """Statements that remove triggers of a table."""
        return [f"DROP TRIGGER IF EXISTS {self.name(name)}" for name in sorted(names)]

    def script(self, statements: Iterable[str]) -> str:
        """Statements as a client of the database takes them, "" if there are none."""
        return "".join(f"{statement};\n" for statement in statements)

    def installed_triggers(self) -> dict[str, dict[str, str]]:
        """The triggers of ours that are there, by table, those switched off left out.

        What is known of each is its name and, by that, a text that is another one once somebody has
        dropped it and made it again.
        """
        found: dict[str, dict[str, str]] = {}
        with self.connection.cursor() as cursor:
            cursor.execute(self.catalog, self.NAME_PATTERN)
            for table, made in cursor.fetchall():
                name = made.partition(":")[0]
                if NAME_REGEX.fullmatch(name):
                    found.setdefault(table, {})[name] = made
        return found

    # A query for the table of each trigger whose name is LIKE its one parameter, and for that name,
    # with a colon and what else tells it from one that is made later.
    catalog: ClassVar[str]
    # An aggregate that puts texts into one, a space between each.
    concat_sql: ClassVar[str] = "GROUP_CONCAT(matviews_made SEPARATOR ' ')"

    def installed_sql(self, table: str) -> str:
        """An expression for what `present` has of a table's triggers, in one text; its parameters are `ours`.

        It groups before it selects: MariaDB would read the catalog anew for each table otherwise.
        """
        return (
            f"(SELECT matviews_all FROM (SELECT matviews_table, {self.concat_sql} AS matviews_all "
            f"FROM ({self.catalog}) matviews_present GROUP BY matviews_table) matviews_grouped "
            f"WHERE matviews_grouped.matviews_table = {table})"
        )

    def replaced(self, table: str, spec: TriggerSpec) -> set[str]:
        """The triggers of a table that have the names of those that `create` makes, and do something else.

        As far as this user may see what they do.
        """
        return set()

    def orphans(self) -> set[str]:
        """The names of what is left of triggers of ours that are gone, or switched off."""
        return set()

    def exposed(self) -> list[str]:
        """What of ours any role may use that may write at all, in words."""
        return []

    def ownerless(self) -> dict[str, str]:
        """The triggers of ours whose owner is gone, so that every write to their table fails; and the owner."""
        return {}

    def secure(self) -> None:
        """Take that right away, where it is the triggers'."""

    def untrackable_tables(self, tables: Collection[str]) -> dict[str, str]:
        """The tables whose triggers would not tell of every change, and why."""
        with self.connection.cursor() as cursor:
            found = self.connection.introspection.get_table_list(cursor)
        types = {each.name: each.type for each in found}
        return {
            table: NOT_ORDINARY if table in types else MISSING
            for table in tables
            if types.get(table) != "t"
        }

    def suppressed(
        self, tables: Collection[str], secret: Callable[[], str]
    ) -> AbstractContextManager[None]:
        """Within, the triggers of tables log nothing of what this connection does. In a transaction.

        If that is rolled back, so is this; else it ends with the block. `secret` gives what proves the
        right to it.
        """
        raise NotImplementedError

    def password(self, before: str, tables: Collection[str], secret: str) -> str:
        """A session value that suppresses tables, beside those that `before` does: the secret, then digests."""
        known = before.startswith(f"{secret} ")
        return f"{before if known else secret} {' '.join(map(digest, sorted(tables)))}"

    @contextmanager
    def definitions(self, tables: int = 1) -> Iterator[None]:
        """A transaction for statements that make or remove triggers, where there is such a thing.

        They wait for those who write to a table, and whoever is to write then waits for them: less than a
        second, however many tables it is about.
        """
        with transaction.atomic(using=self.using):
            yield

    def is_held(self, error: DatabaseError) -> bool:
        """Whether a statement of `definitions` has waited in vain."""
        return False

    def saved(self, names: Iterable[str]) -> dict[str, str]:
        """Statements that make triggers as they are, where no rollback brings them back."""
        return {}

    def lost(self, saved: dict[str, str]) -> list[str]:
        """Those of the statements whose triggers are gone."""
        return []

    def execute(self, statements: Iterable[str]) -> None:
        """Run statements that have no parameters."""
        with self.connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
