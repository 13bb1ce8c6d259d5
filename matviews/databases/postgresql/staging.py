"""Staging tables on PostgreSQL."""

from collections.abc import Sequence

from ..base.dialect import Dialect
from ..base.staging import Staging
from ..fields import AnyField
from ..sql import SQL

__all__ = ["PostgreSQLStaging"]


class PostgreSQLStaging(Staging):
    """Reads the catalogs: information_schema hides what this role may not read."""

    schema_kind = "SCHEMA"

    def home(self, own_table: str) -> str:
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT nspname FROM pg_namespace WHERE oid = coalesce("
                "(SELECT relnamespace FROM pg_class "
                "WHERE oid = pg_catalog.to_regclass(%s)::pg_catalog.oid), "
                "(SELECT oid FROM pg_namespace WHERE nspname = pg_catalog.current_schema()))",
                [self.connection.ops.quote_name(own_table)],
            )
            return str(cursor.fetchone()[0])

    def has_schema(self, schema: str) -> bool:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema])
            return cursor.fetchone() is not None

    def tables(self, schema: str) -> list[str]:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [schema])
            return [name for (name,) in cursor.fetchall()]

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
        return [
            SQL(f"CREATE TABLE {table} AS {typed.text}", typed.params),
            SQL(f"ALTER TABLE {table} ADD PRIMARY KEY ({', '.join(names)})"),
        ]

    def problem(self, schema: str) -> str:
        """Checked beforehand: a failing CREATE would put an error into the server's log."""
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_user, has_schema_privilege(oid, 'CREATE') "
                "AND has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = %s",
                [schema],
            )
            found = cursor.fetchone()
        if found is None:
            return f"the schema {schema} does not exist"
        role, may = found
        return "" if may else f"the role {role} may not create tables in the schema {schema}"

    def filled(self, table: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(f"ANALYZE {table}")
