"""What the triggers of all databases share, and what each dialect must say."""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, NamedTuple

from django.db import connections, transaction

from ...models import Change
from ...queryset import field_of_column, is_exact
from ..watched import Watch

__all__ = ["MANY", "TriggerDialect", "TriggerName"]

PREFIX = "matviews"
MANY = 50_000  # changes that are not looked at one by one any more
TOO_MANY = f"more than {MANY:,} rows have changed at once"
PATIENCE = 5  # seconds to wait for those who write to a table; others wait behind us meanwhile
MISSING = "there is no such table"
NOT_ORDINARY = "it is not an ordinary table"


class TriggerName(NamedTuple):
    """What the name of a trigger says.

    Attributes:
        table: a digest of its table's name.
        version: a digest of all the table's triggers.
        event: "insert", "update", "delete" or "truncate".
    """

    table: str
    version: str
    event: str

    def __str__(self) -> str:
        return f"{PREFIX}_{self.table}_{self.version}_{self.event}"


OURS = re.compile(rf"{PREFIX}_[0-9a-f]{{8}}_[0-9a-f]{{8}}_[a-z]+")


def digest(text: str) -> str:
    """Eight characters that stand for a text in a name."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def digests(texts: Iterable[str]) -> str:
    """Of several texts, in one."""
    return " ".join(map(digest, sorted(texts)))


class TriggerDialect:
    """Triggers that log that a table has changed.

    Args:
        using: alias of the database.
    """

    events: ClassVar[tuple[str, ...]] = ("insert", "update", "delete")
    ours: ClassVar[list[str]] = [f"{PREFIX}\\_%"]  # the parameter of `catalog`

    def __init__(self, using: str) -> None:
        self.using = using
        self.connection: Any = connections[using]
        self.log = self.name(Change._meta.db_table)
        self.logged = f"{self.log} ({self.name('table')}, {self.name('links')})"

    def name(self, name: str) -> str:
        """An identifier in quotes, in a text without parameters."""
        quoted: str = self.connection.ops.quote_name(name)
        return quoted

    def literal(self, text: str) -> str:
        """A text in quotes."""
        doubled = text.replace("'", "''")
        return f"'{doubled}'"

    def version(self, table: str, watch: Watch) -> str:
        """What tells triggers of a table from others that watch other columns, or do it otherwise."""
        return digest("\n".join(self._create(table, watch, version="")))

    def create(self, table: str, watch: Watch) -> list[str]:
        """Statements that make the triggers of a table.

        Args:
            table: its name.
            watch: what they are to do.
        """
        return list(self._create(table, watch, self.version(table, watch)))

    def _create(self, table: str, watch: Watch, version: str) -> Iterator[str]:
        for event in self.events_of(watch):
            name = TriggerName(digest(table), version, event)
            yield from self.statements(str(name), event, table, watch)

    def events_of(self, watch: Watch) -> list[str]:
        """The events that want a trigger."""
        no_column = watch.columns is not None and not watch.columns
        return [event for event in self.events if not (event == "update" and no_column)]

    def statements(self, name: str, event: str, table: str, watch: Watch) -> Iterator[str]:
        """Statements that make one trigger."""
        raise NotImplementedError

    def names(self, table: str, watch: Watch) -> set[str]:
        """The names of the triggers that `create` makes."""
        version = self.version(table, watch)
        return {str(TriggerName(digest(table), version, event)) for event in self.events_of(watch)}

    def drop(self, table: str, names: Iterable[str]) -> list[str]:
        """Statements that remove triggers of a table."""
        return [f"DROP TRIGGER IF EXISTS {self.name(name)}" for name in sorted(names)]

    def script(self, statements: Iterable[str]) -> str:
        """Statements as a client of the database takes them, "" if there are none."""
        return "".join(f"{statement};\n" for statement in statements)

    def present(self) -> dict[str, dict[str, str]]:
        """The triggers of ours that are there, by table, those switched off left out.

        What is known of each is its name and, by that, a text that is another one once somebody has
        dropped it and made it again.
        """
        found: dict[str, dict[str, str]] = {}
        with self.connection.cursor() as cursor:
            cursor.execute(self.catalog, self.ours)
            for table, made in cursor.fetchall():
                name = made.partition(":")[0]
                if OURS.fullmatch(name):
                    found.setdefault(table, {})[name] = made
        return found

    # A query for the table of each trigger whose name is LIKE its one parameter, and for that name,
    # with a colon and what else tells it from one that is made later.
    catalog: ClassVar[str]
    # An aggregate that puts texts into one, a space between each.
    together: ClassVar[str] = "GROUP_CONCAT(matviews_made SEPARATOR ' ')"

    def present_of(self, table: str) -> str:
        """An expression for what `present` has of a table's triggers, in one text; its parameters are `ours`."""
        return (
            f"(SELECT {self.together} FROM ({self.catalog}) matviews_present "
            f"WHERE matviews_present.matviews_table = {table})"
        )

    def strays(self) -> set[str]:
        """The names of what is left of triggers of ours that are gone, or switched off."""
        return set()

    def untrackable(self, tables: Collection[str]) -> dict[str, str]:
        """The tables whose triggers would not tell of every change, and why."""
        with self.connection.cursor() as cursor:
            found = self.connection.introspection.get_table_list(cursor)
        types = {each.name: each.type for each in found}
        return {
            table: NOT_ORDINARY if table in types else MISSING
            for table in tables
            if types.get(table) != "t"
        }

    def muted(self, tables: Collection[str]) -> AbstractContextManager[None]:
        """Within, the triggers of tables log nothing of what this connection does. In a transaction.

        If that is rolled back, so is this; else it ends with the block.
        """
        raise NotImplementedError

    @contextmanager
    def definitions(self) -> Iterator[None]:
        """A transaction for statements that make or remove triggers, where there is such a thing."""
        with transaction.atomic(using=self.using):
            yield

    def execute(self, statements: Iterable[str]) -> None:
        """Run statements that have no parameters."""
        with self.connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def same(self, table: str, columns: Collection[str]) -> str:
        """A condition on `OLD` and `NEW`, a row before and after a change: the columns are the same."""
        raise NotImplementedError

    def values(self, row: str, links: Collection[str]) -> str:
        """The links of a row as an entry of the log has them, as JSON."""
        values = ", ".join(f"{row}.{self.name(link)}" for link in sorted(links))
        return f"{self.json_array}({self.header(links)}, {self.json_array}({values}))"

    def header(self, links: Collection[str]) -> str:
        """The names of the links, in the order of their values, as JSON."""
        return f"{self.json_array}({', '.join(map(self.literal, sorted(links)))})"

    json_array: ClassVar[str] = "json_array"

    def is_exact(self, table: str, column: str) -> bool:
        """Whether two values of a column that are equal are the same."""
        field = field_of_column(table, column)
        return field is not None and is_exact(field)
