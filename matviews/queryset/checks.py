"""What can be known to go wrong with a view's `source()` before it is refreshed."""

from collections.abc import Iterator

from django.core.checks import CheckMessage, Warning
from django.db.models import Model, UniqueConstraint

from ..definition import ViewDefinition
from .declared import declared
from .fields import TEXT, AnyField, family, is_automatic, same_type, unique_fields
from .indexes import wanted_indexes
from .links import find_links
from .paths import find_path
from .query import column_of, model_of_table
from .source import Source, find_source

__all__ = ["check_source", "check_table"]


def check_source(definition: ViewDefinition, using: str) -> list[CheckMessage]:
    """Every problem of a view's `source()`: E015 to E018; if there is none, W006 to W008, W010 and W012.

    Raises:
        DatabaseError: `source()` or its query reads a database that is not there, or not migrated.
    """
    source, problems = find_source(definition, using)
    if source is None:
        return problems
    again, problems = find_source(definition, using)
    if again is None:
        return problems
    return [
        *_moving(source, again),
        *_without_index(source),
        *_other_unique(source),
        *_collations(source, using),
        *_whole_view(source),
    ]


def check_table(definition: ViewDefinition) -> Iterator[CheckMessage]:
    """W009: a foreign key of the view that the database enforces, for any view."""
    for field in definition.model._meta.local_concrete_fields:
        if field.remote_field is None or not getattr(field, "db_constraint", False):
            continue
        yield _warning(
            definition.model, "W009",
            f"the database enforces its foreign key {field.name} to {_label(field)}: a delete there "
            f"waits for a refresh, or fails while the view has the row.",
            "Give it db_constraint=False and on_delete=models.DO_NOTHING.",
        )  # fmt: skip


def _label(field: AnyField) -> str:
    related = field.related_model
    return related._meta.label if isinstance(related, type) else str(related)


def _warning(model: type[Model], number: str, fault: str, hint: str) -> Warning:
    text = f"{model._meta.label}: {fault}"
    return Warning(text, hint=hint, obj=model, id=f"matviews.{number}")


def _moving(source: Source, again: Source) -> Iterator[CheckMessage]:
    parts = zip(source.query.parts, again.query.parts, strict=True)
    for (name, part), (_name, same_part) in parts:
        functions = source.query.volatile(part)
        if functions:
            why = ", ".join(f"{function}()" for function in functions)
        elif source.query.parameters(part) != again.query.parameters(same_part):
            why = "each call of source() gives it other parameters"
        else:
            continue
        yield _warning(
            source.model, "W006", f"{name} of source() changes by itself ({why}).",
            "Each refresh writes the rows whose value has moved since the last one, though no table "
            "has changed, and no change of a table tells of it. If that is meant, add "
            "'matviews.W006' to SILENCED_SYSTEM_CHECKS; else compute it when the view is read.",
        )  # fmt: skip


def _without_index(source: Source) -> Iterator[CheckMessage]:
    path = find_path(source)
    for index in wanted_indexes(source, path):
        if index.declared:
            continue
        cost = "the whole of source() is staged at each refresh" if path.staged else (
            "each batch reads the whole table"
        )  # fmt: skip
        label, names = index.model._meta.label, ", ".join(index.fields)
        yield _warning(
            source.model, "W007", f"no index of {label} begins with {names}, so {cost}.",
            f"Add {index.way_out} to Meta.indexes of {label}.",
        )  # fmt: skip


def _other_unique(source: Source) -> Iterator[CheckMessage]:
    key = {column.field for column in source.key}
    filled = {column.field for column in source.columns}
    for fields in _unique(source.model):
        if key <= set(fields) or not filled & set(fields):
            continue
        names = ", ".join(field.name for field in fields)
        yield _warning(
            source.model, "W008",
            f"{names} must be unique, and it is not the key: values that two rows exchange, or that "
            f"a row takes over from one that goes, break the constraint in between.",
            "Drop the constraint, or make it an index: source() decides what is unique; or put its "
            "fields into the key.",
        )  # fmt: skip


def _unique(model: type[Model]) -> Iterator[tuple[AnyField, ...]]:
    """The fields of each unique constraint, conditional ones too, but not a number of the database."""
    meta = model._meta
    for fields in unique_fields(model):
        if not (len(fields) == 1 and is_automatic(fields[0])):
            yield fields
    for constraint in meta.constraints:
        if isinstance(constraint, UniqueConstraint) and constraint.condition is not None:
            yield tuple(meta.get_field(name) for name in constraint.fields)  # type: ignore[misc]


def _collations(source: Source, using: str) -> Iterator[CheckMessage]:
    for column in source.key:
        place = column_of(column.expression)
        if place is None or family(column.field) != TEXT:
            continue
        if not same_type(column.field, place[1], using):
            yield _warning(
                source.model, "W010",
                f"{column.name}, of the key, is compared by another collation in the view than in "
                f"{place[1].model._meta.label}: what is one key there may be two here, or two one.",
                "Give both fields the same db_collation.",
            )  # fmt: skip


def _whole_view(source: Source) -> Iterator[CheckMessage]:
    """W012, of a view that can be computed for some keys alone: else whatever changes concerns the whole."""
    definition, query, path = source.definition, source.query, find_path(source)
    tracked = definition.options.tracking and definition.derived >= set(definition.options.phases)
    if not path.keyed or not tracked or any(query.volatile(part) for _name, part in query.parts):
        return
    known = find_links(source, path).keys() | declared(definition).keys()
    for table in sorted(query.columns_read().keys() - known):
        model = model_of_table(table)
        label = model._meta.label if model else table
        yield _warning(
            source.model, "W012",
            f"a change of {label}, which {query.part_with_table(table)} of source() reads, leads to no "
            f"key in particular: the refresh after it looks at all keys.",
            f"MatviewMeta.depends_on tells which keys it concerns, or by None that it may be any: "
            f"depends_on = {{{label!r}: None}}.",
        )  # fmt: skip
