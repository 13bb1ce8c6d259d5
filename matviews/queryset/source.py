"""What a view's `source()` is: its columns, its key, and what is wrong with them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from django.core.checks import CheckMessage, Error
from django.core.exceptions import FieldError
from django.db import DatabaseError, NotSupportedError, connections, router
from django.db.models import Expression, Model
from django.db.models.fields.json import KeyTextTransform, KeyTransform
from django.db.models.functions.datetime import TimezoneMixin
from django.utils import timezone

from ..definition import ViewDefinition
from ..exceptions import InvalidView
from .declared import undeclarable
from .fields import (
    NUMBER,
    WHOLE,
    AnyField,
    family,
    is_automatic,
    is_filled_by_database,
    unique_fields,
)  # fmt: skip
from .query import SourceQuery, adds_up, model_of_table

__all__ = ["Column", "Source", "find_source", "read_query", "read_source"]

NOT_IN_A_KEY = {"JSON", "binary"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the source, and the field of the view that holds it.

    Attributes:
        name: its name in the queryset.
        field: the field of the view.
        expression: what computes it.
        summed: whether its last digits depend on the order in which rows were added up.
    """

    name: str
    field: AnyField
    expression: Expression

    @property
    def summed(self) -> bool:
        return self.field.get_internal_type() == "FloatField" and adds_up(self.expression)


@dataclass(frozen=True, slots=True)
class Source:
    """What `source()` returned, read.

    Attributes:
        definition: the view.
        query: its query.
        columns: its columns, the key among them.
        key: the columns of the key, in the order of the key.
    """

    definition: ViewDefinition
    query: SourceQuery
    columns: tuple[Column, ...]
    key: tuple[Column, ...]

    @property
    def model(self) -> type[Model]:
        """The view's class."""
        return self.definition.model

    @property
    def values(self) -> tuple[Column, ...]:
        """The columns that are not of the key."""
        return tuple(column for column in self.columns if column not in self.key)


def read_query(definition: ViewDefinition, using: str) -> SourceQuery:
    """Call a view's `source()`.

    Raises:
        InvalidView: it cannot be derived from; `manage.py check` says the same.
        DatabaseError: it reads the database by itself, and that failed.
    """
    try:
        return _call(definition, using)
    except _Unreadable as error:
        raise _invalid([error.problem]) from error


def read_source(definition: ViewDefinition, query: SourceQuery) -> Source:
    """Read what a view's `source()` has returned.

    Raises:
        InvalidView: it cannot be derived from; `manage.py check` says the same.
    """
    source, problems = _find(definition, query)
    if source is None:
        raise _invalid(problems)
    return source


def _invalid(problems: Sequence[CheckMessage]) -> InvalidView:
    return InvalidView(" ".join(f"{each.msg} {each.hint or ''}".strip() for each in problems))


def find_source(definition: ViewDefinition, using: str) -> tuple[Source | None, list[CheckMessage]]:
    """Call and read a view's `source()`, with every problem that can be told; no source if there is one."""
    try:
        query = _call(definition, using)
    except _Unreadable as error:
        return None, [error.problem]
    return _find(definition, query)


def _find(
    definition: ViewDefinition, query: SourceQuery
) -> tuple[Source | None, list[CheckMessage]]:
    try:
        source = _read(definition, query)
        problems = list(_problems(source, query.using))
    except _Unreadable as error:
        return None, [error.problem]
    return (None if problems else source), problems


class _Unreadable(Exception):
    """The first fault of a source that keeps it from being read further."""

    def __init__(self, problem: CheckMessage) -> None:
        super().__init__(problem.msg)
        self.problem = problem


def _error(model: type[Model], number: str, fault: str, hint: str) -> Error:
    text = f"{model._meta.label}: {fault}"
    return Error(text, hint=hint, obj=model, id=f"matviews.{number}")


def _unreadable(model: type[Model]) -> Callable[[str, str, str], _Unreadable]:
    return lambda number, fault, hint: _Unreadable(_error(model, number, fault, hint))


