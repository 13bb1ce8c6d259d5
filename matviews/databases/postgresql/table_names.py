"""Names of PostgreSQL's tables: what `Meta.db_table` may say, as the catalogs have it."""

import re

__all__ = ["MAX_NAME_BYTES", "cut", "identifiers", "regclass"]

MAX_NAME_BYTES = 63  # bytes; the database cuts off what is more
_IDENTIFIER = r'"((?:[^"\0]|"")+)"'
_NAME = re.compile(rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})?(?:\.{_IDENTIFIER})?")


def identifiers(quoted: str) -> list[str]:
    """The database, the schema and the table, as far as a name says them.

    Args:
        quoted: a name as Django puts it into a statement: `legacy"."item` is one with a schema then.

    Returns:
        Each without its quotes; none of a name that no table can have.
    """
    match = _NAME.fullmatch(quoted)
    parts = [part.replace('""', '"') for part in match.groups() if part] if match else []
    return parts if quoted.isascii() or _is_text(quoted) else []


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False


def regclass(quoted: str) -> str | None:
    """A name as `to_regclass` takes it, None where that would raise an error.

    Args:
        quoted: a name as Django puts it into a statement.
    """
    return quoted if 0 < len(identifiers(quoted)) < 3 else None


def cut(name: str) -> str:
    """An identifier as the database has it."""
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
