"""Which rights the database roles that run batches lack, so that a person is told which to grant.

On PostgreSQL these are the roles that may log in and write to our tables, whoever asks; MariaDB and MySQL tell
a user of its own rights alone.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from django.apps import apps
from django.db import DatabaseError, connections, transaction

from ..databases.postgresql.table_names import regclass
from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..models import ViewShard
from ..queryset import plan_of, staging_schema, tables_read
from ..queryset import prepare_staging as make_schema
from ..registry import registry
from .databases import alias

__all__ = [
    "MissingRight",
    "denied_for",
    "is_denied",
    "missing_rights",
    "prepare_staging",
    "staging_rights",
]

WRITE = ("SELECT", "INSERT", "UPDATE", "DELETE")
STAGE = {
    "postgresql": ("CREATE", "USAGE"),
    "mysql": ("CREATE", "DROP", "SELECT", "INSERT", "CREATE TEMPORARY TABLES"),
}
BEAT = ("PeriodicTask", "PeriodicTasks", "IntervalSchedule", "CrontabSchedule")
# "ALL PRIVILEGES" of a table or database has all that is asked for here.
GRANT = re.compile(r"GRANT (?P<rights>.+?) ON (?P<database>\S+?)\.(?P<table>\S+) TO ")
MYSQL_OF_DATABASE = 1044  # a right on the whole of it: to make temporary tables
MYSQL_DENIED = {1044, 1142, 1143, 1227, 1370}


class MissingRight(NamedTuple):
    """What a role may not do.

    Attributes:
        role: the role, quoted as GRANT takes it.
        rights: the privileges.
        on: of what, quoted as GRANT takes it.
        why: what needs them, as the end of a sentence.
    """

    role: str
    rights: tuple[str, ...]
    on: str
    why: str

    def __str__(self) -> str:
        return f"The database role {self.role} lacks {', '.join(self.rights)} on {self.on}, {self.why}."

    @property
    def grant(self) -> str:
        """The statement that gives them."""
        return f"GRANT {', '.join(self.rights)} ON {self.on} TO {self.role};"


def is_denied(error: BaseException) -> bool:
    """Whether the database has refused a statement for want of a right."""
    cause: Any = error.__cause__ or error
    if hasattr(cause, "diag"):
        return bool(cause.diag.sqlstate == "42501")
    return bool(cause.args) and cause.args[0] in MYSQL_DENIED


def denied_for(error: BaseException, definitions: Iterable[ViewDefinition] | None = None) -> str:
    """Which rights this connection's role lacks, a sentence each, if that is why a statement was refused."""
    if not is_denied(error):
        return ""
    try:
        with transaction.atomic(using=alias()):
            of_database = error.args[0] == MYSQL_OF_DATABASE
            lacking = staging_rights() if of_database else missing_rights(definitions, own=True)
    except DatabaseError:
        return ""
    return " ".join(f"{each} {each.grant}" for each in lacking)


def missing_rights(
    definitions: Iterable[ViewDefinition] | None = None, *, own: bool = False
) -> list[MissingRight]:
    """The rights on tables that roles lack.

    Args:
        definitions: the views that are asked about; all by default.
        own: of the role of this connection alone.
    """
    needs = _needs(registry if definitions is None else definitions)
    vendor = connections[alias()].vendor
    if vendor == "postgresql":
        return list(_missing_on_postgres(needs, own=own))
    return list(_missing_on_mysql(needs)) if vendor == "mysql" else []


def _needs(definitions: Iterable[ViewDefinition]) -> dict[str, tuple[tuple[str, ...], str]]:
    """By table, the rights that are needed and what needs them."""
    ours = [*apps.get_app_config("matviews").get_models()]
    ours += [apps.get_model("django_celery_beat", name) for name in BEAT]
    needs: dict[str, tuple[tuple[str, ...], str]] = {}
    for each in definitions:
        for table in tables_read(each, alias()) if each.has_source else ():
            needs.setdefault(table, (("SELECT",), f"which {each.label} reads"))
    for each in definitions:
        if each.derived:
            needs[each.model._meta.db_table] = (WRITE, f"the table of {each.label}")
    return needs | {model._meta.db_table: (WRITE, "the bookkeeping of matviews") for model in ours}


def staged_views() -> list[str]:
    """The labels of the views that are evaluated into staging tables."""
    return [each.label for each in registry if each.derived and _is_staged(each)]


def _is_staged(definition: ViewDefinition) -> bool:
    try:
        return plan_of(definition, alias()).path.staged
    except InvalidView:
        return False


def prepare_staging() -> str:
    """Make the schema of staging tables, and let the roles that lack it make tables there; what is left to do."""
    problem = make_schema(alias(), ())
    if problem or connections[alias()].vendor != "postgresql":
        return problem
    return make_schema(alias(), [each.role for each in staging_rights()])


