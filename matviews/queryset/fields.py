"""What the fields of a view and the columns of its source say of their values."""

from collections.abc import Iterator
from typing import Any, TypeAlias

from django.db.models import Field, Index, Model, UniqueConstraint

__all__ = [
    "DATE",
    "FAMILIES",
    "MOMENT",
    "NUMBER",
    "TEXT",
    "WHOLE",
    "AnyField",
    "family",
    "indexed_columns",
    "is_automatic",
    "is_filled_by_database",
    "unique_fields",
    "value_field",
]

AnyField: TypeAlias = "Field[Any, Any]"

WHOLE = "whole number"
NUMBER = "number"
TEXT = "text"
DATE = "date"
MOMENT = "date and time"
FAMILIES = {
    **dict.fromkeys(
        (
            "AutoField", "BigAutoField", "SmallAutoField", "IntegerField", "BigIntegerField",
            "SmallIntegerField", "PositiveIntegerField", "PositiveBigIntegerField",
            "PositiveSmallIntegerField",
        ),
        WHOLE,
    ),
    **dict.fromkeys(("DecimalField", "FloatField"), NUMBER),
    **dict.fromkeys(("CharField", "TextField", "FileField", "FilePathField", "SlugField"), TEXT),
    "BooleanField": "boolean",
    "DateField": DATE,
    "DateTimeField": MOMENT,
    "TimeField": "time",
    "DurationField": "duration",
    "UUIDField": "UUID",
    "JSONField": "JSON",
    "BinaryField": "binary",
}  # fmt: skip
BTREE = {"idx", "btree"}  # suffixes of the classes of indexes that keep an order


def value_field(field: AnyField) -> AnyField:
    """The field whose values a field holds: for a foreign key, the one that it points at."""
    while field.remote_field is not None and hasattr(field, "target_field"):
        field = field.target_field
    return field


def family(field: AnyField) -> str:
    """What kind of values a field holds, as a word for a person."""
    name = value_field(field).get_internal_type()
    return FAMILIES.get(name, name)


def is_automatic(field: AnyField) -> bool:
    """Whether the database numbers it."""
    return field.get_internal_type() in ("AutoField", "BigAutoField", "SmallAutoField")


def is_filled_by_database(field: AnyField) -> bool:
    """Whether a row may be inserted without it."""
    generated = getattr(field, "generated", False)
    return field.null or is_automatic(field) or field.has_db_default() or generated


def unique_fields(model: type[Model]) -> list[tuple[AnyField, ...]]:
    """The fields of each unconditional unique constraint of a model, its primary key among them."""
    meta: Any = model._meta
    found = [tuple(meta.pk_fields)]
    found += [(field,) for field in meta.local_concrete_fields if field.unique]
    named: list[tuple[str, ...]] = [tuple(names) for names in meta.unique_together]
    named += [
        tuple(constraint.fields)
        for constraint in meta.constraints
        if isinstance(constraint, UniqueConstraint)
        and constraint.condition is None
        and constraint.fields
    ]
    found += [tuple(meta.get_field(name) for name in names) for names in named]
    return list({frozenset(fields): fields for fields in reversed(found)}.values())[::-1]


def indexed_columns(model: type[Model]) -> Iterator[tuple[str | None, ...]]:
    """The columns, in their order, of each declared index that keeps an order."""
    meta: Any = model._meta
    for fields in unique_fields(model):
        yield tuple(field.column for field in fields)
    for field in meta.local_concrete_fields:
        if field.db_index:
            yield (field.column,)
    for index in meta.indexes:
        if _keeps_order(index):
            yield tuple(meta.get_field(name).column for name, _order in index.fields_orders)


def _keeps_order(index: Index) -> bool:
    plain = bool(index.fields) and index.condition is None and not index.opclasses
    directions = {order for _name, order in index.fields_orders}
    return plain and index.suffix in BTREE and len(directions) == 1
