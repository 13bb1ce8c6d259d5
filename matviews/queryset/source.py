"""What a view's `source()` is: its columns, its key, and what is wrong with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from django.core.checks import CheckMessage
from django.core.exceptions import FieldError
from django.db import DatabaseError, router
from django.db.models import Expression, Model
from django.db.models.fields.json import KeyTextTransform, KeyTransform

from ..databases import catalog_of, dialect_of
from ..databases.fields import (  # fmt: skip
    NUMBER,
    WHOLE,
    AnyField,
    Column,
    family,
    is_automatic,
    is_filled_by_database,
    model_of_table,
    unique_fields,
)
from ..definition import ViewDefinition, ViewFault
from ..exceptions import InvalidView
from ..project_locale import project_locale
from ..redact import error_text
from .boundary import NotUnderstood, looking
from .declared import undeclarable
from .query import SourceQuery, adds_up

__all__ = ["Source", "find_source", "key_columns", "read_query", "read_source"]

NOT_IN_A_KEY = {"JSON", "binary"}


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
            model, "W118", f"source() reads the database {rows._db!r}, the view is in {using!r}.",
            "Take .using() out: one statement reads the source and writes the view.",
        )  # fmt: skip
    try:
        with looking():
            query = SourceQuery(rows, using)
            if not (locks := query.locks):
                query.compile()
    except NotUnderstood as error:
        raise _invalid(
            model, "W115", f"source() cannot be compiled: {error}",
            "Run it by itself, as in `list(View.source()[:1])`.",
        ) from error  # fmt: skip
    if locks:
        raise _invalid(
            model, "W115", "source() locks the rows that it reads.",
            "Take .select_for_update() out: a refresh holds up nobody who writes.",
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
            "It is called without arguments: let it return a queryset, and read no row itself.",
        ) from error  # fmt: skip


def read_source(definition: ViewDefinition, query: SourceQuery) -> Source:
    """Read what a view's `source()` has returned.

    Raises:
        InvalidView: it cannot be derived from; `manage.py check` says the same.
    """
    try:
        with looking():
            source = _read(definition, query)
            problems = list(_problems(source))
    except NotUnderstood as error:
        raise _invalid(
            definition.model, "W115", f"the columns of source() cannot be read: {error}",
            "Leave out, or put inside an expression with an output_field, what its library adds.",
        ) from error  # fmt: skip
    problems += _problems_of_query(source)
    if problems:
        raise InvalidSource(problems)
    return source


def find_source(definition: ViewDefinition, using: str) -> tuple[Source | None, list[CheckMessage]]:
    """Call and read a view's `source()`, with every problem that can be told; no source if there is one."""
    try:
        return read_source(definition, read_query(definition, using)), []
    except InvalidSource as error:
        return None, error.problems


class InvalidSource(InvalidView):
    """Faults of a source that keep it from being derived from."""

    def __init__(self, problems: list[CheckMessage]) -> None:
        super().__init__(" ".join(f"{each.msg} {each.hint or ''}".strip() for each in problems))
        self.problems = problems


def _error(model: type[Model], number: str, fault: str, hint: str) -> ViewFault:
    return ViewFault(f"{model._meta.label}: {fault}", hint=hint, obj=model, id=f"matviews.{number}")


def _invalid(model: type[Model], number: str, fault: str, hint: str) -> InvalidSource:
    return InvalidSource([_error(model, number, fault, hint)])


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
        return "None: is its return missing?"
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
                model, "W116", f"source() has the column {name!r}, which no field of the view holds.",
                f"{meant}Add the field, or rename the column: .values(name_of_field=F({name!r})).",
            )  # fmt: skip
        if fields[name] in filled:
            raise _invalid(
                model, "W116", f"source() fills the field {fields[name].name} twice: as "
                f"{filled[fields[name]]!r} and {name!r}.", "Leave one of them out.",
            )  # fmt: skip
        filled[fields[name]] = name
        yield Column(name, fields[name], expression, _is_summed(fields[name], expression))


