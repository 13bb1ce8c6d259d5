"""The faults of a source that keep its view from being refreshed."""

from collections.abc import Iterator

from django.core.checks import CheckMessage
from django.core.exceptions import FieldError
from django.db import router
from django.db.models import Model
from django.db.models.fields.json import KeyTextTransform, KeyTransform

from ...databases import catalog_of, dialect_of
from ...databases.fields import (
    NUMBER,
    WHOLE,
    AnyField,
    Column,
    family,
    is_filled_by_database,
    model_of_table,
)
from ...definition import ViewFault
from .boundary import NotUnderstood, looking
from .dependencies import dependency_faults
from .source import Source

__all__ = ["problems_of", "problems_of_query", "source_fault"]


def source_fault(model: type[Model], number: str, fault: str, hint: str) -> ViewFault:
    """A fault as a check message."""
    return ViewFault(f"{model._meta.label}: {fault}", hint=hint, obj=model, id=f"matviews.{number}")


def problems_of(source: Source) -> Iterator[CheckMessage]:
    """The faults of a source's columns, of its view and of the view's options."""
    if source.model._meta.parents:
        yield source_fault(
            source.model, "W118", "its rows are split between its own table and its parent's.",
            "Make the parent abstract.",
        )  # fmt: skip
    for fault in dependency_faults(source.definition, len(source.key)):
        yield source_fault(
            source.model, "W120", f"MatviewMeta.depends_on: {fault}.",
            "Map a model to the fields that hold the key, or to None if its changes may concern "
            "any key.",
        )  # fmt: skip
    filled = {column.field for column in source.columns}
    for field in source.model._meta.concrete_fields:
        if field not in filled and field.column and not is_filled_by_database(field):
            yield source_fault(
                source.model, "W116",
                f"source() has no column for the field {field.name}, which cannot be NULL.",
                "Add it to source(), or give the field null=True or db_default.",
            )  # fmt: skip
    for column in source.columns:
        yield from _type_problems(source, column)


def problems_of_query(source: Source) -> list[CheckMessage]:
    """The faults of the tables that a source reads; none if these are unknown."""
    try:
        with looking():
            return [*_table_problems(source), *_raw_problems(source), *_zone_problems(source)]
    except NotUnderstood:  # then every refresh is full, and W020 says why
        return []


def _table_problems(source: Source) -> Iterator[CheckMessage]:
    model, using, tables = source.model, source.query.using, source.query.all_tables()
    if model._meta.db_table in tables:
        yield source_fault(
            model, "W118", "source() reads the view's own table.",
            "Read the tables that the view is computed from; these may be other views.",
        )  # fmt: skip
    for table in sorted(tables):
        read = model_of_table(table)
        theirs = router.db_for_write(read) if read else using
        if read and theirs != using:
            yield source_fault(
                model, "W118", f"source() reads {read._meta.label} in the database "
                f"{theirs!r}, but the view is in {using!r}.",
                "Route both to one database: one statement reads the source and writes the view.",
            )  # fmt: skip


def _raw_problems(source: Source) -> Iterator[CheckMessage]:
    options = source.definition.options
    if source.query.has_raw_sql and options.tracking and options.depends_on is None:
        yield source_fault(
            source.model, "W119",
            "source() contains raw SQL, so its tables are unknown.",
            "Name their models in MatviewMeta.depends_on, or {} if the SQL reads only tables of "
            "the queryset; or set MatviewMeta.tracking = False.",
        )  # fmt: skip


def _zone_problems(source: Source) -> Iterator[CheckMessage]:
    """MariaDB and MySQL return NULL for a time in an unknown time zone."""
    if catalog_of(source.query.using).knows_time_zones():
        return
    if named := sorted(zone for zone in source.query.zones() if "/" in zone):
        yield source_fault(
            source.model, "W116",
            f"source() converts times to {', '.join(named)}, but the database knows no time zones.",
            "Load them: mysql_tzinfo_to_sql /usr/share/zoneinfo | mysql -u root mysql.",
        )  # fmt: skip


def _type_problems(source: Source, column: Column) -> Iterator[CheckMessage]:
    try:
        output: AnyField | None = column.expression.output_field
    except FieldError as error:
        yield source_fault(
            source.model, "W116", f"the type of column '{column.name}' is unknown: {error}",
            "Give its expression an output_field.",
        )  # fmt: skip
        return
    mine, theirs = family(column.field), family(output) if output else "nothing"
    if mine != theirs and not {mine, theirs} <= {WHOLE, NUMBER}:
        yield source_fault(
            source.model, "W116",
            f"column '{column.name}' is {theirs}, field '{column.field.name}' is {mine}.",
            "Convert it, with Cast or TruncDate for example, or change the field.",
        )  # fmt: skip
    extracts = isinstance(column.expression, KeyTransform)
    text = isinstance(column.expression, KeyTextTransform)
    if (
        extracts
        and not text
        and mine == "JSON"
        and not dialect_of(source.query.using).returns_json_parts
    ):
        yield source_fault(
            source.model, "W116", f"SQLite does not return column '{column.name}' as JSON.",
            "Select the text, KT(...), into a text field, or the whole JSON field.",
        )  # fmt: skip
