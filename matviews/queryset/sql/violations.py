"""Explains which constraint a row of `source()` violates, in a sentence without values."""

from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError, IntegrityError, connections

from ...databases import ConstraintKind, Violation, errors_of
from ..analysis.source import Source

__all__ = ["RowRefused", "refused"]


class RowRefused(IntegrityError):
    """A row of `source()` violates a constraint of the view; says which, and what to do."""


def refused(error: DatabaseError, source: Source, using: str, *, stage: bool = False) -> Exception:
    """The error of a statement that wrote a source's rows, explained if it can be.

    Args:
        error: the error.
        source: the source.
        using: alias of the database.
        stage: whether the rows went to a staging table, whose only unique constraint is the key. If
            not, the transaction must have been rolled back, because the constraint is looked up.
    """
    violation = None if isinstance(error, RowRefused) else errors_of(using).violation(error)
    if violation is None:
        return error
    if violation.kind is ConstraintKind.UNIQUE and stage:
        violation = violation._replace(
            columns=tuple(str(column.field.column) for column in source.key)
        )
    elif violation.kind is ConstraintKind.UNIQUE and not violation.columns:
        violation = violation._replace(columns=_columns_of(violation.name, source, using))
    explained = RowRefused(_sentence(violation, source)).with_traceback(error.__traceback__)
    explained.__cause__ = error.__cause__ or error
    for note in getattr(error, "__notes__", ()):
        explained.add_note(note)
    return explained


def _columns_of(constraint: str, source: Source, using: str) -> tuple[str, ...]:
    connection = connections[using]
    with connection.cursor() as cursor:
        table = source.model._meta.db_table
        constraints: dict[str, Any] = connection.introspection.get_constraints(cursor, table)
    columns = constraints.get(constraint, {}).get("columns")
    return tuple(column for column in columns or () if column)


#: What is wrong with a value, and what to do.
_OF_VALUES = {
    ConstraintKind.TOO_LONG: (
        "is too long for",
        "increase the field's max_length, or shorten the value in source(), with Left().",
    ),
    ConstraintKind.UNFIT: (
        "does not fit",
        "give the field a type that holds it, or change the value in source().",
    ),
}


def _sentence(violation: Violation, source: Source) -> str:
    if violation.kind is ConstraintKind.UNIQUE:
        return _unique_sentence(violation, source)
    if violation.kind is ConstraintKind.NOT_NULL:
        return _null_sentence(violation, source)
    label = source.model._meta.label
    if violation.kind is ConstraintKind.FOREIGN_KEY:
        name = f"foreign key {violation.name}" if violation.name else "a foreign key"
        table = violation.table or source.model._meta.db_table
        return (
            f"{name[0].upper()}{name[1:]} of {table} is violated, and the database enforces it "
            f"(matviews.W009): set db_constraint=False and on_delete=models.DO_NOTHING."
        )
    if violation.kind in _OF_VALUES:
        wrong, way_out = _OF_VALUES[violation.kind]
        column = "".join(f"column {name} of " for name in _field_names(violation.columns, source))
        return f"A value of source() {wrong} {column}{label}: {way_out}"
    return (
        f"The row violates the constraint {violation.name} of {label}: leave such rows out of "
        f"source(), or change the constraint."
    )


def _unique_sentence(violation: Violation, source: Source) -> str:
    label, key = source.model._meta.label, [column.field for column in source.key]
    if {field.column for field in key} == set(violation.columns):
        return (
            f"Two rows of source() have the same key ({', '.join(field.name for field in key)}): "
            f"group them, or add a field to the key that tells them apart."
        )
    names = ", ".join(_field_names(violation.columns, source))
    name = violation.name or f"unique ({names})"
    over = f" ({names})" if violation.name and names else ""
    return (
        f"The row violates the constraint {name} of {label}{over}, which is not the key "
        f"(matviews.W008): drop the constraint, or put its fields into the key."
    )


def _null_sentence(violation: Violation, source: Source) -> str:
    (column,), label = violation.columns, source.model._meta.label
    field = next((f for f in source.model._meta.concrete_fields if f.column == column), None)
    if field is None:
        return (
            f"The table of {label} has a NOT NULL column {column} that the model does not have: "
            f"run manage.py makemigrations and migrate."
        )
    if all(column.field is not field for column in source.columns):
        return (
            f"source() has no column for the field {field.name} of {label}, and the database has "
            f"no default for it: run manage.py makemigrations and migrate, or add it to source()."
        )
    return (
        f"Column {field.name} of {label} is NULL, but the field is NOT NULL: use default=0 or "
        f"Coalesce in source(), or set null=True on the field."
    )


def _field_names(columns: Sequence[str], source: Source) -> list[str]:
    by_column = {field.column: field.name for field in source.model._meta.concrete_fields}
    return [by_column.get(column) or column for column in columns]
