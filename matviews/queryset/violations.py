"""Which constraint a row of `source()` breaks, from what the database says, in a sentence without values."""

import re
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, NamedTuple

from django.db import DatabaseError, IntegrityError, connections

from ..redact import raised_by_routine
from .source import Source

__all__ = ["RowRefused", "refused"]


class RowRefused(IntegrityError):
    """A row of `source()` breaks a constraint of the view's table; says which, and what to do."""


class _Kind(Enum):
    UNIQUE = auto()
    NOT_NULL = auto()
    FOREIGN_KEY = auto()
    TOO_LONG = auto()
    OTHER = auto()


class _Violation(NamedTuple):
    """What the database says of a broken constraint.

    Attributes:
        kind: of the constraint.
        name: of the constraint, "" where the database does not name it.
        columns: of the constraint, () where the database does not name them.
        table: whose constraint it is, "" where the database does not say.
    """

    kind: _Kind
    name: str = ""
    columns: tuple[str, ...] = ()
    table: str = ""


POSTGRES_KINDS = {
    "22001": _Kind.TOO_LONG,
    "23502": _Kind.NOT_NULL,
    "23503": _Kind.FOREIGN_KEY,
    "23505": _Kind.UNIQUE,
    "23514": _Kind.OTHER,
    "23P01": _Kind.OTHER,
}
# MariaDB and MySQL: what the number says, and where the text has names. The words around these may be in any
# language, and the value of a broken key stands before its name.
_MYSQL_KEY = re.compile(r".*'(?:[^'.]*\.)?(?P<name>[^'.]+)'", re.DOTALL)
_MYSQL_FOREIGN_KEY = re.compile(r"`(?P<table>[^`]*)`, CONSTRAINT `(?P<name>[^`]*)`")
MYSQL_KINDS = {
    1048: (_Kind.NOT_NULL, re.compile(r"'(?P<column>[^']*)'")),
    1062: (_Kind.UNIQUE, _MYSQL_KEY),
    1364: (_Kind.NOT_NULL, re.compile(r"'(?P<column>[^']*)'")),
    1406: (_Kind.TOO_LONG, re.compile(r"'(?P<column>[^']*)'")),
    1451: (_Kind.FOREIGN_KEY, _MYSQL_FOREIGN_KEY),
    1452: (_Kind.FOREIGN_KEY, _MYSQL_FOREIGN_KEY),
    1586: (_Kind.UNIQUE, _MYSQL_KEY),
    3819: (_Kind.OTHER, re.compile(r"'(?P<name>[^']*)'")),
    4025: (_Kind.OTHER, re.compile(r"`(?P<name>[^`]*)`")),
}
SQLITE_KINDS = {
    "SQLITE_CONSTRAINT_CHECK": _Kind.OTHER,
    "SQLITE_CONSTRAINT_FOREIGNKEY": _Kind.FOREIGN_KEY,
    "SQLITE_CONSTRAINT_NOTNULL": _Kind.NOT_NULL,
    "SQLITE_CONSTRAINT_PRIMARYKEY": _Kind.UNIQUE,
    "SQLITE_CONSTRAINT_UNIQUE": _Kind.UNIQUE,
}


def refused(error: DatabaseError, source: Source, using: str, *, stage: bool = False) -> Exception:
    """The error of a statement that wrote rows of a source, in words; as it is where these are not known.

    Args:
        error: the error.
        source: the source.
        using: the database.
        stage: whether the rows went to a staging table, whose only unique constraint is the key. Else the
            transaction must have been rolled back: the constraint is looked up.
    """
    violation = None if isinstance(error, RowRefused) else _violation(error, using)
    if violation is None:
        return error
    if violation.kind is _Kind.UNIQUE and stage:
        violation = violation._replace(columns=tuple(str(each.field.column) for each in source.key))
    elif violation.kind is _Kind.UNIQUE and not violation.columns:
        violation = violation._replace(columns=_columns_of(violation.name, source, using))
    explained = RowRefused(_sentence(violation, source)).with_traceback(error.__traceback__)
    explained.__cause__ = error.__cause__ or error
    return explained


def _violation(error: DatabaseError, using: str) -> _Violation | None:
    cause, vendor = error.__cause__ or error, connections[using].vendor
    if vendor == "postgresql":
        return _postgres_violation(cause)
    if vendor == "mysql":
        return _mysql_violation(error.args)
    return _sqlite_violation(cause)


