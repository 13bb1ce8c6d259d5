"""What tells one definition of a queryset view from another."""

import hashlib
import json
import re
from datetime import date, time
from typing import Any

from django.db import connections

from .source import Source

__all__ = ["fingerprint", "moment"]

MOMENT = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d\S*)?|\d\d:\d\d:\d\d\S*")
LISTS = re.compile(r"IN \((%s(?:, %s)*)\)")


def fingerprint(source: Source) -> str:
    """A digest of the source's SQL with its parameters, of the view's columns and its key.

    Dates and times are left out, for `now() - timedelta(days=30)` makes another each time. What is
    in a list of values is sorted, for a Python set has another order in each process.
    """
    return _digest(source, dated=False)


def moment(source: Source) -> str:
    """As `fingerprint`, but with the dates and times: the source at this moment."""
    return _digest(source, dated=True)


def _digest(source: Source, *, dated: bool) -> str:
    sql, params = source.query.compile()
    connection: Any = connections[source.query.using]
    columns = [
        (column.name, column.field.column, column.field.db_type(connection))
        for column in source.columns
    ]
    key = [column.name for column in source.key]
    texts = [_text(each, dated=dated) for each in _sorted(sql, params)]
    parts = [connection.vendor, sql, *texts, repr(columns), repr(key)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _sorted(sql: str, params: tuple[Any, ...]) -> list[Any]:
    values = list(params)
    for found in LISTS.finditer(sql):
        start = sql.count("%s", 0, found.start())
        end = start + found[1].count("%s")
        values[start:end] = sorted(values[start:end], key=repr)
    return values


def _text(param: Any, *, dated: bool) -> str:
    """A parameter as a text; a date or time, which some databases take as a string, only if `dated`."""
    if isinstance(param, (list, tuple)):
        return repr([_text(each, dated=dated) for each in param])
    if hasattr(param, "lower_inc"):  # a range of psycopg's
        ends = [_text(each, dated=dated) for each in (param.lower, param.upper)]
        return repr([type(param).__name__, *ends, param.bounds])
    if hasattr(param, "obj"):  # psycopg's JSON, whose own representation is shortened
        return json.dumps(param.obj, sort_keys=True, default=str)
    moving = isinstance(param, (date, time)) or (isinstance(param, str) and MOMENT.fullmatch(param))
    if moving and not dated:
        return ""
    return repr(bytes(param) if isinstance(param, memoryview) else param)