def staging_rights() -> list[MissingRight]:
    """The rights that roles lack to make staging tables, and temporary ones on MariaDB and MySQL."""
    connection, views = connections[alias()], staged_views()
    if connection.vendor not in STAGE:
        return []
    schema = staging_schema(alias())
    rights = STAGE[connection.vendor]
    why = f"where {', '.join(views)} would be staged"
    if connection.vendor == "mysql":
        having = _mysql_rights(schema, "")
        missing = tuple(each for each in rights if each not in having)
        temporary = tuple(each for each in missing if each.endswith("TABLES"))
        why, missing = (why, missing) if views else ("where deleting needs it", temporary)
        return [MissingRight(_mysql_role(), missing, f"`{schema}`.*", why)] if missing else []
    if not views:
        return []
    on = f"SCHEMA {connection.ops.quote_name(schema)}"
    asked = "pg_catalog.has_schema_privilege(roles.oid, (SELECT oid FROM pg_namespace WHERE nspname = %s), %s)"
    roles: dict[str, list[str]] = defaultdict(list)
    for right in rights:
        for (role,) in _fetched(
            f"{_ROLES} SELECT name FROM roles WHERE NOT {asked}", schema, right
        ):
            roles[role].append(right)
    return [MissingRight(role, tuple(lacking), on, why) for role, lacking in roles.items()]


# The roles that may write to the bookkeeping, and the one of this connection.
_ROLES = (
    "WITH roles AS (SELECT oid, pg_catalog.quote_ident(rolname) AS name FROM pg_roles WHERE rolname = current_user "
    f"OR rolcanlogin AND pg_catalog.has_table_privilege(oid, '{ViewShard._meta.db_table}', 'UPDATE'))"
)


def _missing_on_postgres(
    needs: dict[str, tuple[tuple[str, ...], str]], *, own: bool
) -> Iterator[MissingRight]:
    quote = connections[alias()].ops.quote_name
    asked = [(table, right) for table, (rights, _why) in needs.items() for right in rights]
    # A right on some of the columns may be enough.
    query = (
        f"{_ROLES} SELECT roles.name, needed.place, needed.privilege FROM roles CROSS JOIN "
        f"(SELECT pg_catalog.to_regclass(name)::pg_catalog.oid AS of, privilege, place FROM "
        f"unnest(%s::pg_catalog.text[], %s::pg_catalog.text[]) WITH ORDINALITY AS given (name, privilege, place)) "
        f"needed WHERE needed.of IS NOT NULL AND (%s OR roles.name = pg_catalog.quote_ident(current_user)) "
        f"AND NOT CASE WHEN privilege = 'DELETE' "
        f"THEN pg_catalog.has_table_privilege(roles.oid, needed.of, privilege) "
        f"ELSE pg_catalog.has_any_column_privilege(roles.oid, needed.of, privilege) END"
    )
    names = [regclass(quote(table)) for table, _right in asked]
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for role, place, right in _fetched(query, names, [right for _table, right in asked], not own):
        found[role, asked[place - 1][0]].append(right)
    for (role, table), rights in found.items():
        yield MissingRight(role, tuple(rights), quote(table), needs[table][1])


def _missing_on_mysql(needs: dict[str, tuple[tuple[str, ...], str]]) -> Iterator[MissingRight]:
    connection = connections[alias()]
    present = set(connection.introspection.table_names())
    ((database,),) = _fetched("SELECT DATABASE()")
    for table, (rights, why) in needs.items():
        having = _mysql_rights(database, table)
        missing = tuple(each for each in rights if each not in having)
        if missing and (table in present or "SELECT" in missing):
            yield MissingRight(_mysql_role(), missing, f"`{database}`.`{table}`", why)


def _mysql_role() -> str:
    ((role,),) = _fetched("SELECT CURRENT_USER()")
    return "@".join(f"'{part}'" for part in role.rsplit("@", 1))


def _mysql_rights(database: str, table: str) -> Collection[str]:
    """The rights of this connection's user on a table, or on the whole database."""
    rights: set[str] = set()
    for (line,) in _fetched("SHOW GRANTS"):
        found = GRANT.match(line)
        if found and _covers(found["database"], found["table"], database, table):
            names = re.sub(r"\([^)]*\)", "", found["rights"])  # of some of the columns
            rights |= {name.strip() for name in names.split(",")}
    return set(WRITE) | set(STAGE["mysql"]) if "ALL PRIVILEGES" in rights else rights


def _covers(of_database: str, of_table: str, database: str, table: str) -> bool:
    pattern = of_database.strip("`").replace("\\_", "\0")
    pattern = "".join({"%": ".*", "_": ".", "\0": "_"}.get(c, re.escape(c)) for c in pattern)
    everywhere = pattern == re.escape("*") or re.fullmatch(pattern, database) is not None
    return everywhere and of_table.strip("`") in ("*", table)


def _fetched(query: str, *params: Any) -> list[tuple[Any, ...]]:
    with connections[alias()].cursor() as cursor:
        cursor.execute(query, params or None)
        return list(cursor.fetchall())
