"""What the database takes the rows of its tables to be."""

from django.db import connections

__all__ = ["estimated_rows"]

_ESTIMATES = {
    "postgresql": "SELECT relname, reltuples FROM pg_class "
    "WHERE relkind IN ('r', 'p') AND pg_table_is_visible(oid)",
    "mysql": "SELECT table_name, coalesce(table_rows, -1) FROM information_schema.tables "
    "WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE'",
}


def estimated_rows(using: str) -> dict[str, int]:
    """The rows of each table, as the database estimates them: -1 where it has no idea."""
    connection = connections[using]
    with connection.cursor() as cursor:
        if connection.vendor not in _ESTIMATES:
            return dict.fromkeys(connection.introspection.table_names(cursor), -1)
        cursor.execute(_ESTIMATES[connection.vendor])
        return {name: int(rows) for name, rows in cursor.fetchall()}