def _call(definition: ViewDefinition, using: str) -> SourceQuery:
    model = definition.model
    unreadable = _unreadable(model)
    try:
        # Such a time zone as a request may have activated is not the view's.
        with timezone.override(None):
            rows = model.source()  # type: ignore[attr-defined]
    except DatabaseError:
        raise
    except Exception as error:
        raise unreadable(
            "E015", f"source() raised {type(error).__name__}: {error}",
            "It is called without arguments, and reads nothing itself: let it return a queryset.",
        ) from error  # fmt: skip
    if not SourceQuery.is_values(rows):
        raise unreadable(
            "E015",
            f"source() must return a queryset of columns, not {_shown(rows)}.",
            "End it with .values(...), or .values(...).annotate(...), naming fields of the view.",
        )
    if rows._db not in (None, using):
        raise unreadable(
            "E018", f"source() reads the database {rows._db!r}, the view is in {using!r}.",
            "Take .using() out: one statement reads the source and writes the view.",
        )  # fmt: skip
    query = SourceQuery(rows, using)
    if query.locks:
        raise unreadable(
            "E015", "source() locks the rows that it reads.",
            "Take .select_for_update() out: a refresh holds up nobody who writes.",
        )  # fmt: skip
    try:
        with timezone.override(None):
            query.compile()
    except (FieldError, NotSupportedError, NotImplementedError, ValueError) as error:
        raise unreadable(
            "E015", f"source() cannot be compiled: {error}",
            "Run it by itself, as in `list(View.source()[:1])`.",
        ) from error  # fmt: skip
    return query


def _read(definition: ViewDefinition, query: SourceQuery) -> Source:
    unreadable = _unreadable(definition.model)
    with timezone.override(None):
        expressions = query.expressions
    columns = tuple(_columns(definition.model, expressions, unreadable))
    key = _key(definition, columns, unreadable)
    return Source(definition, query, columns, key)


def _shown(value: object) -> str:
    iterable = getattr(value, "_iterable_class", None)
    return f"one of {iterable.__name__}" if iterable else f"{type(value).__name__}"


def _columns(
    model: type[Model], expressions: dict[str, Expression], unreadable: Any
) -> Iterator[Column]:
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
            raise unreadable(
                "E016", f"source() has the column {name!r}, which no field of the view holds.",
                f"{meant}Add the field, or rename the column: .values(name_of_field=F({name!r})).",
            )  # fmt: skip
        if fields[name] in filled:
            raise unreadable(
                "E016", f"source() fills the field {fields[name].name} twice: as "
                f"{filled[fields[name]]!r} and {name!r}.", "Leave one of them out.",
            )  # fmt: skip
        filled[fields[name]] = name
        yield Column(name, fields[name], expression)


def _key(
    definition: ViewDefinition, columns: Sequence[Column], unreadable: Any
) -> tuple[Column, ...]:
    model = definition.model
    by_field = {column.field: column for column in columns}
    fields = _key_fields(definition, unreadable)
    names = ", ".join(field.name for field in fields)
    if lacking := [field.name for field in fields if field not in by_field]:
        raise unreadable(
            "E017", f"source() lacks {', '.join(lacking)}, of the key ({names}).",
            "Add it to .values(...), or name another key in MatviewMeta.key.",
        )  # fmt: skip
    for field in fields:
        if field.null or family(field) in NOT_IN_A_KEY:
            why = "may be NULL" if field.null else f"holds {family(field)}"
            raise unreadable(
                "E017", f"the field {field.name} of the key {why}: a unique constraint does not "
                f"hold that.", f"Make it another field of {model.__name__}, without null=True.",
            )  # fmt: skip
    return tuple(by_field[field] for field in fields)


def _key_fields(definition: ViewDefinition, unreadable: Any) -> tuple[AnyField, ...]:
    meta, named = definition.model._meta, definition.options.key
    unique = [fields for fields in unique_fields(definition.model) if not _numbered(fields)]
    shown = "; ".join(", ".join(field.name for field in fields) for fields in unique)
    if named is None:
        if len(unique) == 1:
            return unique[0]
        fault = f"has several unique constraints ({shown})" if unique else "has none"
        raise unreadable(
            "E017", f"its key is its only unique constraint, but it {fault}.",
            "Name the key in MatviewMeta.key."
            if unique
            else "Add a UniqueConstraint over the fields that identify a row of source().",
        )  # fmt: skip
    by_name = {name: f for f in meta.concrete_fields for name in (f.name, f.attname)}
    if unknown := [name for name in named if name not in by_name]:
        raise unreadable(
            "E017", f"MatviewMeta.key names {', '.join(unknown)}, which is no field of the view.",
            f"Fields are {', '.join(field.name for field in meta.concrete_fields)}.",
        )  # fmt: skip
    fields = tuple(by_name[name] for name in named)
    if frozenset(fields) not in map(frozenset, unique):
        raise unreadable(
            "E017", f"no unique constraint holds its key ({', '.join(named)}).",
            f"Add a UniqueConstraint over these fields{f'; there is one over {shown}' * bool(shown)}.",
        )  # fmt: skip
    return fields


