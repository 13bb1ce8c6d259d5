"""Names of PostgreSQL's tables, as `Meta.db_table` and as the catalogs have them."""

import re

__all__ = ["MAX_NAME_BYTES", "cut", "identifiers", "regclass"]

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


def cut(name: str) -> str:
    """An identifier as the database truncates it."""
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
