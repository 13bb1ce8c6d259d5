"""PostgreSQL's error codes."""

from typing import Any

__all__ = ["sqlstate"]


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE of a driver's error, or of Django's that wraps it; None if it has none."""
    cause: Any = error.__cause__ or error
    state: str | None = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return state  # psycopg 2 uses the second name
