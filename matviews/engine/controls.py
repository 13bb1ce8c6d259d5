"""The control, shard and default schedule rows of the views in the code, and the views' order."""

from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from graphlib import CycleError, TopologicalSorter
from typing import Any

from django.db.models import Count, F, Q

from .. import changes
from ..definition import ViewDefinition
from ..exceptions import ViewNotReady
from ..models import Period, RefreshSchedule, ViewControl, ViewShard
from ..queryset import tables_read
from ..registry import registry
from ..states import RefreshState
from .locking import lock_available
from .transactions import alias, short_transaction

__all__ = [
    "find_cycle",
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
    known = set(ViewControl.objects.values_list("label", flat=True))
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
            for number in range(_required_shards(control))
        ],
        ignore_conflicts=True,
    )
    sync_shards()
    for control in ViewControl.objects.filter(default_scheduled=False):
        if control.definition and control.definition.options.refresh_every:
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


def sync_shards() -> None:
    """Create and delete shards until every view has the number that its control requires.

    A view with an open refresh has to wait, because its hooks were given the old number of shards.
    """
    counted = ViewControl.objects.annotate(present=Count("shards"))
    for control in counted.exclude(present=F("shard_count")):
        if control.definition and control.present != _required_shards(control):
            _sync_shards(control)


def _first_values(definition: ViewDefinition) -> dict[str, Any]:
    options = definition.options
    return {"include_in_refresh_all": options.include_in_refresh_all, "shard_count": options.shards}


def _schedule(control: ViewControl, definition: ViewDefinition) -> None:
    """Create the schedules that the code proposes, once, and only for a view that has none."""
    with short_transaction():
        unscheduled = ViewControl.objects.filter(pk=control.pk, default_scheduled=False)
        if unscheduled.update(default_scheduled=True) and not control.schedules.exists():
            RefreshSchedule.objects.bulk_create(
                RefreshSchedule(view=control, phases=list(phases), every=every, period=period)
                for phases, interval in definition.options.intervals.items()
                for every, period in [_in_units(interval)]
            )


def _in_units(interval: timedelta) -> tuple[int, Period]:
    """An interval as a whole number of the largest unit that divides it."""
    period = next(period for period in reversed(Period) if not interval % period.length)
    return interval // period.length, period


def _required_shards(control: ViewControl) -> int:
    """The number of shards that a view must have: 1 if its hooks do not declare `shard`."""
    is_shard_aware = control.definition is not None and control.definition.is_shard_aware
    return max(1, control.shard_count) if is_shard_aware else 1


def _sync_shards(control: ViewControl) -> None:
    with short_transaction():
        free = {shard.number: shard.pk for shard in lock_available(Q(view=control))}
        present = set(control.shards.values_list("number", flat=True))
        required = set(range(_required_shards(control)))
        busy = present - set(free) or control.refreshes.filter(state=RefreshState.OPEN).exists()
        if present == required or (present and busy):
            return
        control.shards.filter(pk__in=[free[number] for number in present - required]).delete()
        ViewShard.objects.bulk_create(
            [ViewShard(view=control, number=number) for number in sorted(required - present)]
        )


def views_to_refresh() -> list[str]:
    """Labels of the views that a refresh of all views includes; a view comes after those it reads.

    They include views without a control row: the request for such a view says that it is missing.
    """
    excluded = ViewControl.objects.exclude(enabled=True, paused=False, include_in_refresh_all=True)
    labels = set(excluded.values_list("label", flat=True))
    ordered = (definition.label for definition in _in_order(registry))
    return [label for label in ordered if label not in labels]


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels in the order in which to refresh the views: each once, after the views that it reads.

    A view may read another through views that are not named. Views that do not read each other keep
    their order.
    """
    requested = dict.fromkeys(labels)
    if len(requested) < 2:
        return list(requested)
    named = [registry.find(label) for label in requested]
    unnamed = [definition for definition in registry if definition.label not in requested]
    ordered = (definition.label for definition in _in_order([*named, *unnamed]))
    return [label for label in ordered if label in requested]


def _in_order(definitions: Iterable[ViewDefinition]) -> list[ViewDefinition]:
    by_label = {definition.label: definition for definition in definitions}
    views_read = _views_read(by_label)
    # No order lets one refresh of each bring all views of a cycle up to date, so any edge may be
    # dropped.
    while cycle := _cycle(views_read):
        views_read[cycle[1]].remove(cycle[0])
    return [by_label[label] for label in TopologicalSorter(views_read).static_order()]


def _cycle(views_read: Mapping[str, Collection[str]]) -> list[str]:
    """Labels of views that read each other in a cycle, the first again at the end; else empty."""
    try:
        TopologicalSorter(views_read).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def _views_read(by_label: Mapping[str, ViewDefinition]) -> dict[str, set[str]]:
    """The labels of the other views that each view reads."""
    own_tables = {label: view.model._meta.db_table for label, view in by_label.items()}
    tables_of = {label: _tables_read(view) for label, view in by_label.items()}
    return {
        label: {other for other, table in own_tables.items() if other != label and table in tables}
        for label, tables in tables_of.items()
    }


def find_cycle() -> list[str]:
    """Labels of views that read each other in a cycle, the first again at the end; else empty."""
    return _cycle(_views_read({definition.label: definition for definition in registry}))


def _tables_read(definition: ViewDefinition) -> set[str]:
    return tables_read(definition, alias()) if definition.has_source else set()
