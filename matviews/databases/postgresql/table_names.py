"""Names of PostgreSQL's tables, as `Meta.db_table` and as the catalogs have them."""

import re

__all__ = ["LIKE", "MAX_NAME_BYTES", "cut", "identifiers", "quoted_sql", "regclass"]

# Statements on the catalogs run as whoever migrates: no function or operator of another schema may
# be chosen as the better match.
LIKE = "OPERATOR(pg_catalog.~~)"
MAX_NAME_BYTES = 63  # the database truncates longer names
_IDENTIFIER = r'"((?:[^"\0]|"")+)"'
_NAME = re.compile(rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})?(?:\.{_IDENTIFIER})?")


def identifiers(quoted: str) -> list[str]:
    """The database, schema and table that a name includes.

    Args:
        quoted: a name as Django quotes it: `legacy"."item` has a schema then.

    Returns:
        Each without its quotes; nothing if no table can have the name.
    """
    match = _NAME.fullmatch(quoted)
    parts = [part.replace('""', '"') for part in match.groups() if part] if match else []
    return parts if quoted.isascii() or _is_text(quoted) else []


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return False


def regclass(quoted: str) -> str | None:
    """A name that `to_regclass` accepts, None if it would raise an error.

    Args:
        quoted: a name as Django quotes it.
    """
    return quoted if 0 < len(identifiers(quoted)) < 3 else None


def quoted_sql(table: str) -> str:
    """An expression for a name as Django quotes it.

    Args:
        table: an expression for the name as `Meta.db_table` has it, for a statement with
            parameters.
    """
    return (
        f"CASE WHEN {table} {LIKE} '\"%%\"' THEN {table}::pg_catalog.text "
        f"ELSE pg_catalog.concat('\"', {table}, '\"') END"
    )


def cut(name: str) -> str:
    """An identifier as the database truncates it."""
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
