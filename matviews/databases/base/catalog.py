"""What a database knows: the size of its tables, the rights of its roles, the time."""

import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeAlias

from django.db import connections

__all__ = ["Catalog", "MissingRight", "Needs"]

#: By table, the required rights and what requires them, as the end of a sentence.
Needs: TypeAlias = Mapping[str, tuple[tuple[str, ...], str]]


class MissingRight(NamedTuple):
    """A right that a role needs and does not have."""

    #: Quoted as GRANT takes it.
    role: str
    #: The missing privileges.
    rights: tuple[str, ...]
    #: The object, quoted as GRANT takes it.
    on: str
    #: What requires them, as the end of a sentence.
    why: str

    def __str__(self) -> str:
        needed = ", ".join(self.rights)
        return f"The database role {self.role} needs {needed} on {self.on}, {self.why}."

    @property
    def grant(self) -> str:
        """The statement that grants them."""
        return f"GRANT {', '.join(self.rights)} ON {self.on} TO {self.role};"


class Catalog:
    """The catalog of one database.

    Args:
        using: alias of the database.
    """

    def __init__(self, using: str) -> None:
        self.using = using

    @property
    def connection(self) -> Any:
        """This thread's connection."""
        return connections[self.using]

    def timestamp(self) -> float:
        """Seconds since 1970 by the database's clock; by this machine's where it has none."""
        return time.time()

    def estimated_rows(self) -> dict[str, int]:
        """The estimated number of rows of each table, -1 where the database has no estimate."""
        with self.connection.cursor() as cursor:
            return dict.fromkeys(self.connection.introspection.table_names(cursor), -1)

    def knows_time_zones(self) -> bool:
        """Whether the database can convert times to named time zones."""
        return True

    def missing_rights(self, needs: Needs, *, written: str, own: bool) -> list[MissingRight]:
        """The rights on tables that roles need and do not have.

        Args:
            needs: the required rights.
            written: a table; every role that may write to it needs these rights.
            own: check the role of this connection only.
        """
        return []

    def staging_rights(
        self, schema: str, views: Collection[str], *, written: str
    ) -> list[MissingRight]:
        """The rights that roles need for staging tables; for temporary ones on MariaDB and MySQL.

        Args:
            schema: where staging tables are created.
            views: the labels of the views that are staged.
            written: as in `missing_rights`.
        """
        return []

    def can_grant_schema(self) -> bool:
        """Whether other roles can be granted the right to create tables in a schema."""
        return False

    def rows(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        """The rows that a query finds."""
        with self.connection.cursor() as cursor:
            cursor.execute(query, params or None)
            return list(cursor.fetchall())
