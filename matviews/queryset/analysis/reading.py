"""Reading what a view's `source()` returns: its query, its columns and its key."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from django.core.checks import CheckMessage
from django.db import DatabaseError
from django.db.models import Expression, Model

from ...databases.fields import AnyField, Column, family, is_automatic, unique_fields
from ...definition import ViewDefinition
from ...exceptions import InvalidView
from ...project_locale import project_locale
from ...redact import error_text
from .boundary import NotUnderstood, looking
from .expressions import has_aggregate_or_window
from .source import Source
from .source_checks import problems_of, problems_of_query, source_fault
from .source_query import SourceQuery

__all__ = [
    "NOT_IN_A_KEY",
    "InvalidSource",
    "find_source",
    "key_columns",
    "read_query",
    "read_source",
]


NOT_IN_A_KEY = {"JSON", "binary"}


def read_query(definition: ViewDefinition, using: str) -> SourceQuery:
    """Call a view's `source()`.

    Raises:
        InvalidView: nothing can be derived from it; `manage.py check` reports the same.
        DatabaseError: it reads the database itself, and that failed.
    """
    model = definition.model
    rows = _called(model)
    if not SourceQuery.is_values(rows):
        raise _invalid(
            model, "W115",
            f"source() must return a queryset of columns, not {_shown(rows)}",
            "End it with .values(...), or .values(...).annotate(...), naming fields of the view.",
        )  # fmt: skip
    if rows._db not in (None, using):
        raise _invalid(
            model, "W118",
            f"source() reads the database {rows._db!r}, but the view is in {using!r}.",
            "Remove .using(): one statement reads the source and writes the view.",
        )  # fmt: skip
    try:
        with looking():
            query = SourceQuery(rows, using)
            if not (locks := query.locks):
                query.compile()
    except NotUnderstood as error:
        raise _invalid(
            model, "W115", f"source() cannot be compiled: {error}",
            "Run it on its own: `list(View.source()[:1])`.",
        ) from error  # fmt: skip
    if locks:
        raise _invalid(
            model, "W115", "source() locks the rows that it reads.",
            "Remove .select_for_update(): a refresh must not block writers.",
        )  # fmt: skip
    return query


def _called(model: type[Model]) -> Any:
    try:
        with project_locale():
            return model.source()  # type: ignore[attr-defined]
    except DatabaseError:
        raise
    except Exception as error:
        raise _invalid(
            model, "W115", f"source() raised {error_text(error).rstrip('.')}.",
            "It is called without arguments, and must return a queryset without reading rows.",
        ) from error  # fmt: skip


def read_source(definition: ViewDefinition, query: SourceQuery) -> Source:
    """Read what a view's `source()` returned.

    Raises:
        InvalidView: nothing can be derived from it; `manage.py check` reports the same.
    """
    try:
        with looking():
            source = _read(definition, query)
            problems = list(problems_of(source))
    except NotUnderstood as error:
        raise _invalid(
            definition.model, "W115", f"the columns of source() cannot be read: {error}",
            "Leave out what a library adds to it, or wrap that in an expression with an "
            "output_field.",
        ) from error  # fmt: skip
    problems += problems_of_query(source)
    if problems:
        raise InvalidSource(problems)
    return source


def find_source(definition: ViewDefinition, using: str) -> tuple[Source | None, list[CheckMessage]]:
    """Call and read a view's `source()`; the source, or else every problem found."""
    try:
        return read_source(definition, read_query(definition, using)), []
    except InvalidSource as error:
        return None, error.problems


class InvalidSource(InvalidView):
    """Faults of a source that hooks cannot be derived from."""

    def __init__(self, problems: list[CheckMessage]) -> None:
        super().__init__(
            " ".join(f"{problem.msg} {problem.hint or ''}".strip() for problem in problems)
        )
        self.problems = problems


def _invalid(model: type[Model], number: str, fault: str, hint: str) -> InvalidSource:
    return InvalidSource([source_fault(model, number, fault, hint)])


def _read(definition: ViewDefinition, query: SourceQuery) -> Source:
    columns = tuple(_columns(definition.model, query.expressions))
    key = _key(definition, columns)
    return Source(definition, query, columns, key)


def _shown(value: object) -> str:
    iterable = getattr(getattr(value, "_iterable_class", None), "__name__", "")
    known = {
        "ModelIterable": "one of model instances",
        "ValuesListIterable": "values_list()",
        "FlatValuesListIterable": "values_list()",
        "NamedValuesListIterable": "values_list()",
    }
    if value is None:
        return "None. Is the return statement missing?"
    return f"{known.get(iterable) or iterable or type(value).__name__}."


