"""Statement parameters by value: psycopg's wrappers, for example, equal only themselves."""

import json
import pickle
import re
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from uuid import UUID

__all__ = ["parameter_text"]

DATE_LITERAL = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d\S*)?|\d\d:\d\d:\d\d\S*")
PLAIN = (bool, int, float, Decimal, UUID, timedelta, IPv4Address, IPv6Address, type(None))


def parameter_text(param: Any, *, with_dates: bool = True) -> str:
    """A text that two parameters share if, in any process, they send the database the same value.

    Without `with_dates`, dates and times are left out; some databases receive them as strings.
    """
    if isinstance(param, Enum):
        value = parameter_text(param.value, with_dates=with_dates)
        return f"{type(param).__qualname__}.{param.name}={value}"
    if isinstance(param, str):
        return repr(str.__str__(param)) if with_dates or not DATE_LITERAL.fullmatch(param) else ""
    if isinstance(param, (date, time)):
        return _date_text(param) if with_dates else ""
    if isinstance(param, PLAIN):
        return f"{type(param).__name__} {param!r}"
    if isinstance(param, (bytes, bytearray, memoryview)):
        return repr(bytes(param))
    return _composite_text(param, with_dates=with_dates)


def _date_text(param: date | time) -> str:
    """A date or time; an aware datetime in UTC, whatever its time zone."""
    if isinstance(param, datetime) and param.tzinfo is not None:
        with suppress(OverflowError):  # at the limits of datetime
            param = param.astimezone(UTC)
    return f"{type(param).__name__} {param.isoformat()}"


def _composite_text(param: Any, *, with_dates: bool) -> str:
    """As `parameter_text`, for values that contain others."""

    def text(value: Any) -> str:
        return parameter_text(value, with_dates=with_dates)

    kind = type(param).__qualname__
    if hasattr(param, "lower_inc"):  # psycopg's range
        return repr([kind, text(param.lower), text(param.upper), str(param.bounds)])
    if hasattr(param, "obj"):  # psycopg's JSON, whose own representation is shortened, or its bytes
        return repr([kind, _wrapped(param)])
    if isinstance(param, Mapping):
        return repr([kind, sorted((text(key), text(value)) for key, value in param.items())])
    if isinstance(param, Set):
        return repr([kind, sorted(map(text, param))])
    if isinstance(param, Sequence):
        return repr([kind, *map(text, param)])
    return repr([kind, repr(param), _pickled(param)])


def _wrapped(param: Any) -> str:
    if isinstance(param.obj, (bytes, bytearray, memoryview)):
        return repr(bytes(param.obj))
    written = (getattr(param, "dumps", None) or json.dumps)(param.obj)
    return json.dumps(json.loads(written), sort_keys=True)


def _pickled(param: Any) -> bytes:
    """A value's pickle; something unique if it cannot be pickled."""
    try:
        return pickle.dumps(param)
    except Exception:  # noqa: BLE001 - a parameter may be of any class
        return str(id(param)).encode()
