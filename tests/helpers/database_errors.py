"""Errors of the database, without a fault of the database."""

from typing import Any

from django.db import OperationalError, connection

__all__ = ["database_error"]


def database_error(code: Any) -> Exception:
    """An error as Django raises it, with a code of the driver."""
    cause: Any = Exception("text") if connection.vendor != "mysql" else Exception(code, "text")
    cause.sqlstate = cause.sqlite_errorname = code
    error = OperationalError(*cause.args)
    error.__cause__ = cause
    return error
