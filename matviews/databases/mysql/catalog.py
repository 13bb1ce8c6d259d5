"""The catalogs of MariaDB and MySQL."""

import re
from collections.abc import Collection

from ..base.catalog import Catalog, MissingRight, Needs

__all__ = ["MySQLCatalog"]

WRITE = ("SELECT", "INSERT", "UPDATE", "DELETE")
STAGE = ("CREATE", "DROP", "SELECT", "INSERT", "CREATE TEMPORARY TABLES")
# ALL PRIVILEGES on a table or database includes every right that is checked here.
GRANT = re.compile(r"GRANT (?P<rights>.+?) ON (?P<database>\S+?)\.(?P<table>\S+) TO ")


class MySQLCatalog(Catalog):
    """Checks this connection's user only: it may not read the rights of others."""

    def timestamp(self) -> float:
        ((seconds,),) = self.rows(
            "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1000000"
        )
        return float(seconds)

    def estimated_rows(self) -> dict[str, int]:
        found = self.rows(
            "SELECT table_name, coalesce(table_rows, -1) FROM information_schema.tables "
            "WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE'"
        )
        return {name: int(rows) for name, rows in found}

    def knows_time_zones(self) -> bool:
        """False until the time zone tables are loaded: until then CONVERT_TZ returns NULL."""
        return bool(self.connection.features.has_zoneinfo_database)

    def missing_rights(self, needs: Needs, *, written: str, own: bool) -> list[MissingRight]:
        present = set(self.connection.introspection.table_names())
        ((database,),) = self.rows("SELECT DATABASE()")
        found = []
        for table, (rights, why) in needs.items():
            having = self._rights(database, table)
            missing = tuple(right for right in rights if right not in having)
            if missing and (table in present or "SELECT" in missing):
                on = f"`{database}`.`{table}`"
                found.append(MissingRight(self._role(), missing, on, why))
        return found

    def staging_rights(
        self, schema: str, views: Collection[str], *, written: str
    ) -> list[MissingRight]:
        """Deleting needs a temporary table even where no view is staged."""
        having = self._rights(schema, "")
        missing = tuple(right for right in STAGE if right not in having)
        why = f"where {', '.join(views)} would be staged"
        if not views:
            missing = tuple(right for right in missing if right.endswith("TABLES"))
            why = "to delete rows of views"
        return [MissingRight(self._role(), missing, f"`{schema}`.*", why)] if missing else []

    def _role(self) -> str:
        ((role,),) = self.rows("SELECT CURRENT_USER()")
        return "@".join(f"'{part}'" for part in role.rsplit("@", 1))

    def _rights(self, database: str, table: str) -> Collection[str]:
        """The rights of this connection's user on a table, or on the whole database."""
        rights: set[str] = set()
        for (line,) in self.rows("SHOW GRANTS"):
            found = GRANT.match(line)
            if found and _covers(found["database"], found["table"], database, table):
                names = re.sub(r"\([^)]*\)", "", found["rights"])  # column privileges
                rights |= {name.strip() for name in names.split(",")}
        return {*WRITE, *STAGE} if "ALL PRIVILEGES" in rights else rights


def _covers(of_database: str, of_table: str, database: str, table: str) -> bool:
    pattern = of_database.strip("`").replace("\\_", "\0")
    pattern = "".join({"%": ".*", "_": ".", "\0": "_"}.get(c, re.escape(c)) for c in pattern)
    everywhere = pattern == re.escape("*") or re.fullmatch(pattern, database) is not None
    return everywhere and of_table.strip("`") in ("*", table)