def _is_summed(field: AnyField, expression: Expression) -> bool:
    if field.get_internal_type() != "FloatField":
        return False
    try:
        with looking():
            return adds_up(expression)
    except NotUnderstood:  # then a last digit more or less is no difference
        return True


def _key(definition: ViewDefinition, columns: Sequence[Column]) -> tuple[Column, ...]:
    model = definition.model
    by_field = {column.field: column for column in columns}
    fields = _key_fields(definition)
    names = ", ".join(field.name for field in fields)
    if lacking := [field.name for field in fields if field not in by_field]:
        raise _invalid(
            model, "W117", f"source() lacks {', '.join(lacking)}, of the key ({names}).",
            "Add it to .values(...), or name another key in MatviewMeta.key.",
        )  # fmt: skip
    for field in fields:
        if field.null or family(field) in NOT_IN_A_KEY:
            raise _invalid(model, "W117", *_no_key(field))
    return tuple(by_field[field] for field in fields)


def _no_key(field: AnyField) -> tuple[str, str]:
    """What is wrong with a field of the key, and the way out."""
    if not field.null:
        return (
            f"the field {field.name} of the key holds {family(field)}, which a key cannot.",
            "Make another field the key.",
        )
    fault = (
        f"the field {field.name} of the key may be NULL: a unique constraint does not hold that, not "
        f"even with nulls_distinct=False."
    )
    hint = (
        f"Give it a value in source() where it has none, {field.name}=Coalesce(..., a value), and "
        f"take null=True out: without Coalesce, rows whose key is NULL are left out of the view."
    )
    return fault, hint


def _key_fields(definition: ViewDefinition) -> tuple[AnyField, ...]:
    model, named = definition.model, definition.options.key
    unique = [fields for fields in unique_fields(definition.model) if not _numbered(fields)]
    shown = "; ".join(", ".join(field.name for field in fields) for fields in unique)
    if named is None:
        if len(unique) == 1:
            return unique[0]
        fault = f"has several unique constraints ({shown})" if unique else "has none"
        raise _invalid(
            model, "W117", f"its key is its only unique constraint, but it {fault}.",
            "Name the key in MatviewMeta.key."
            if unique
            else "Add a UniqueConstraint over the fields that identify a row of source().",
        )  # fmt: skip
    by_name = {name: f for f in model._meta.concrete_fields for name in (f.name, f.attname)}
    if unknown := [name for name in named if name not in by_name]:
        raise _invalid(
            model, "W117", f"MatviewMeta.key names {', '.join(unknown)}, which is no field of the view.",
            f"Fields are {', '.join(field.name for field in model._meta.concrete_fields)}.",
        )  # fmt: skip
    fields = tuple(by_name[name] for name in named)
    if frozenset(fields) not in map(frozenset, unique):
        raise _invalid(
            model, "W117", f"no unique constraint holds its key ({', '.join(named)}).",
            f"Add a UniqueConstraint over these fields{f'; there is one over {shown}' * bool(shown)}.",
        )  # fmt: skip
    return fields


def key_columns(definition: ViewDefinition) -> frozenset[str]:
    """The columns of a view's key; none if that is not known."""
    try:
        fields = _key_fields(definition)
    except InvalidSource:
        return frozenset()
    return frozenset(field.column for field in fields if field.column)


def _numbered(fields: tuple[AnyField, ...]) -> bool:
    return len(fields) == 1 and is_automatic(fields[0])


