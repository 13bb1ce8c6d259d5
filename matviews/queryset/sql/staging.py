"""Staging tables: what a source held at one moment, for the phases of one refresh.

Ordinary tables, since the batches that read them come on any connection, named after their refresh.
The engine drops them when it closes the refresh, and sweeps up those of workers that were killed.
On MariaDB and MySQL, creating or dropping a table commits, so it happens on a connection of its own.
They are in the schema of our own tables, or in the one that a setting names for a role that may not create
tables there. Where it may in neither, each phase evaluates the source in its own statement.
"""

from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import NamedTuple
from zlib import crc32

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, transaction

from ...conf import get_settings
from ...databases import Dialect, StagingRefused, dialect_of, staging_of
from ...models import PhaseRun
from ...redact import error_words
from ..analysis.source import Source
from .readers import whole
from .violations import refused

__all__ = [
    "SAMPLE_STAGE", "drop_stage", "fill_stage", "prepare_staging",
    "stage_name", "stages", "staging_problem",
    "staging_schema",
]  # fmt: skip

PREFIX = "matviews_stage_"
LOCK_WAIT_SECONDS = 5  # seconds to wait for a table that another connection still reads
SAMPLE_STAGE = f"{PREFIX}0"  # no refresh has this number


class _Location(NamedTuple):
    """Where staging tables are."""

    #: On MariaDB and MySQL a database; "" for the only one.
    schema: str
    #: How their names begin.
    prefix: str

    def table(self, refresh: int, using: str) -> str:
        """The table of a refresh, as `Dialect.name` takes it."""
        return staging_of(using).table(self.schema, f"{self.prefix}{refresh}")


def stage_name(refresh: int, using: str = DEFAULT_DB_ALIAS) -> str:
    """The staging table of a refresh, by the refresh's primary key."""
    return _locations(using)[0].table(refresh, using)


def stages(using: str) -> dict[int, str]:
    """The staging tables that exist, by the primary keys of their refreshes."""
    found: dict[int, str] = {}
    for location in _locations(using):
        for name in staging_of(using).tables(location.schema):
            number = name.removeprefix(location.prefix)
            if name.startswith(location.prefix) and number.isdecimal():
                found.setdefault(int(number), location.table(int(number), using))
    return found


def prepare_staging(using: str, roles: Iterable[str] = ()) -> str:
    """Create the schema that a setting names, and let roles create tables in it; what is left to do, or ""."""
    schema, staging = get_settings().STAGING_SCHEMA, staging_of(using)
    if not schema or not staging.schema_kind:
        return ""
    connection = connections[using]
    name = connection.ops.quote_name(schema)
    try:
        with transaction.atomic(using=using), connection.cursor() as cursor:
            if not staging.has_schema(schema):
                cursor.execute(f"CREATE {staging.schema_kind} IF NOT EXISTS {name}")
            for role in roles:
                cursor.execute(f"GRANT USAGE, CREATE ON SCHEMA {name} TO {role}")
    except DatabaseError as error:
        kind = staging.schema_kind.lower()
        return f"matviews could not prepare {kind} {schema} for staging: {error_words(error)}"
    return ""


def staging_schema(using: str) -> str:
    """The schema of staging tables, on MariaDB and MySQL the database; "" on SQLite."""
    return _locations(using)[0].schema


def _locations(using: str) -> list[_Location]:
    """Where staging tables are created, and then where there may be others from before the setting."""
    home = _home(using, connections[using].settings_dict["NAME"])
    locations = [_Location(home, PREFIX)]
    schema = get_settings().STAGING_SCHEMA
    if schema and staging_of(using).schema_kind:
        # Other projects may stage there, too.
        locations.insert(0, _Location(schema, f"{PREFIX}{crc32(home.encode()):08x}_"))
    return locations


@cache
def _home(using: str, _database: object) -> str:
    return staging_of(using).home(PhaseRun._meta.db_table)


def staging_problem(using: str) -> str:
    """Why the role of this connection cannot create staging tables, "" if it can; on PostgreSQL alone.

    The others tell when it is tried. PostgreSQL tells too, but writes an error into its log each time.
    """
    return staging_of(using).problem(_locations(using)[0].schema)


def fill_stage(name: str, source: Source, dialect: Dialect) -> int:
    """Create a staging table and evaluate the source into it, in the current transaction.

    Returns:
        The number of rows.

    Raises:
        StagingRefused: the role of this connection may not create the table.
        RowRefused: two rows of the source have one key, or a value is NULL that must not be.
    """
    if problem := staging_problem(dialect.using):
        raise StagingRefused(problem)
    fields, key = ([column.field for column in each] for each in (source.columns, source.key))
    rows, staging = whole(source, dialect), staging_of(dialect.using)
    table, view = dialect.name(name), source.model._meta.db_table
    with staging.definitions(LOCK_WAIT_SECONDS) as execute:
        execute(f"DROP TABLE IF EXISTS {table}")
        execute(staging.create(table, view, fields, key, dialect))
    columns = ", ".join(dialect.names(fields))
    with connections[dialect.using].cursor() as cursor:
        try:
            cursor.execute(f"INSERT INTO {table} ({columns}) {rows.text}", rows.params)
        except DatabaseError as error:
            raise refused(error, source, dialect.using, stage=True) from error.__cause__
        found = int(cursor.rowcount)
    staging.filled(table)
    return found


def drop_stage(name: str, using: str, *, unread: bool = False) -> None:
    """Drop a staging table; where somebody still reads it, the engine's sweep tries again.

    `unread`: the current transaction is not known to have read it; if it has, that is found out at once.
    """
    staging = staging_of(using)
    if staging.may_block_itself() and not unread:
        return  # the current transaction may have read it, and would wait for itself
    wait = 0 if unread else LOCK_WAIT_SECONDS
    with suppress(DatabaseError, StagingRefused), staging.definitions(wait) as execute:
        execute(f"DROP TABLE IF EXISTS {dialect_of(using).name(name)}")
