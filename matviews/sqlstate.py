"""What PostgreSQL calls an error by."""

from typing import Any

__all__ = ["sqlstate"]


def sqlstate(error: BaseException) -> str | None:
    """The code of a driver's error, or of Django's that came of it; None if it has none."""
    cause: Any = error.__cause__ or error
    state: str | None = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return state  # psycopg 2 has it by the second name
