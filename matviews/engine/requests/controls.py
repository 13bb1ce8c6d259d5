"""The control, shard and default schedule rows of the views in the code."""

from collections.abc import Collection, Iterable, Iterator
from datetime import timedelta
from typing import Any

from django.db.models import Count, Q

from ... import changes
from ...definition import ViewDefinition
from ...exceptions import ViewNotReady
from ...models import Period, RefreshSchedule, ScheduleKind, ViewControl, ViewShard
from ...phases import Phase
from ...registry import registry
from ...states import RefreshState
from ..graph.view_graph import in_order_of_reading
from ..locking import lock_available
from ..on_change.due_refreshes import on_change_obstacle
from ..tracking.key_ranges import forget_keys, split_keys
from ..transactions import short_transaction

__all__ = [
    "clear_as_of",
    "mark_migrated_views_dirty",
    "not_ready",
    "rename_controls",
    "sync_controls",
    "sync_shards",
    "views_to_refresh",
]


# How many characters of each label are kept when a control loses its label to another view.
MAX_KEPT_LABEL_LENGTH = 100


def not_ready(label: str) -> ViewNotReady:
    """The error for a view without bookkeeping rows."""
    return ViewNotReady(
        f"{label} has no bookkeeping rows yet: run `manage.py migrate`. It creates them after the "
        f"last migration, so a migration cannot refresh a new view."
    )


def sync_controls() -> None:
    """Create the missing control and shard rows of every registered view. Runs after `migrate`.

    Rows of removed views stay: they hold the history and the operators' settings.
    """
    known = dict(ViewControl.objects.values_list("label", "default_schedules_created"))
    new = [definition for definition in registry if definition.label not in known]
    ViewControl.objects.bulk_create(
        [ViewControl(label=view.label, **_first_values(view)) for view in new],
        ignore_conflicts=True,
    )
    registered = [definition.label for definition in registry]
    without_shards = ViewControl.objects.filter(shards=None, label__in=registered)
    ViewShard.objects.bulk_create(
        [
            ViewShard(view=control, number=number)
            for control in without_shards
            for number in range(_first_shards(control))
        ],
        ignore_conflicts=True,
    )
    sync_shards()
    unscheduled = [each for each in registry if not known.get(each.label)]
    if labels := [each.label for each in unscheduled if any(_proposed(each))]:
        for control in ViewControl.objects.filter(label__in=labels):
            if control.definition:
                _schedule(control, control.definition)


def rename_controls(renames: Iterable[tuple[str, str]]) -> None:
    """Rename the controls of renamed views; they keep their settings, schedules and history.

    Args:
        renames: old and new labels, in the order of the migrations.
    """
    labels = {definition.label.lower(): definition.label for definition in registry}
    with short_transaction():
        for old, new in renames:
            control = ViewControl.objects.filter(label__iexact=old).first()
            if control is not None:
                _free_label(new, control)
                renamed = ViewControl.objects.filter(pk=control.pk)
                renamed.update(label=labels.get(new.lower(), new))


def _free_label(label: str, control: ViewControl) -> None:
    """Free a label that an earlier view's control has; a control with history keeps its row."""
    for other in ViewControl.objects.filter(label__iexact=label).exclude(pk=control.pk):
        if other.refreshes.exists():
            old, new = (each.label[:MAX_KEPT_LABEL_LENGTH] for each in (other, control))
            kept = f"{old} (until {new} took its name, {other.pk})"
            ViewControl.objects.filter(pk=other.pk).update(label=kept)
        else:
            other.delete()


def mark_migrated_views_dirty(app_labels: Collection[str]) -> None:
    """Queue a full refresh for the views of these apps: their tables may be new and empty."""
    labels = [
        definition.label
        for definition in registry
        if definition.derived and definition.model._meta.app_label in app_labels
    ]
    views = ViewControl.objects.filter(label__in=labels).values_list("pk", flat=True)
    changes.enqueue(set(views), "migrations of its app have run")


def clear_as_of(labels: Collection[str]) -> None:
    """Clear as of when the rows of these views are: their tables are new and empty."""
    unknown = dict.fromkeys((phase.as_of_field for phase in Phase), None)
    ViewControl.objects.filter(label__in=labels).update(**unknown)


