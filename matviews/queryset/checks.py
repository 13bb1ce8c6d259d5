"""System checks of a view's `source()`: what would go wrong when it is refreshed."""

from collections.abc import Iterator
from typing import Any

from django.core.checks import CheckMessage, Error, Warning
from django.db.models import Avg, Model, StdDev, Variance
from django.db.models.functions import Ceil, Floor, Round

from ..databases.fields import (
    NUMBER,
    TEXT,
    WHOLE,
    AnyField,
    column_of,
    family,
    model_of_table,
)
from ..definition import ViewDefinition
from ..states import RefreshStrategy
from .analysis.boundary import NotUnderstood, looking
from .analysis.columns import same_type
from .analysis.dependencies import declared_dependencies
from .analysis.expressions import volatile_functions
from .analysis.nulls import null_reason
from .analysis.parameters import parameter_text
from .analysis.reading import find_source
from .analysis.source import Source
from .analysis.unique import other_unique
from .strategy.additive import obstacles_of
from .strategy.choose import Strategy, inexact_key_obstacles
from .strategy.indexes import required_indexes
from .strategy.inspection import Inspection, inspect
from .strategy.sharding import sharding_obstacle

__all__ = ["check_source", "check_table"]


def check_source(definition: ViewDefinition, using: str) -> list[CheckMessage]:
    """Every fault of a view's `source()`, W115 to W120; if there is none, the warnings about it.

    Raises:
        DatabaseError: `source()` or its query reads a database that is missing or not migrated.
    """
    source, problems = find_source(definition, using)
    if source is None:
        return problems
    again, problems = find_source(definition, using)
    if again is None:
        return problems
    try:
        with looking():
            return list(_advice(source, again))
    except NotUnderstood as error:
        return [
            _warning(
                source.model, "W020",
                f"source() cannot be analysed, so some checks were skipped: {error}.",
                _NOT_ANALYSED,
            )
        ]  # fmt: skip


_NOT_ANALYSED = (
    "Django's own expressions and joins can be analysed. If this is intended, add 'matviews.W020' "
    "to SILENCED_SYSTEM_CHECKS."
)


def _advice(source: Source, again: Source) -> Iterator[CheckMessage]:
    inspection = inspect(source)
    yield from _not_additive(source, inspection)
    yield from _one_shard(source, inspection)
    yield from _other_unique(source)
    yield from _fractions(source)
    if inspection.unknown:
        yield _warning(
            source.model, "W020",
            f"source() cannot be analysed ({inspection.unknown}), so every refresh is full and "
            f"staged.",
            _NOT_ANALYSED,
        )  # fmt: skip
        return
    yield from _nulls(source)
    yield from _moving(source, again)
    yield from _without_index(source, inspection.strategy)
    yield from _collations(source)
    yield from _inexact(source)
    yield from _pinned(source, inspection)
    yield from _whole_view(source, inspection)


def _not_additive(source: Source, inspection: Inspection) -> Iterator[CheckMessage]:
    """E025: a view that was declared additive, and is not."""
    if source.definition.options.additive:
        for reason in obstacles_of(source, inspection):
            yield Error(
                f"{source.model._meta.label}: MatviewMeta.additive is True, but {reason}.",
                hint="Remove additive, or change source(): docs/additive.md says what can be "
                "added up.",
                obj=source.model, id="matviews.E025",
            )  # fmt: skip


def _one_shard(source: Source, inspection: Inspection) -> Iterator[CheckMessage]:
    """E027: a view that was given several shards, and can have only one."""
    options = source.definition.options
    if options.shards > 1 and (reason := sharding_obstacle(source, inspection)):
        yield Error(
            f"{source.model._meta.label}: MatviewMeta.shards is {options.shards}, but {reason}. It "
            f"has one shard.",
            hint="Remove shards, or change source(): docs/queryset-views.md says which views can "
            "have several.",
            obj=source.model, id="matviews.E027",
        )  # fmt: skip


def check_table(definition: ViewDefinition) -> Iterator[CheckMessage]:
    """W009, for any view: a foreign key that the database enforces."""
    for field in definition.model._meta.local_concrete_fields:
        if field.remote_field is None or not getattr(field, "db_constraint", False):
            continue
        yield _warning(
            definition.model, "W009",
            f"the database enforces its foreign key {field.name} to {_label(field)}: a delete "
            f"there waits for a refresh, or fails while the view has the row.",
            "Set db_constraint=False and on_delete=models.DO_NOTHING.",
        )  # fmt: skip


def _label(field: AnyField) -> str:
    related = field.related_model
    return related._meta.label if isinstance(related, type) else str(related)


def _warning(model: type[Model], number: str, fault: str, hint: str) -> Warning:
    text = f"{model._meta.label}: {fault}"
    return Warning(text, hint=hint, obj=model, id=f"matviews.{number}")


def _nulls(source: Source) -> Iterator[CheckMessage]:
    for column in source.values:
        if column.field.null or source.query.union:
            continue
        if reason := null_reason(column.expression, source.query):
            yield _warning(
                source.model, "W021",
                f"column '{column.name}' can be NULL ({reason}), but the field {column.field.name} "
                f"cannot: a refresh fails at the first such row.",
                "Set default=0 on the aggregate, wrap the expression in Coalesce(..., a value), or "
                "set null=True on the field.",
            )  # fmt: skip