def _postgres_violation(cause: Any) -> _Violation | None:
    said: Any = getattr(cause, "diag", None)
    kind = POSTGRES_KINDS.get(getattr(said, "sqlstate", None) or "")
    if kind is None or raised_by_routine(cause):
        return None
    column = said.column_name
    return _Violation(
        kind, said.constraint_name or "", (column,) if column else (), said.table_name or ""
    )


def _mysql_violation(args: Sequence[Any]) -> _Violation | None:
    number, text = args if len(args) == 2 else (None, "")
    if number not in MYSQL_KINDS:
        return None
    kind, pattern = MYSQL_KINDS[number]
    found = pattern.search(str(text))
    names: dict[str, Any] = found.groupdict() if found else {}
    if kind in (_Kind.NOT_NULL, _Kind.TOO_LONG):
        return _Violation(kind, columns=(names["column"],)) if names else None
    return _Violation(kind, **names)


def _sqlite_violation(cause: Any) -> _Violation | None:
    kind = SQLITE_KINDS.get(getattr(cause, "sqlite_errorname", ""))
    if kind is None:
        return None
    named = str(cause).partition(": ")[2]
    if kind is _Kind.OTHER or named.startswith("index "):
        return _Violation(kind, named.removeprefix("index ").strip("'"))
    parts = [part.rpartition(".") for part in named.split(", ") if part]
    table = parts[0][0] if parts else ""
    return _Violation(kind, columns=tuple(column for _table, _dot, column in parts), table=table)


def _columns_of(constraint: str, source: Source, using: str) -> tuple[str, ...]:
    connection = connections[using]
    with connection.cursor() as cursor:
        table = source.model._meta.db_table
        constraints: dict[str, Any] = connection.introspection.get_constraints(cursor, table)
    columns = constraints.get(constraint, {}).get("columns")
    return tuple(column for column in columns or () if column)


def _sentence(violation: _Violation, source: Source) -> str:
    if violation.kind is _Kind.UNIQUE:
        return _unique_sentence(violation, source)
    if violation.kind is _Kind.NOT_NULL:
        return _null_sentence(violation, source)
    label = source.model._meta.label
    if violation.kind is _Kind.FOREIGN_KEY:
        name = f"foreign key {violation.name}" if violation.name else "a foreign key"
        table = violation.table or source.model._meta.db_table
        return (
            f"{name[0].upper()}{name[1:]} of {table} is violated, which the database enforces "
            f"(matviews.W009): give it db_constraint=False and on_delete=models.DO_NOTHING."
        )
    if violation.kind is _Kind.TOO_LONG:
        column = "".join(f"column {name} of " for name in _field_names(violation.columns, source))
        return (
            f"A value of source() is longer than {column}{label} can hold: give the field a larger "
            f"max_length, or cut the value in source(), with Left()."
        )
    return (
        f"The row violates the constraint {violation.name} of {label}: leave such rows out of source(), "
        f"or change the constraint."
    )


def _unique_sentence(violation: _Violation, source: Source) -> str:
    label, key = source.model._meta.label, [column.field for column in source.key]
    if {field.column for field in key} == set(violation.columns):
        return (
            f"Two rows of source() have the same key ({', '.join(field.name for field in key)}): "
            f"group them, or add to the key what tells them apart."
        )
    names = ", ".join(_field_names(violation.columns, source))
    name = violation.name or f"unique ({names})"
    over = f" ({names})" if violation.name and names else ""
    return (
        f"The row violates the constraint {name} of {label}{over}, which is not the key "
        f"(matviews.W008): drop the constraint, or put its fields into the key."
    )


def _null_sentence(violation: _Violation, source: Source) -> str:
    (column,), label = violation.columns, source.model._meta.label
    field = next((f for f in source.model._meta.concrete_fields if f.column == column), None)
    if field is None:
        return (
            f"The table of {label} has the column {column}, which cannot be NULL and which {label} "
            f"does not have: run manage.py makemigrations and migrate."
        )
    if all(each.field is not field for each in source.columns):
        return (
            f"source() has no column for the field {field.name} of {label}, and the database gives it "
            f"no value: run manage.py makemigrations and migrate, or add it to source()."
        )
    return (
        f"Column {field.name} of {label} is NULL, but the field is NOT NULL: use default=0 or "
        f"Coalesce in source(), or give the field null=True."
    )


def _field_names(columns: Sequence[str], source: Source) -> list[str]:
    by_column = {field.column: field.name for field in source.model._meta.concrete_fields}
    return [by_column.get(column) or column for column in columns]
