"""What a view should hold, worked out in Python from the rows that the ORM gives for its source."""

import math
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from django.db import connection
from django.db.models import CharField, DecimalField, FloatField, TextField

from tests.shapes.models import Shape

__all__ = ["differences", "key_fields"]

Key = tuple[Any, ...]
Row = dict[str, Any]
TIE = Decimal("1e-9")  # how far off half a unit a value that was computed in floats may be


def differences(view: type[Shape], found: Any = None) -> list[str]:
    """How the table of a view differs from its source, a line per key; none where it is right.

    Or else how a queryset of the view does.

    A key with NULL is expected nowhere. Decimals may be rounded either way when they are half
    between, and floats are compared as far as the order of a sum may change them.
    """
    fields = _by_column(view)
    rows = view.source()
    if rows.query.combinator:
        rows = rows.order_by()  # Meta.ordering may name columns that the union has not
    source = _by_key(view, (_named(row, fields) for row in rows))
    table = _by_key(view, (view._base_manager if found is None else found).values())
    lines = [f"{key} is missing: {source[key]}" for key in source.keys() - table.keys()]
    lines += [f"{key} is surplus: {table[key]}" for key in table.keys() - source.keys()]
    for key in source.keys() & table.keys():
        for name, value in source[key].items():
            stored = table[key][name]
            if fields[name] not in key_fields(view) and not _same(fields[name], stored, value):
                lines.append(f"{key} has {name} {stored!r}, not {value!r}")
    return sorted(lines)


def key_fields(view: type[Shape]) -> list[Any]:
    """The fields of a view's key: those it names, or those of its only unique constraint."""
    meta: Any = view._meta
    if named := getattr(view.MatviewMeta, "key", None):
        return [meta.get_field(name) for name in named]
    if not meta.pk.db_returning:  # nothing that the database numbers
        return list(meta.pk_fields)
    if meta.constraints:
        return [meta.get_field(name) for name in meta.constraints[0].fields]
    return [field for field in meta.fields if field.unique and not field.primary_key]


def _by_column(view: type[Shape]) -> dict[str, Any]:
    fields = view._meta.concrete_fields
    return {name: field for field in fields for name in (field.name, field.attname)}


def _named(row: Row, fields: dict[str, Any]) -> Row:
    return {fields[name].attname: value for name, value in row.items()}


def _by_key(view: type[Shape], rows: Iterator[Row] | Any) -> dict[Key, Row]:
    found: dict[Key, Row] = {}
    for row in rows:
        key = tuple(_comparable(field, row[field.attname]) for field in key_fields(view))
        if None not in key:
            assert key not in found, f"{view.__name__} has {key} twice: {found[key]}, {row}"
            found[key] = row
    return found


def _comparable(field: Any, value: Any) -> Any:
    """A value of a key such that what the database takes for equal is equal."""
    while field.remote_field is not None:
        field = field.target_field
    if isinstance(value, datetime):
        return value.astimezone(UTC)  # in an hour that a zone has twice, Python calls none equal
    text = isinstance(field, (CharField, TextField)) and value is not None
    if not text or connection.vendor != "mysql" or field.db_collation:
        return value
    letters = unicodedata.normalize("NFD", value.rstrip(" ").upper())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _same(field: Any, stored: Any, value: Any) -> bool:
    if stored is None or value is None:
        return stored is value
    if isinstance(field, DecimalField):
        half = Decimal(1).scaleb(-field.decimal_places) / 2
        return bool(abs(stored - Decimal(value)) <= half + TIE)
    if isinstance(field, FloatField):
        return math.isclose(stored, value, rel_tol=1e-9)
    if isinstance(stored, memoryview):
        return bytes(stored) == bytes(value)
    if isinstance(field, TextField):
        return bool(stored == str(value))  # a number from within JSON
    return bool(stored == value)