def _problems(source: Source) -> Iterator[CheckMessage]:
    """What is wrong with the columns of a source, its view and its options."""
    if source.model._meta.parents:
        yield _error(
            source.model, "W118", "its rows are spread over its table and that of its parent.",
            "Make the parent abstract.",
        )  # fmt: skip
    for fault in undeclarable(source.definition, len(source.key)):
        yield _error(
            source.model, "W120", f"MatviewMeta.depends_on: {fault}.",
            "Name a model and those of its fields whose values are the key; or None, if its "
            "changes may concern any key.",
        )  # fmt: skip
    filled = {column.field for column in source.columns}
    for field in source.model._meta.concrete_fields:
        if field not in filled and field.column and not is_filled_by_database(field):
            yield _error(
                source.model, "W116",
                f"source() has no column for the field {field.name}, which cannot be NULL.",
                "Add it to source(), or give the field null=True or db_default.",
            )  # fmt: skip
    for column in source.columns:
        yield from _type_problems(source, column)


def _problems_of_query(source: Source) -> list[CheckMessage]:
    """What is wrong with the tables that a source reads; none where these cannot be told."""
    try:
        with looking():
            return [*_table_problems(source), *_raw_problems(source), *_zone_problems(source)]
    except NotUnderstood:  # the view is refreshed in full, and W020 says why
        return []


def _table_problems(source: Source) -> Iterator[CheckMessage]:
    model, using, tables = source.model, source.query.using, source.query.all_tables()
    if model._meta.db_table in tables:
        yield _error(
            model, "W118", "source() reads the view's own table.",
            "Read what the view is computed from; another view may be among that.",
        )  # fmt: skip
    for table in sorted(tables):
        read = model_of_table(table)
        theirs = router.db_for_write(read) if read else using
        if read and theirs != using:
            yield _error(
                model, "W118", f"source() reads {read._meta.label}, which is in the database "
                f"{theirs!r}, the view is in {using!r}.",
                "One statement reads the source and writes the view: route both to one database.",
            )  # fmt: skip


def _raw_problems(source: Source) -> Iterator[CheckMessage]:
    options = source.definition.options
    if source.query.has_raw_sql and options.tracking and options.depends_on is None:
        yield _error(
            source.model, "W119",
            "there is raw SQL in source(), and nobody can tell which tables that reads.",
            "Name their models in MatviewMeta.depends_on, {} if there are none but those of the "
            "queryset; or set MatviewMeta.tracking = False.",
        )  # fmt: skip


def _zone_problems(source: Source) -> Iterator[CheckMessage]:
    """MariaDB and MySQL give NULL for a time in a zone that they do not know."""
    if catalog_of(source.query.using).knows_time_zones():
        return
    if named := sorted(zone for zone in source.query.zones() if "/" in zone):
        yield _error(
            source.model, "W116",
            f"source() converts times to {', '.join(named)}, and the database knows no time zones.",
            "Load them: mysql_tzinfo_to_sql /usr/share/zoneinfo | mysql -u root mysql.",
        )  # fmt: skip


def _type_problems(source: Source, column: Column) -> Iterator[CheckMessage]:
    try:
        output: AnyField | None = column.expression.output_field
    except FieldError as error:
        yield _error(
            source.model, "W116", f"the type of the column {column.name} is not known: {error}",
            "Give its expression an output_field.",
        )  # fmt: skip
        return
    mine, theirs = family(column.field), family(output) if output else "nothing"
    if mine != theirs and not {mine, theirs} <= {WHOLE, NUMBER}:
        yield _error(
            source.model, "W116",
            f"the column {column.name} is {theirs}, the field {column.field.name} holds {mine}.",
            "Convert it: Cast, TruncDate or the like; or change the field.",
        )  # fmt: skip
    extracts = isinstance(column.expression, KeyTransform)
    text = isinstance(column.expression, KeyTextTransform)
    if (
        extracts
        and not text
        and mine == "JSON"
        and not dialect_of(source.query.using).returns_json_parts
    ):
        yield _error(
            source.model, "W116", f"SQLite does not give the column {column.name} as JSON.",
            "Take the text, KT(...), into a text field, or the whole JSON field.",
        )  # fmt: skip
