"""Staging tables on MariaDB and MySQL, where creating or dropping a table commits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from django.db import DatabaseError

from ...redact import error_words
from ..base.dialect import Dialect
from ..base.staging import Staging, StagingRefused
from ..fields import AnyField
from ..sql import SQL
from .errors import number_of

__all__ = ["MySQLStaging"]

DENIED = {1044, 1049, 1142, 1227}  # a missing right, or database


class MySQLStaging(Staging):
    """A schema is a database here."""

    schema_kind = "DATABASE"
    quote = "`"

    def home(self, own_table: str) -> str:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT DATABASE()")
            return str(cursor.fetchone()[0])

    def has_schema(self, schema: str) -> bool:
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT 1 FROM information_schema.schemata WHERE schema_name = %s", [schema]
            )
            return cursor.fetchone() is not None

    def tables(self, schema: str) -> list[str]:
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = %s", [schema]
            )
            return [name for (name,) in cursor.fetchall()]

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
        """Copied from the view's table, whose columns keep the collations of its creation."""
        names, keys = ", ".join(dialect.names(fields)), ", ".join(dialect.names(key))
        kind = "TEMPORARY TABLE" if temporary else "TABLE"
        return (
            f"CREATE {kind} {table} (PRIMARY KEY ({keys})) "
            f"SELECT {names} FROM {dialect.name(view)} LIMIT 0"
        )

    def create_raw(
        self,
        table: str,
        view: str,
        fields: Sequence[AnyField],
        key: Sequence[AnyField],
        dialect: Dialect,
        rows: SQL,
    ) -> list[SQL]:
        """The primary key makes its columns NOT NULL."""
        typed, names = self._typed(view, fields, key, dialect, rows), dialect.names(key)
        create = f"CREATE TABLE {table} (PRIMARY KEY ({', '.join(names)})) {typed.text}"
        return [SQL(create, typed.params)]

    def replacing(self, table: str, create: str) -> list[str]:
        """MariaDB does so in one statement."""
        if not self.connection.mysql_is_mariadb:
            return super().replacing(table, create)
        return [create.replace("CREATE ", "CREATE OR REPLACE ", 1)]

    def drop_temporary(self, table: str) -> str:
        return f"DROP TEMPORARY TABLE IF EXISTS {table}"

    @contextmanager
    def definitions(self, wait: int) -> Iterator[Callable[[SQL], object]]:
        """On a connection of its own, so that the current transaction continues."""
        try:
            with closing(self.connection.copy()) as other, other.cursor() as cursor:
                cursor.execute(f"SET SESSION lock_wait_timeout = {wait}")
                yield lambda statement: cursor.execute(*statement)
        except DatabaseError as error:
            if number_of(error) in DENIED:
                raise StagingRefused(error_words(error)) from error
            raise

    def may_block_itself(self) -> bool:
        return bool(self.connection.in_atomic_block)
