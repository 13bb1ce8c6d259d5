"""Keys that callers pass."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError

from ...databases import Dialect, dialect_of
from ...databases.fields import DATE, DATETIME, AnyField, family, value_field
from ...databases.keys import Key

__all__ = ["as_key"]

# Dates that Python cannot hold, as databases write them.
BEYOND_PYTHON = re.compile(
    r"-?infinity|\d{4,}-.* BC|\d{5,}-\d\d-\d\d\b.*|\d{4}-(00-\d\d|\d\d-00)\b.*"
)


def as_key(fields: Sequence[AnyField], value: Any, using: str) -> Key:
    """The key that a caller passes as a value, or as a tuple of values.

    The fields convert it once, as a lookup in a queryset would. A date that Python cannot hold is
    passed as the database's text.

    Raises:
        ValueError: it is not a valid key.
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    names = ", ".join(field.name for field in fields)
    if None in values or len(values) != len(fields):
        raise ValueError(f"{value!r} is not a valid key ({names}).")
    try:
        pairs = zip(fields, values, strict=True)
        return tuple(_exact(field, part, dialect_of(using)) for field, part in pairs)
    except (ValidationError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{value!r} is not a valid key ({names}).") from error


def _exact(field: AnyField, value: Any, dialect: Dialect) -> Any:
    text = isinstance(value, str) and family(field) in (DATE, DATETIME)
    if not text or not BEYOND_PYTHON.fullmatch(value):
        value = value_field(field).get_db_prep_value(value, dialect.connection)
    return dialect.as_exact(dialect.kind_of(field), _plain(value, dialect))


def _plain(value: Any, dialect: Dialect) -> Any:
    """The text or number that represents a value as a parameter."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and (dialect.bool_is_int or not isinstance(value, bool)):
        return int(value)
    if isinstance(value, dialect.kept_types):
        return value
    if isinstance(value, timedelta):
        return f"{value // timedelta(microseconds=1)} microseconds"
    if isinstance(value, datetime) and value.tzinfo:
        return str(value.astimezone(dialect.connection.timezone))
    if value is None:
        raise ValueError("a part of it is NULL")
    return str(value)
