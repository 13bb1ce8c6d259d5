"""The database's clock, which all processes share."""

from typing import Any

from django.db.models.functions import Now

__all__ = ["UtcNow"]


class UtcNow(Now):
    """The time in UTC: on MariaDB and MySQL `Now` is in the server's time zone."""

    def as_mysql(self, compiler: Any, connection: Any, **_context: Any) -> Any:
        """As `Now` does it, but for the zone."""
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)")