def _numbered(fields: tuple[AnyField, ...]) -> bool:
    return len(fields) == 1 and is_automatic(fields[0])


def _problems(source: Source, using: str) -> Iterator[CheckMessage]:
    """What is wrong with a source that can be read."""
    yield from _place_problems(source, using)
    yield from _dependency_problems(source)
    yield from _zone_problems(source, using)
    filled = {column.field for column in source.columns}
    for field in source.model._meta.concrete_fields:
        if field not in filled and field.column and not is_filled_by_database(field):
            yield _error(
                source.model, "E016",
                f"source() has no column for the field {field.name}, which cannot be NULL.",
                "Add it to source(), or give the field null=True or db_default.",
            )  # fmt: skip
    for column in source.columns:
        yield from _type_problems(source, column, using)


def _place_problems(source: Source, using: str) -> Iterator[CheckMessage]:
    model, tables = source.model, source.query.all_tables()
    if model._meta.parents:
        yield _error(
            model, "E018", "its rows are spread over its table and that of its parent.",
            "Make the parent abstract.",
        )  # fmt: skip
    if model._meta.db_table in tables:
        yield _error(
            model, "E018", "source() reads the view's own table.",
            "Read what the view is computed from; another view may be among that.",
        )  # fmt: skip
    for table in sorted(tables):
        read = model_of_table(table)
        theirs = router.db_for_write(read) if read else using
        if read and theirs != using:
            yield _error(
                model, "E018", f"source() reads {read._meta.label}, which is in the database "
                f"{theirs!r}, the view is in {using!r}.",
                "One statement reads the source and writes the view: route both to one database.",
            )  # fmt: skip


def _dependency_problems(source: Source) -> Iterator[CheckMessage]:
    options = source.definition.options
    if source.query.has_raw_sql and options.tracking and options.depends_on is None:
        yield _error(
            source.model, "E019",
            "there is raw SQL in source(), and nobody can tell which tables that reads.",
            "Name their models in MatviewMeta.depends_on, {} if there are none but those of the "
            "queryset; or set MatviewMeta.tracking = False.",
        )  # fmt: skip
    for fault in undeclarable(source.definition, len(source.key)):
        yield _error(
            source.model, "E020", f"MatviewMeta.depends_on: {fault}.",
            "Name a model and those of its fields whose values are the key; or None, if its "
            "changes may concern any key.",
        )  # fmt: skip


def _zone_problems(source: Source, using: str) -> Iterator[CheckMessage]:
    """MariaDB and MySQL give NULL for a time in a zone that they do not know."""
    connection = connections[using]
    if connection.vendor != "mysql" or connection.features.has_zoneinfo_database:
        return
    with timezone.override(None):
        zones = {
            each.get_tzname() for each in source.query.walk() if isinstance(each, TimezoneMixin)
        }
    if named := sorted(zone for zone in zones if zone and "/" in zone):
        yield _error(
            source.model, "E016",
            f"source() converts times to {', '.join(named)}, and the database knows no time zones.",
            "Load them: mysql_tzinfo_to_sql /usr/share/zoneinfo | mysql -u root mysql.",
        )  # fmt: skip


def _type_problems(source: Source, column: Column, using: str) -> Iterator[CheckMessage]:
    try:
        output: AnyField | None = column.expression.output_field
    except FieldError as error:
        yield _error(
            source.model, "E016", f"the type of the column {column.name} is not known: {error}",
            "Give its expression an output_field.",
        )  # fmt: skip
        return
    mine, theirs = family(column.field), family(output) if output else "nothing"
    if mine != theirs and not {mine, theirs} <= {WHOLE, NUMBER}:
        yield _error(
            source.model, "E016",
            f"the column {column.name} is {theirs}, the field {column.field.name} holds {mine}.",
            "Convert it: Cast, TruncDate or the like; or change the field.",
        )  # fmt: skip
    extracts = isinstance(column.expression, KeyTransform)
    text = isinstance(column.expression, KeyTextTransform)
    if extracts and not text and mine == "JSON" and connections[using].vendor == "sqlite":
        yield _error(
            source.model, "E016", f"SQLite does not give the column {column.name} as JSON.",
            "Take the text, KT(...), into a text field, or the whole JSON field.",
        )  # fmt: skip
