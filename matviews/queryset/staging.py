"""Staging tables: what a source held at one moment, for the phases of one refresh.

Ordinary tables, since the batches that read them come on any connection, named after their refresh.
The engine drops them when it closes the refresh, and sweeps up those of workers that were killed.
On MariaDB and MySQL, making or dropping a table commits, so it happens on a connection of its own.
They are in the schema of our own tables, or in the one that a setting names for a role that may not make
tables there. Where it may in neither, each phase evaluates the source in its own statement.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple
from zlib import crc32

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, transaction

from ..conf import get_settings
from ..databases import Dialect, dialect_of
from ..databases.fields import value_field
from ..models import PhaseRun
from ..redact import error_words
from .readings import whole
from .source import Source
from .violations import refused

__all__ = [
    "SAMPLE_STAGE", "StagingRefused", "drop_stage", "fill_stage", "prepare_staging",
    "stage_name", "stages", "staging_problem",
    "staging_schema",
]  # fmt: skip

PREFIX = "matviews_stage_"
PATIENCE = (
    5  # seconds to wait for a table that another connection still reads, on MariaDB and MySQL
)
SAMPLE_STAGE = f"{PREFIX}0"  # no refresh has this number
MYSQL_DENIED = {1044, 1049, 1142, 1227}  # for want of a right, or of the database


class StagingRefused(Exception):
    """No staging table can be made here; says why, and what to do."""


class _Place(NamedTuple):
    """Where staging tables are.

    Attributes:
        schema: a schema, on MariaDB and MySQL a database; "" for the only one.
        prefix: how their names begin.
    """

    schema: str
    prefix: str

    def table(self, refresh: int, vendor: str) -> str:
        """The table of a refresh, as `Dialect.name` takes it: the quotes are those within a `db_table`."""
        quote = "`" if vendor == "mysql" else '"'
        schema = self.schema.replace(quote, quote * 2)
        name = f"{self.prefix}{refresh}"
        return f"{schema}{quote}.{quote}{name}" if schema else name


def stage_name(refresh: int, using: str = DEFAULT_DB_ALIAS) -> str:
    """The staging table of a refresh, by the refresh's primary key."""
    return _places(using)[0].table(refresh, connections[using].vendor)


def stages(using: str) -> dict[int, str]:
    """The staging tables that there are, by the primary keys of their refreshes."""
    found: dict[int, str] = {}
    for place in _places(using):
        for name in _tables(place.schema, using):
            number = name.removeprefix(place.prefix)
            if name.startswith(place.prefix) and number.isdecimal():
                found.setdefault(int(number), place.table(int(number), connections[using].vendor))
    return found


def prepare_staging(using: str, roles: Iterable[str] = ()) -> str:
    """Make the schema that a setting names, and let roles make tables in it; what is left to do, or ""."""
    schema = get_settings().STAGING_SCHEMA
    connection = connections[using]
    if not schema or connection.vendor == "sqlite":
        return ""
    name = connection.ops.quote_name(schema)
    kind = "DATABASE" if connection.vendor == "mysql" else "SCHEMA"
    known = "SELECT 1 FROM information_schema.schemata WHERE schema_name = %s"
    if connection.vendor == "postgresql":  # that one hides the schemas of others
        known = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
    try:
        with transaction.atomic(using=using), connection.cursor() as cursor:
            cursor.execute(known, [schema])
            if not cursor.fetchone():
                cursor.execute(f"CREATE {kind} IF NOT EXISTS {name}")
            for role in roles:
                cursor.execute(f"GRANT USAGE, CREATE ON SCHEMA {name} TO {role}")
    except DatabaseError as error:
        return (
            f"matviews could not prepare {kind.lower()} {schema} for staging: {error_words(error)}"
        )
    return ""


def staging_schema(using: str) -> str:
    """The schema of staging tables, on MariaDB and MySQL the database; "" on SQLite."""
    return _places(using)[0].schema


def _places(using: str) -> list[_Place]:
    """Where staging tables are made, and then where there may be others from before the setting."""
    home = _home(using, connections[using].settings_dict["NAME"])
    places = [_Place(home, PREFIX)]
    schema = get_settings().STAGING_SCHEMA
    if schema and connections[using].vendor != "sqlite":
        # Other projects may stage there, too.
        places.insert(0, _Place(schema, f"{PREFIX}{crc32(home.encode()):08x}_"))
    return places


@cache
def _home(using: str, _database: object) -> str:
    """The schema of our own tables, whatever the search path of a role is; else the database."""
    connection = connections[using]
    if connection.vendor == "sqlite":
        return ""
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            cursor.execute("SELECT DATABASE()")
        else:
            cursor.execute(
                "SELECT nspname FROM pg_namespace WHERE oid = coalesce((SELECT relnamespace FROM pg_class "
                "WHERE oid = pg_catalog.to_regclass(%s)::pg_catalog.oid), (SELECT oid FROM pg_namespace WHERE nspname = "
                "pg_catalog.current_schema()))",
                [connection.ops.quote_name(PhaseRun._meta.db_table)],
            )
        (name,) = cursor.fetchone()
    return str(name)


