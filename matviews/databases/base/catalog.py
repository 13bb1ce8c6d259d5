"""What a database knows: the size of its tables, the rights of its roles, the time."""

import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeAlias

from django.db import connections

__all__ = ["Catalog", "MissingRight", "Needs"]

#: By table, the rights that are needed and what needs them, as the end of a sentence.
Needs: TypeAlias = Mapping[str, tuple[tuple[str, ...], str]]


class MissingRight(NamedTuple):
    """What a role may not do."""

    #: Quoted as GRANT takes it.
    role: str
    #: The privileges.
    rights: tuple[str, ...]
    #: The object, quoted as GRANT takes it.
    on: str
    #: What needs them, as the end of a sentence.
    why: str

    def __str__(self) -> str:
        return f"The database role {self.role} lacks {', '.join(self.rights)} on {self.on}, {self.why}."

    @property
    def grant(self) -> str:
        """The statement that grants them."""
        return f"GRANT {', '.join(self.rights)} ON {self.on} TO {self.role};"


class Catalog:
    """The catalog of one database.

    Args:
        using: alias of the database.
    """

    has_estimates = False

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
        """The rows of each table, as the database estimates them: -1 where it has no idea."""
        with self.connection.cursor() as cursor:
            return dict.fromkeys(self.connection.introspection.table_names(cursor), -1)

    def knows_time_zones(self) -> bool:
        """Whether it converts times to zones that have names."""
        return True

    def missing_rights(self, needs: Needs, *, written: str, own: bool) -> list[MissingRight]:
        """The rights on tables that roles lack.

        Args:
            needs: which rights are needed.
            written: a table that every role may write to that these rights are asked of.
            own: of the role of this connection alone.
        """
        return []

    def staging_rights(
        self, schema: str, views: Collection[str], *, written: str
    ) -> list[MissingRight]:
        """The rights that roles lack to make staging tables, and temporary ones on MariaDB and MySQL.

        Args:
            schema: where staging tables are made.
            views: the labels of the views that are staged.
            written: as above.
        """
        return []

    def can_grant_schema(self) -> bool:
        """Whether other roles may be given the right to make tables in a schema."""
        return False

    def rows(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        """The rows that a query finds."""
        with self.connection.cursor() as cursor:
            cursor.execute(query, params or None)
            return list(cursor.fetchall())