def _fractions(source: Source) -> Iterator[CheckMessage]:
    for column in source.columns:
        if family(column.field) != WHOLE or isinstance(column.expression, (Ceil, Floor, Round)):
            continue
        averages = isinstance(column.expression, (Avg, StdDev, Variance))
        if averages or family(column.expression.output_field) == NUMBER:
            yield _warning(
                source.model, "W022",
                f"column '{column.name}' has a fractional part, but the field {column.field.name} "
                f"holds whole numbers: each database rounds in its own way.",
                "Use a FloatField or a DecimalField, or round in source(), with Round, Floor or "
                "Ceil.",
            )  # fmt: skip


def _moving(source: Source, again: Source) -> Iterator[CheckMessage]:
    if source.query.compile()[0] != again.query.compile()[0]:
        yield _moves(source, "source()", "each call returns another query")
        return
    parts = zip(source.query.parts, again.query.parts, strict=True)
    for (name, part), (_name, same_part) in parts:
        functions = volatile_functions(part)
        if functions:
            why = ", ".join(f"{function}()" for function in functions)
        elif _parameters(source, part) != _parameters(again, same_part):
            why = "each call of source() gives it other parameters"
        else:
            continue
        yield _moves(source, f"{name} of source()", why)


def _moves(source: Source, what: str, why: str) -> CheckMessage:
    return _warning(
        source.model, "W006", f"{what} changes by itself ({why}).",
        "Rows change without a change to any table, so every refresh is full and writes the rows "
        "whose values moved. If this is intended, add 'matviews.W006' to SILENCED_SYSTEM_CHECKS; "
        "otherwise compute it when the view is read.",
    )  # fmt: skip


def _parameters(source: Source, part: Any) -> list[str]:
    return list(map(parameter_text, source.query.parameters(part)))


def _without_index(source: Source, strategy: Strategy) -> Iterator[CheckMessage]:
    for index in required_indexes(source, strategy):
        if index.declared:
            continue
        cost = "full refreshes stage the whole source" if strategy.staged else (
            "each batch reads the whole table"
        )  # fmt: skip
        label, names = index.model._meta.label, ", ".join(index.fields)
        yield _warning(
            source.model, "W007", f"no index of {label} begins with {names}, so {cost}.",
            f"Add {index.declaration} to Meta.indexes of {label}.",
        )  # fmt: skip


def _other_unique(source: Source) -> Iterator[CheckMessage]:
    for fields in other_unique(source):
        names = ", ".join(field.name for field in fields)
        yield _warning(
            source.model, "W008",
            f"{names} must be unique but is not the key: a refresh violates the constraint while "
            f"two rows exchange values, or while one takes over the value of a row to be deleted.",
            "Drop the constraint or make it a plain index, because source() decides what is "
            "unique; or add its fields to the key.",
        )  # fmt: skip


def _collations(source: Source) -> Iterator[CheckMessage]:
    for column in source.key:
        place = column_of(column.expression)
        if place is None or family(column.field) != TEXT:
            continue
        if not same_type(column.field, place[1], source.query.using):
            yield _warning(
                source.model, "W010",
                f"key field {column.name} has another collation in the view than in "
                f"{place[1].model._meta.label}: one key there may be two here, or two may be one.",
                "Set the same db_collation on both fields.",
            )  # fmt: skip


def _inexact(source: Source) -> Iterator[CheckMessage]:
    """W037: a part of the key has no text form that the database turns back into the same value."""
    for obstacle in inexact_key_obstacles(source):
        yield _warning(
            source.model, "W037", f"{obstacle.reason}, and every refresh is full.",
            obstacle.way_out,
        )  # fmt: skip


def _pinned(source: Source, inspection: Inspection) -> Iterator[CheckMessage]:
    """W039: a strategy that the view cannot have."""
    pinned = source.definition.options.strategy
    obstacle = inspection.strategy.incremental_obstacle
    if pinned is RefreshStrategy.BY_KEYS and obstacle:
        yield _warning(
            source.model, "W039",
            f"MatviewMeta.strategy is 'by_keys', but it cannot be refreshed by keys: {obstacle}. "
            f"Every refresh is full.",
            "Remove MatviewMeta.strategy, or change source() as `--explain` says.",
        )  # fmt: skip


def _whole_view(source: Source, inspection: Inspection) -> Iterator[CheckMessage]:
    """W012 and W040, for tracked views: a change of a table, or any, triggers a full refresh."""
    definition, query, strategy = source.definition, source.query, inspection.strategy
    tracked = definition.options.tracking and definition.derived >= set(definition.options.phases)
    pinned = definition.options.strategy
    if not tracked or inspection.untrackable or (pinned and pinned.is_full):
        return
    if not strategy.is_incremental:
        if not any(inexact_key_obstacles(source)):  # which W037 is about
            yield _warning(
                source.model, "W040",
                f"every change triggers a full refresh: {strategy.incremental_obstacle}.",
                f"{strategy.way_out} If full refreshes are intended, add 'matviews.W040' to "
                f"SILENCED_SYSTEM_CHECKS.",
            )  # fmt: skip
        return
    known = inspection.links.keys() | declared_dependencies(definition).keys()
    for table in sorted(inspection.columns.keys() - known):
        model = model_of_table(table)
        label = model._meta.label if model else table
        yield _warning(
            source.model, "W012",
            f"changes to {label}, which {query.part_with_table(table)} of source() reads, cannot "
            f"be mapped to keys, so every change triggers a full refresh.",
            f"Declare in MatviewMeta.depends_on which keys they concern, or None for any: "
            f"depends_on = {{{label!r}: None}}.",
        )  # fmt: skip
