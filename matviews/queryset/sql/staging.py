"""Staging tables: the rows of a source at one point in time, for all phases of one refresh.

They are ordinary tables named after their refresh, because batches run on any connection. The
engine drops them when it closes the refresh, and drops those of killed workers later. On MariaDB
and MySQL creating or dropping a table commits, so it happens on a connection of its own. They are
in the schema of the package's own tables, or in the one that a setting names for roles that may not
create tables there. Where the role may use neither, each phase evaluates the source in its own
statement.
"""

from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import NamedTuple
from zlib import crc32

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, transaction

from ...conf import get_settings
from ...databases import Dialect, StagingRefused, dialect_of, staging_of
from ...databases.sql import SQL
from ...models import PhaseRun
from ...redact import error_words
from ..analysis.source import Source
from .readers import whole
from .stage_reader import RAW, is_raw
from .violations import refused

__all__ = [
    "SAMPLE_STAGE", "drop_stage", "fill_stage", "prepare_staging",
    "stage_name", "stages", "staging_problem",
    "staging_schema",
]  # fmt: skip

PREFIX = "matviews_stage_"
LOCK_WAIT_SECONDS = 5  # for a table that another connection is reading
SAMPLE_STAGE = f"{PREFIX}0"  # no refresh has this key


class _Location(NamedTuple):
    """Where staging tables are."""

    #: A database on MariaDB and MySQL; "" for the only schema.
    schema: str
    #: The start of their names.
    prefix: str

    def table(self, name: str, using: str) -> str:
        """A table in the form that `Dialect.name` takes."""
        return staging_of(using).table(self.schema, name)


def stage_name(refresh: int, using: str = DEFAULT_DB_ALIAS, *, raw: bool = False) -> str:
    """The staging table of a refresh, given by its primary key.

    Args:
        refresh: the primary key.
        using: alias of the database.
        raw: whether its values are as they were computed, see `stage_reader.is_raw`.
    """
    location = _locations(using)[0]
    return location.table(f"{location.prefix}{refresh}{RAW * raw}", using)


def stages(using: str) -> dict[int, str]:
    """The staging tables that exist, by the primary keys of their refreshes; one for each."""
    found: dict[int, str] = {}
    for location in _locations(using):
        for name in staging_of(using).tables(location.schema):
            number = name.removeprefix(location.prefix).removesuffix(RAW)
            if name.startswith(location.prefix) and number.isdecimal():
                found.setdefault(int(number), location.table(name, using))
    return found


def prepare_staging(using: str, roles: Iterable[str] = ()) -> str:
    """Create the configured schema and grant roles its use; what is left to do, or ""."""
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
    """The schema of staging tables: the database on MariaDB and MySQL, "" on SQLite."""
    return _locations(using)[0].schema


def _locations(using: str) -> list[_Location]:
    """Where staging tables are created, then where there may be others from before the setting."""
    home = _home(using, connections[using].settings_dict["NAME"])
    locations = [_Location(home, PREFIX)]
    schema = get_settings().STAGING_SCHEMA
    if schema and staging_of(using).schema_kind:
        # Other projects may use the same schema.
        locations.insert(0, _Location(schema, f"{PREFIX}{crc32(home.encode()):08x}_"))
    return locations


@cache
def _home(using: str, _database: object) -> str:
    return staging_of(using).home(PhaseRun._meta.db_table)


def staging_problem(using: str) -> str:
    """Why this connection's role cannot create staging tables, "" if it can; PostgreSQL only.

    The other databases fail when it is tried. So does PostgreSQL, but with an error in the server's
    log.
    """
    return staging_of(using).problem(_locations(using)[0].schema)


def fill_stage(name: str, source: Source, dialect: Dialect) -> int:
    """Create a staging table and evaluate the source into it, in the current transaction.

    It replaces the one that the refresh has.

    Returns:
        The number of rows.

    Raises:
        StagingRefused: the role of this connection may not create the table.
        RowRefused: two rows of the source have the same key; or, if it is not raw, a value does not
            fit the view's column.
    """
    if problem := staging_problem(dialect.using):
        raise StagingRefused(problem)
    fields, key = ([column.field for column in columns] for columns in (source.columns, source.key))
    rows, staging = whole(source, dialect, raw=is_raw(name)), staging_of(dialect.using)
    table, view = dialect.name(name), source.model._meta.db_table
    with staging.definitions(LOCK_WAIT_SECONDS) as execute:
        execute(SQL(f"DROP TABLE IF EXISTS {table}"))
        if is_raw(name):
            execute(SQL(f"DROP TABLE IF EXISTS {dialect.name(name.removesuffix(RAW))}"))
            for statement in staging.create_raw(table, view, fields, key, dialect, rows):
                execute(statement)
        else:
            execute(SQL(staging.create(table, view, fields, key, dialect)))
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
    """Drop a staging table; if it is being read, the maintenance task tries again.

    With `unread`, it does so even in a transaction, which would find out at once if it has read the
    table itself.
    """
    staging = staging_of(using)
    if staging.may_block_itself() and not unread:
        return  # the current transaction may have read it and would wait for itself
    wait = 0 if unread else LOCK_WAIT_SECONDS
    with suppress(DatabaseError, StagingRefused), staging.definitions(wait) as execute:
        execute(SQL(f"DROP TABLE IF EXISTS {dialect_of(using).name(name)}"))
