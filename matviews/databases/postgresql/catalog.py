"""PostgreSQL's catalogs.

All names are looked up in `pg_catalog`, because these statements run as whoever migrates.
"""

from collections import defaultdict
from collections.abc import Collection

from ..base.catalog import Catalog, MissingRight, Needs
from .table_names import regclass

__all__ = ["PostgreSQLCatalog"]

STAGE = ("CREATE", "USAGE")


class PostgreSQLCatalog(Catalog):
    """Checks every role that may write to the bookkeeping tables, not only this connection's."""

    def timestamp(self) -> float:
        ((seconds,),) = self.rows("SELECT EXTRACT(EPOCH FROM statement_timestamp())")
        return float(seconds)

    def estimated_rows(self) -> dict[str, int]:
        found = self.rows(
            "SELECT relname, reltuples FROM pg_class "
            "WHERE relkind IN ('r', 'p') AND pg_table_is_visible(oid)"
        )
        return {name: int(rows) for name, rows in found}

    def missing_rights(self, needs: Needs, *, written: str, own: bool) -> list[MissingRight]:
        """A right on some of the columns may be enough."""
        quote = self.connection.ops.quote_name
        asked = [(table, right) for table, (rights, _why) in needs.items() for right in rights]
        query = (
            f"{_roles(written)} SELECT roles.name, needed.place, needed.privilege "
            f"FROM roles CROSS JOIN "
            f"(SELECT pg_catalog.to_regclass(name)::pg_catalog.oid AS of, privilege, place FROM "
            f"unnest(%s::pg_catalog.text[], %s::pg_catalog.text[]) WITH ORDINALITY "
            f"AS given (name, privilege, place)) needed WHERE needed.of IS NOT NULL "
            f"AND (%s OR roles.name = pg_catalog.quote_ident(current_user)) "
            f"AND NOT CASE WHEN privilege = 'DELETE' "
            f"THEN pg_catalog.has_table_privilege(roles.oid, needed.of, privilege) "
            f"ELSE pg_catalog.has_any_column_privilege(roles.oid, needed.of, privilege) END"
        )
        names = [regclass(quote(table)) for table, _right in asked]
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for role, place, right in self.rows(
            query, names, [right for _table, right in asked], not own
        ):
            found[role, asked[place - 1][0]].append(right)
        return [
            MissingRight(role, tuple(rights), quote(table), needs[table][1])
            for (role, table), rights in found.items()
        ]

    def staging_rights(
        self, schema: str, views: Collection[str], *, written: str
    ) -> list[MissingRight]:
        if not views:
            return []
        on = f"SCHEMA {self.connection.ops.quote_name(schema)}"
        has = (
            "pg_catalog.has_schema_privilege(roles.oid, "
            "(SELECT oid FROM pg_namespace WHERE nspname = %s), %s)"
        )
        query = f"{_roles(written)} SELECT name FROM roles WHERE NOT {has}"
        missing: dict[str, list[str]] = defaultdict(list)
        for right in STAGE:
            for (role,) in self.rows(query, schema, right):
                missing[role].append(right)
        why = f"where {', '.join(views)} would be staged"
        return [MissingRight(role, tuple(rights), on, why) for role, rights in missing.items()]

    def can_grant_schema(self) -> bool:
        return True


def _roles(written: str) -> str:
    """A CTE of the roles that may write to a table, and of this connection's role."""
    return (
        "WITH roles AS (SELECT oid, pg_catalog.quote_ident(rolname) AS name FROM pg_roles "
        f"WHERE rolname = current_user OR rolcanlogin "
        f"AND pg_catalog.has_table_privilege(oid, '{written}', 'UPDATE'))"
    )