def sync_shards() -> None:
    """Create and delete shards until every view has the number that its control requires.

    A view with an open refresh has to wait, because its hooks were given the old number of shards;
    one derived from `source()`, only if that refresh has begun.
    """
    counted = ViewControl.objects.values("pk", "label", "shard_count")
    several = counted.annotate(present=Count("shards")).exclude(present=1, shard_count__lte=1)
    to_sync = [
        pk
        for pk, label, required, present in several.values_list(
            "pk", "label", "shard_count", "present"
        )
        if label in registry and _is_to_sync(registry.find(label), present, required)
    ]
    for control in ViewControl.objects.filter(pk__in=to_sync) if to_sync else ():
        if control.definition and control.definition.has_key_ranges:
            split_keys(control)
        elif control.shards.count() != _required_shards(control):
            _sync_shards(control)


def _is_to_sync(definition: ViewDefinition, present: int, required: int) -> bool:
    """Whether the number of shards may be wrong; ranges of keys may have to be cut again."""
    return definition.has_key_ranges or present != _shards_for(definition, required)


def _first_values(definition: ViewDefinition) -> dict[str, Any]:
    options = definition.options
    return {"include_in_refresh_all": options.include_in_refresh_all, "shard_count": options.shards}


def _schedule(control: ViewControl, definition: ViewDefinition) -> None:
    """Create the schedules that the code proposes, once, and only for a view that has none."""
    with short_transaction():
        unscheduled = ViewControl.objects.filter(pk=control.pk, default_schedules_created=False)
        if unscheduled.update(default_schedules_created=True) and not control.schedules.exists():
            RefreshSchedule.objects.bulk_create(
                RefreshSchedule(view=control, **proposed) for proposed in _proposed(definition)
            )


def _proposed(definition: ViewDefinition) -> Iterator[dict[str, Any]]:
    """The schedules that the code proposes, as columns."""
    options = definition.options
    for phases, interval in options.intervals.items():
        yield {"phases": list(phases), **_in_units(interval)}
    for phases, delay in options.delays.items():
        yield {"phases": list(phases), "on_change": True, **_in_units(delay)}
    by_target = options.targets and not (options.intervals or options.delays)
    if by_target and not on_change_obstacle(definition):
        yield {"on_change": True}
    if options.verify_every and definition.has_source:
        yield {"kind": ScheduleKind.VERIFY, **_in_units(options.verify_every)}


def _in_units(interval: timedelta) -> dict[str, Any]:
    """An interval as a whole number of the largest unit that divides it."""
    if not interval:
        return {"every": 0, "period": Period.SECONDS}
    period = next(period for period in reversed(Period) if not interval % period.length)
    return {"every": interval // period.length, "period": period}


def _required_shards(control: ViewControl) -> int:
    return _shards_for(control.definition, control.shard_count)


def _shards_for(definition: ViewDefinition | None, required: int) -> int:
    """The number of shards that a view must have: 1 if its hooks do not declare `shard`."""
    return max(1, required) if definition is not None and definition.is_shard_aware else 1


def _first_shards(control: ViewControl) -> int:
    """How many shards a new view has. Ranges of keys are cut when its source has rows."""
    definition = control.definition
    return 1 if definition and definition.has_key_ranges else _required_shards(control)


def _sync_shards(control: ViewControl) -> None:
    with short_transaction():
        free = {shard.number: shard for shard in lock_available(Q(view=control))}
        present = set(control.shards.values_list("number", flat=True))
        required = set(range(_required_shards(control)))
        busy = present - set(free) or control.refreshes.filter(state=RefreshState.OPEN).exists()
        if present == required or (present and busy):
            return
        if gone := [free[number] for number in present - required]:
            forget_keys([*free.values()], gone)
        ViewShard.objects.bulk_create(
            [ViewShard(view=control, number=number) for number in sorted(required - present)]
        )
        control.shards.update(key_range=None)  # left from a definition with `source()`


def views_to_refresh() -> list[str]:
    """Labels of the views that a refresh of all views includes; a view comes after those it reads.

    They include views without a control row: the request for such a view says that it is missing.
    """
    excluded = ViewControl.objects.exclude(enabled=True, paused=False, include_in_refresh_all=True)
    labels = set(excluded.values_list("label", flat=True))
    ordered = (definition.label for definition in in_order_of_reading(registry))
    return [label for label in ordered if label not in labels]
