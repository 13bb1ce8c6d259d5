"""What kinds of values the fields of a view and the columns of its source hold."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from django.apps import apps
from django.db.models import Expression, Field, Index, Model, UniqueConstraint
from django.db.models.expressions import Col

__all__ = [
    "DATE",
    "DATETIME",
    "FAMILIES",
    "NUMBER",
    "TEXT",
    "WHOLE",
    "AnyField",
    "Column",
    "column_of",
    "family",
    "field_of_column",
    "indexed_columns",
    "is_automatic",
    "is_filled_by_database",
    "model_of_table",
    "unique_fields",
    "value_field",
]

AnyField: TypeAlias = "Field[Any, Any]"

WHOLE = "whole number"
NUMBER = "number"
TEXT = "text"
DATE = "date"
DATETIME = "date and time"
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
    "DateTimeField": DATETIME,
    "TimeField": "time",
    "DurationField": "duration",
    "UUIDField": "UUID",
    "JSONField": "JSON",
    "BinaryField": "binary",
}  # fmt: skip
BTREE = {"idx", "btree"}  # suffixes of the ordered index classes


def value_field(field: AnyField) -> AnyField:
    """The field whose values a field holds: of a foreign key, the field it points at."""
    while field.remote_field is not None and hasattr(field, "target_field"):
        field = field.target_field
    return field


def family(field: AnyField) -> str:
    """The kind of values that a field holds, as a word for a person."""
    name = value_field(field).get_internal_type()
    return FAMILIES.get(name, name)


def is_automatic(field: AnyField) -> bool:
    """Whether the database numbers the field."""
    return field.get_internal_type() in ("AutoField", "BigAutoField", "SmallAutoField")


def is_filled_by_database(field: AnyField) -> bool:
    """Whether a row may be inserted without the field."""
    generated = getattr(field, "generated", False)
    return field.null or is_automatic(field) or field.has_db_default() or generated


def unique_fields(model: type[Model]) -> list[tuple[AnyField, ...]]:
    """The fields of each unconditional unique constraint of a model, including its primary key."""
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
    """The columns, in order, of each declared index that is ordered."""
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


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the source, and the field of the view that stores it."""

    #: The name in the queryset.
    name: str
    #: The field of the view.
    field: AnyField
    #: The expression that computes it.
    expression: Expression
    #: Whether its last digits depend on the order in which rows are summed.
    is_float_aggregate: bool


def column_of(expression: Any) -> tuple[str, AnyField] | None:
    """Alias and field of an expression that is a plain column, else None."""
    return (expression.alias, expression.target) if isinstance(expression, Col) else None


def model_of_table(table: str) -> type[Model] | None:
    """The model of a table, None if there is none."""
    having = [
        model
        for model in apps.get_models(include_auto_created=True)
        if model._meta.db_table == table and not model._meta.proxy
    ]
    # An unmanaged model of the same table need not match the database.
    return next((model for model in having if model._meta.managed), next(iter(having), None))


def field_of_column(table: str, column: str) -> "AnyField | None":
    """The field of a table's column, None if no model has it."""
    model = model_of_table(table)
    fields = model._meta.local_concrete_fields if model else ()
    return next((field for field in fields if field.column == column), None)
