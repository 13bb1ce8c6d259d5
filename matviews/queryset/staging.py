"""Staging tables: what a source held at one moment, for the phases of one refresh.

Ordinary tables, since the batches that read them come on any connection, named after their refresh.
The engine drops them when it closes the refresh, and sweeps up those of workers that were killed.
On MariaDB and MySQL, making or dropping a table commits, so it happens on a connection of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from django.db import DatabaseError, IntegrityError, connections, transaction

from .dialects import Dialect, dialect_of
from .fields import value_field
from .readings import whole
from .source import Source

__all__ = ["drop_stage", "fill_stage", "stage_name", "stages"]

PREFIX = "matviews_stage_"
PATIENCE = (
    5  # seconds to wait for a table that another connection still reads, on MariaDB and MySQL
)


def stage_name(refresh: int) -> str:
    """The staging table of a refresh, by the refresh's primary key."""
    return f"{PREFIX}{refresh}"


def stages(using: str) -> dict[int, str]:
    """The staging tables that there are, by the primary keys of their refreshes."""
    names = connections[using].introspection.table_names()
    numbers = {name: name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)}
    return {int(number): name for name, number in numbers.items() if number.isdecimal()}


def fill_stage(name: str, source: Source, dialect: Dialect) -> int:
    """Make a staging table and evaluate the source into it, in the present transaction.

    Returns:
        The number of rows.

    Raises:
        IntegrityError: two rows of the source have one key.
    """
    fields = [column.field for column in source.columns]
    rows = whole(source, dialect)
    table = dialect.name(name)
    with _definitions(dialect) as execute:
        execute(f"DROP TABLE IF EXISTS {table}")
        execute(_create(table, source, dialect))
    columns = ", ".join(dialect.names(fields))
    with connections[dialect.using].cursor() as cursor:
        try:
            cursor.execute(f"INSERT INTO {table} ({columns}) {rows.text}", rows.params)
        except IntegrityError as error:
            raise IntegrityError(
                f"{str(error).strip()} (Two rows of source() have one key, or a field of the view "
                f"that cannot be NULL would be: make the key unique in source(), or Coalesce.)"
            ) from error.__cause__
        found = int(cursor.rowcount)
        if dialect.connection.vendor == "postgresql":
            cursor.execute(f"ANALYZE {table}")
    return found


def drop_stage(name: str, using: str) -> None:
    """Drop a staging table; where somebody still reads it, the engine's sweep tries again."""
    dialect = dialect_of(using)
    if dialect.connection.vendor == "mysql" and dialect.connection.in_atomic_block:
        return  # the present transaction may have read it, and would wait for itself
    with suppress(DatabaseError), _definitions(dialect) as execute:
        execute(f"DROP TABLE IF EXISTS {dialect.name(name)}")


def _create(table: str, source: Source, dialect: Dialect) -> str:
    """A table of the source's columns, as the view has them, with its key as primary key."""
    key = ", ".join(dialect.names([column.field for column in source.key]))
    if dialect.connection.vendor == "mysql":  # its tables keep the collations they were made with
        view = dialect.name(source.model._meta.db_table)
        names = ", ".join(dialect.names([column.field for column in source.columns]))
        return f"CREATE TABLE {table} (PRIMARY KEY ({key})) SELECT {names} FROM {view} LIMIT 0"
    columns = []
    for column in source.columns:
        field = column.field
        kind = value_field(field).rel_db_type(dialect.connection)
        collation = field.db_parameters(dialect.connection).get("collation")
        collate = f" COLLATE {dialect.name(collation)}" if collation else ""
        null = " NULL" if field.null else " NOT NULL"
        columns.append(f"{dialect.names([field])[0]} {kind}{collate}{null}")
    return f"CREATE TABLE {table} ({', '.join(columns)}, PRIMARY KEY ({key}))"


@contextmanager
def _definitions(dialect: Dialect) -> Iterator[Callable[[str], object]]:
    """What runs a statement that makes or drops a table, without ending the present transaction."""
    connection: Any = connections[dialect.using]
    if connection.vendor != "mysql":
        with transaction.atomic(using=dialect.using), connection.cursor() as cursor:
            yield lambda statement: cursor.execute(statement, ())
        return
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute(f"SET SESSION lock_wait_timeout = {PATIENCE}")
        yield lambda statement: cursor.execute(statement, ())
