"""Digests that distinguish the definitions of a queryset view."""

import hashlib
import re
from typing import Any

from django.db import connections

from .parameters import parameter_text
from .source import Source

__all__ = ["exact_fingerprint", "fingerprint", "has_dates"]

LISTS = re.compile(r"IN \((%s(?:, %s)*)\)")
# Django writes the types of JSON values on SQLite into the text, in the order of a set.
LITERALS = re.compile(r"IN \(('\w+'(?:,'\w+')*)\)")


def fingerprint(source: Source) -> str:
    """A digest of the source's SQL with its parameters, the view's columns and its key.

    Dates and times are left out, because `now() - timedelta(days=30)` differs on every call.
    Lists of values are sorted, because a Python set has another order in each process.
    """
    return _digest(source, with_dates=False)


def exact_fingerprint(source: Source) -> str:
    """The fingerprint with dates and times: what the source computes right now."""
    return _digest(source, with_dates=True)


def has_dates(source: Source) -> bool:
    """Whether parameters include dates or times, so that the source may change by time alone."""
    _sql, params = source.query.compile()
    return any(parameter_text(param) != parameter_text(param, with_dates=False) for param in params)


def _digest(source: Source, *, with_dates: bool) -> str:
    sql, params = source.query.compile()
    connection: Any = connections[source.query.using]
    columns = [
        (column.name, column.field.column, column.field.db_type(connection))
        for column in source.columns
    ]
    key = [column.name for column in source.key]
    texts = [parameter_text(param, with_dates=with_dates) for param in _sorted(sql, params)]
    parts = [LITERALS.sub(_in_order, sql), *texts, repr(columns), repr(key)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _in_order(found: re.Match[str]) -> str:
    return f"IN ({','.join(sorted(found[1].split(',')))})"


def _sorted(sql: str, params: tuple[Any, ...]) -> list[Any]:
    values = list(params)
    for found in LISTS.finditer(sql):
        start = sql.count("%s", 0, found.start())
        end = start + found[1].count("%s")
        values[start:end] = sorted(values[start:end], key=parameter_text)
    return values