def _tables(schema: str, using: str) -> list[str]:
    connection = connections[using]
    if not schema:
        return connection.introspection.table_names()
    with connection.cursor() as cursor:
        query = "SELECT table_name FROM information_schema.tables WHERE table_schema = %s"
        if connection.vendor == "postgresql":  # that one hides what this role may not read
            query = "SELECT tablename FROM pg_tables WHERE schemaname = %s"
        cursor.execute(query, [schema])
        return [name for (name,) in cursor.fetchall()]


def staging_problem(using: str) -> str:
    """Why the role of this connection cannot make staging tables, "" if it can; on PostgreSQL alone.

    The others tell when it is tried. PostgreSQL tells too, but writes an error into its log each time.
    """
    connection = connections[using]
    if connection.vendor != "postgresql":
        return ""
    schema = _places(using)[0].schema
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_user, has_schema_privilege(oid, 'CREATE') AND has_schema_privilege(oid, 'USAGE') "
            "FROM pg_namespace WHERE nspname = %s",
            [schema],
        )
        found = cursor.fetchone()
    if found is None:
        return f"there is no schema {schema}"
    role, may = found
    return "" if may else f"the role {role} may not create tables in the schema {schema}"


def fill_stage(name: str, source: Source, dialect: Dialect) -> int:
    """Make a staging table and evaluate the source into it, in the present transaction.

    Returns:
        The number of rows.

    Raises:
        StagingRefused: the role of this connection may not make the table.
        RowRefused: two rows of the source have one key, or a value is NULL that must not be.
    """
    if problem := staging_problem(dialect.using):
        raise StagingRefused(problem)
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
        except DatabaseError as error:
            raise refused(error, source, dialect.using, stage=True) from error.__cause__
        found = int(cursor.rowcount)
        if dialect.connection.vendor == "postgresql":
            cursor.execute(f"ANALYZE {table}")
    return found


def drop_stage(name: str, using: str, *, unread: bool = False) -> None:
    """Drop a staging table; where somebody still reads it, the engine's sweep tries again.

    `unread`: the present transaction is not known to have read it; if it has, that is found out at once.
    """
    dialect = dialect_of(using)
    if dialect.connection.vendor == "mysql" and dialect.connection.in_atomic_block and not unread:
        return  # the present transaction may have read it, and would wait for itself
    patience = 0 if unread else PATIENCE
    with suppress(DatabaseError, StagingRefused), _definitions(dialect, patience) as execute:
        execute(f"DROP TABLE IF EXISTS {dialect.name(name)}")


def _create(table: str, source: Source, dialect: Dialect) -> str:
    """A table of the source's columns, as the view has them, with its key as primary key."""
    key = ", ".join(dialect.names([column.field for column in source.key]))
    if dialect.connection.vendor == "mysql":  # its tables keep the collations they were made with
        view = dialect.name(source.model._meta.db_table)
        names = ", ".join(dialect.names([column.field for column in source.columns]))
        return f"CREATE TABLE {table} (PRIMARY KEY ({key})) SELECT {names} FROM {view} LIMIT 0"
    columns = []
    stored = dialect.columns([source.model._meta.db_table])  # whatever the models say
    for column in source.columns:
        field = column.field
        of_model = value_field(field).rel_db_type(dialect.connection), ""
        kind, collation = stored.get((source.model._meta.db_table, field.column or ""), of_model)
        collate = f" COLLATE {dialect.name(collation)}" if collation else ""
        null = " NULL" if field.null else " NOT NULL"
        columns.append(f"{dialect.names([field])[0]} {kind}{collate}{null}")
    return f"CREATE TABLE {table} ({', '.join(columns)}, PRIMARY KEY ({key}))"


@contextmanager
def _definitions(dialect: Dialect, patience: int = PATIENCE) -> Iterator[Callable[[str], object]]:
    """What runs a statement that makes or drops a table, without ending the present transaction."""
    connection: Any = connections[dialect.using]
    if connection.vendor != "mysql":
        with transaction.atomic(using=dialect.using), connection.cursor() as cursor:
            yield lambda statement: cursor.execute(statement, ())
        return
    try:
        with closing(connection.copy()) as other, other.cursor() as cursor:
            cursor.execute(f"SET SESSION lock_wait_timeout = {patience}")
            yield lambda statement: cursor.execute(statement, ())
    except DatabaseError as error:
        if error.args[:1] and error.args[0] in MYSQL_DENIED:
            raise StagingRefused(error_words(error)) from error
        raise