def _columns(model: type[Model], expressions: dict[str, Expression]) -> Iterator[Column]:
    fields: dict[str, AnyField] = {}
    for field in model._meta.concrete_fields:
        fields |= {field.name: field, field.attname: field}
    if len(model._meta.pk_fields) == 1:
        fields["pk"] = model._meta.pk_fields[0]
    filled: dict[AnyField, str] = {}
    for name, expression in expressions.items():
        if name not in fields:
            near = get_close_matches(name, fields, n=1)
            meant = f"Did you mean {near[0]}? " if near else ""
            raise _invalid(
                model, "W116", f"source() has the column {name!r}, but the view has no such field.",
                f"{meant}Add the field, or rename the column: .values(name_of_field=F({name!r})).",
            )  # fmt: skip
        if fields[name] in filled:
            raise _invalid(
                model, "W116", f"source() fills the field {fields[name].name} twice: as "
                f"{filled[fields[name]]!r} and {name!r}.", "Leave one of them out.",
            )  # fmt: skip
        filled[fields[name]] = name
        yield Column(name, fields[name], expression, _is_float_aggregate(fields[name], expression))


def _is_float_aggregate(field: AnyField, expression: Expression) -> bool:
    if field.get_internal_type() != "FloatField":
        return False
    try:
        with looking():
            return has_aggregate_or_window(expression)
    except NotUnderstood:  # then tolerate a difference in the last digits
        return True


def _key(definition: ViewDefinition, columns: Sequence[Column]) -> tuple[Column, ...]:
    model = definition.model
    by_field = {column.field: column for column in columns}
    fields = _key_fields(definition)
    names = ", ".join(field.name for field in fields)
    if missing := [field.name for field in fields if field not in by_field]:
        raise _invalid(
            model, "W117",
            f"source() has no column for {', '.join(missing)}, part of the key ({names}).",
            "Add it to .values(...), or name another key in MatviewMeta.key.",
        )  # fmt: skip
    for field in fields:
        if field.null or family(field) in NOT_IN_A_KEY:
            raise _invalid(model, "W117", *_no_key(field))
    return tuple(by_field[field] for field in fields)


def _no_key(field: AnyField) -> tuple[str, str]:
    """What is wrong with a field of the key, and the fix."""
    if not field.null:
        return (
            f"key field {field.name} holds {family(field)}, which is not allowed in a key.",
            "Use another field as the key.",
        )
    fault = (
        f"key field {field.name} is nullable, and a NULL never equals another one, not even with "
        f"nulls_distinct=False."
    )
    hint = (
        f"Use {field.name}=Coalesce(..., a value) in source(), and remove null=True: rows with a "
        f"NULL key are left out of the view."
    )
    return fault, hint


def _key_fields(definition: ViewDefinition) -> tuple[AnyField, ...]:
    model, named = definition.model, definition.options.key
    unique = [fields for fields in unique_fields(definition.model) if not _numbered(fields)]
    shown = "; ".join(", ".join(field.name for field in fields) for fields in unique)
    if named is None:
        if len(unique) == 1:
            return unique[0]
        if unique:
            raise _invalid(
                model, "W117", f"its key is unknown: it has several unique constraints ({shown}).",
                "Name the key in MatviewMeta.key.",
            )  # fmt: skip
        raise _invalid(
            model, "W117", "it has no key.",
            "Add a UniqueConstraint over the fields that identify a row of source().",
        )  # fmt: skip
    by_name = {name: f for f in model._meta.concrete_fields for name in (f.name, f.attname)}
    if unknown := [name for name in named if name not in by_name]:
        raise _invalid(
            model, "W117",
            f"MatviewMeta.key names {', '.join(unknown)}, but the view has no such field.",
            f"The fields are {', '.join(field.name for field in model._meta.concrete_fields)}.",
        )  # fmt: skip
    fields = tuple(by_name[name] for name in named)
    if frozenset(fields) not in map(frozenset, unique):
        raise _invalid(
            model, "W117", f"no unique constraint covers its key ({', '.join(named)}).",
            f"Add a UniqueConstraint over these fields"
            f"{f'; there is one over {shown}' * bool(shown)}.",
        )  # fmt: skip
    return fields


def key_columns(definition: ViewDefinition) -> frozenset[str]:
    """The columns of a view's key; none if the key is unknown."""
    try:
        fields = _key_fields(definition)
    except InvalidSource:
        return frozenset()
    return frozenset(field.column for field in fields if field.column)


def _numbered(fields: tuple[AnyField, ...]) -> bool:
    return len(fields) == 1 and is_automatic(fields[0])
