"""How staging tables are created, dropped and found."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.db import connections, transaction

from ..fields import AnyField, value_field
from ..sql import SQL
from .dialect import Dialect

__all__ = ["Staging", "StagingRefused"]


class StagingRefused(Exception):
    """No staging table can be created; the message says why and what to do."""


class Staging:
    """Staging tables of SQLite, which has no schemas; the other databases override it.

    Args:
        using: alias of the database.
    """

    #: The keyword after CREATE for a schema; "" if there are no schemas.
    schema_kind = ""
    #: Separates schema and table within `db_table`.
    quote = '"'

    def __init__(self, using: str) -> None:
        self.using = using

    @property
    def connection(self) -> Any:
        """This thread's connection."""
        return connections[self.using]

    def table(self, schema: str, name: str) -> str:
        """A table in the form that `Dialect.name` takes, with the inner quotes of a `db_table`."""
        doubled = schema.replace(self.quote, self.quote * 2)
        return f"{doubled}{self.quote}.{self.quote}{name}" if schema else name

    def home(self, own_table: str) -> str:
        """The schema of the package's own tables, whatever the search path; "" for the only one."""
        return ""

    def has_schema(self, schema: str) -> bool:
        """Whether a schema exists."""
        raise NotImplementedError

    def tables(self, schema: str) -> list[str]:
        """The names of the tables in a schema, including those that the role may not read."""
        return list(self.connection.introspection.table_names())

    def problem(self, schema: str) -> str:
        """Why the role cannot create tables in a schema; "" if it can, or if only trying shows."""
        return ""

    def create(
        self,
        table: str,
        view: str,
        fields: Sequence[AnyField],
        key: Sequence[AnyField],
        dialect: Dialect,
        *,
        temporary: bool = False,
    ) -> str:
        """A statement that creates a table with the view's column types and its key as primary key.

        Args:
            table: its name, quoted.
            view: the name of the view's table.
            fields: the fields of the columns.
            key: those of the key.
            dialect: of the database.
            temporary: whether only this session sees it.
        """
        columns = self._columns(view, fields, dialect)
        names = ", ".join(dialect.names(key))
        kind = "TEMPORARY TABLE" if temporary else "TABLE"
        return f"CREATE {kind} {table} ({', '.join(columns)}, PRIMARY KEY ({names}))"

    def create_raw(
        self,
        table: str,
        view: str,
        fields: Sequence[AnyField],
        key: Sequence[AnyField],
        dialect: Dialect,
        rows: SQL,
    ) -> list[SQL]:
        """Statements that create a table with the view's key, and columns that take any value.

        Args:
            table: its name, quoted.
            view: the name of the view's table.
            fields: the fields of the columns.
            key: those of the key.
            dialect: of the database.
            rows: a query for the rows that it is to hold, whose types it has.
        """
        columns = self._columns(view, key, dialect)
        columns += dialect.names([field for field in fields if field not in key])
        names = ", ".join(dialect.names(key))
        return [SQL(f"CREATE TABLE {table} ({', '.join(columns)}, PRIMARY KEY ({names}))")]

    def _columns(self, view: str, fields: Sequence[AnyField], dialect: Dialect) -> list[str]:
        """The definitions of columns, as they are in the view's table, whatever the models say."""
        stored, columns = dialect.columns([view]), []
        for field in fields:
            of_model = value_field(field).rel_db_type(self.connection), ""
            kind, collation = stored.get((view, field.column or ""), of_model)
            collate = f" COLLATE {dialect.name(collation)}" if collation else ""
            null = " NULL" if field.null else " NOT NULL"
            columns.append(f"{dialect.names([field])[0]} {kind}{collate}{null}")
        return columns

    def _typed(
        self,
        view: str,
        fields: Sequence[AnyField],
        key: Sequence[AnyField],
        dialect: Dialect,
        rows: SQL,
    ) -> SQL:
        """A query without rows: the view's key, and the other columns of `rows`, which may be NULL.

        The columns of an outer join may be NULL, but keep their types.
        """
        columns = (
            f"{'matviews_view' if field in key else 'matviews_computed'}.{name}"
            for field, name in zip(fields, dialect.names(fields), strict=True)
        )
        return SQL(
            f"SELECT {', '.join(columns)} FROM (SELECT 1 AS one) matviews_one "
            f"LEFT JOIN {dialect.name(view)} matviews_view ON 1 = 0 "
            f"LEFT JOIN ({rows.text}) matviews_computed ON 1 = 0 LIMIT 0",
            rows.params,
        )

    def replacing(self, table: str, create: str) -> list[str]:
        """The statements that run `create`, for a temporary table, even if there is one already."""
        return [self.drop_temporary(table), create]

    def drop_temporary(self, table: str) -> str:
        """A statement that drops a temporary table, if there is one."""
        return f"DROP TABLE IF EXISTS temp.{table}"

    @contextmanager
    def definitions(self, wait: int) -> Iterator[Callable[[SQL], object]]:
        """A function that runs a CREATE or DROP without ending the current transaction.

        Args:
            wait: seconds to wait for a table that another connection is reading, where there is no
                other timeout.

        Raises:
            StagingRefused: the role may not do it.
        """
        with transaction.atomic(using=self.using), self.connection.cursor() as cursor:
            yield lambda statement: cursor.execute(*statement)

    def may_block_itself(self) -> bool:
        """Whether a DROP would wait for the current transaction, which may have read the table."""
        return False

    def filled(self, table: str) -> None:
        """Called when a table has been filled."""
