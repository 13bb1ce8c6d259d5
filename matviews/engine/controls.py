"""The control, shard and first schedule rows of the views that the code defines."""

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
    "find_circle",
    "mark_migrated_views_dirty",
    "not_ready",
    "rename_controls",
    "sync_controls",
    "sync_shards",
    "views_to_refresh",
]


LONGEST_KEPT = 100  # characters of each label in that of a control whose label another view took


def not_ready(label: str) -> ViewNotReady:
    """The error for a view of which the rows are not there yet."""
    return ViewNotReady(
        f"{label} has no bookkeeping rows yet: run `manage.py migrate`. It makes them after the last "
        f"migration, so a migration cannot refresh a new view."
    )


def sync_controls() -> None:
    """Make the missing control and shard rows of every registered view. Runs after `migrate`.

    Rows of views that are gone stay: they hold the history, and what an operator has set.
    """
    known = set(ViewControl.objects.values_list("label", flat=True))
    new = [each for each in registry if each.label not in known]
    ViewControl.objects.bulk_create(
        [ViewControl(label=each.label, **_first_values(each)) for each in new],
        ignore_conflicts=True,
    )
    without = ViewControl.objects.filter(shards=None, label__in=[each.label for each in registry])
    ViewShard.objects.bulk_create(
        [
            ViewShard(view=control, number=number)
            for control in without
            for number in range(_shards_wanted(control))
        ],
        ignore_conflicts=True,
    )
    sync_shards()
    for control in ViewControl.objects.filter(default_scheduled=False):
        if control.definition and control.definition.options.refresh_every:
            _schedule(control, control.definition)


def rename_controls(renames: Iterable[tuple[str, str]]) -> None:
    """Let the controls of views follow when their models were renamed: with pause, schedules and history.

    Args:
        renames: old and new labels, in the order in which migrations have renamed.
    """
    labels = {each.label.lower(): each.label for each in registry}
    with short_transaction():
        for old, new in renames:
            control = ViewControl.objects.filter(label__iexact=old).first()
            if control is not None:
                _make_way(new, control)
                renamed = ViewControl.objects.filter(pk=control.pk)
                renamed.update(label=labels.get(new.lower(), new))


def _make_way(label: str, control: ViewControl) -> None:
    """Take a label from the control of a view that had it before; its history, if it has one, stays."""
    for other in ViewControl.objects.filter(label__iexact=label).exclude(pk=control.pk):
        if other.refreshes.exists():
            kept = f"{other.label[:LONGEST_KEPT]} (until {control.label[:LONGEST_KEPT]} took its name, {other.pk})"
            ViewControl.objects.filter(pk=other.pk).update(label=kept)
        else:
            other.delete()


def mark_migrated_views_dirty(app_labels: Collection[str]) -> None:
    """Have the views of apps looked at as a whole: their tables may be new ones, and empty."""
    labels = [
        each.label for each in registry if each.derived and each.model._meta.app_label in app_labels
    ]
    views = ViewControl.objects.filter(label__in=labels).values_list("pk", flat=True)
    changes.enqueue(set(views), "migrations of its app have run")


def sync_shards() -> None:
    """Bring the shards of every view to the number that its control wants.

    A view with an open refresh has to wait: that was told how many shards share the keys.
    """
    counted = ViewControl.objects.annotate(present=Count("shards"))
    for control in counted.exclude(present=F("shard_count")):
        if control.definition and control.present != _shards_wanted(control):
            _sync_shards(control)


def _first_values(definition: ViewDefinition) -> dict[str, Any]:
    options = definition.options
    return {"include_in_refresh_all": options.include_in_refresh_all, "shard_count": options.shards}


def _schedule(control: ViewControl, definition: ViewDefinition) -> None:
    """Make the schedules that the code proposes: once, and not beside an operator's own."""
    with short_transaction():
        first = ViewControl.objects.filter(pk=control.pk, default_scheduled=False)
        if first.update(default_scheduled=True) and not control.schedules.exists():
            RefreshSchedule.objects.bulk_create(
                RefreshSchedule(view=control, phases=list(phases), every=every, period=period)
                for phases, interval in definition.options.intervals.items()
                for every, period in [_in_units(interval)]
            )


def _in_units(interval: timedelta) -> tuple[int, Period]:
    """An interval in the largest unit that it is a whole number of."""
    period = next(period for period in reversed(Period) if not interval % period.length)
    return interval // period.length, period


def _shards_wanted(control: ViewControl) -> int:
    """One, for a view whose hooks do not declare `shard`: each of them would do all the work."""
    knows = control.definition is not None and control.definition.is_shard_aware
    return max(1, control.shard_count) if knows else 1


def _sync_shards(control: ViewControl) -> None:
    with short_transaction():
        free = {shard.number: shard.pk for shard in lock_available(Q(view=control))}
        present = set(control.shards.values_list("number", flat=True))
        wanted = set(range(_shards_wanted(control)))
        busy = present - set(free) or control.refreshes.filter(state=RefreshState.OPEN).exists()
        if present == wanted or (present and busy):
            return
        control.shards.filter(pk__in=[free[number] for number in present - wanted]).delete()
        ViewShard.objects.bulk_create(
            [ViewShard(view=control, number=number) for number in sorted(wanted - present)]
        )


def views_to_refresh() -> list[str]:
    """Labels of the views that a refresh of all views includes; a view comes after those it reads.

    A view without a control row is among them: asking for its refresh says what is missing.
    """
    excluded = ViewControl.objects.exclude(enabled=True, paused=False, include_in_refresh_all=True)
    labels = set(excluded.values_list("label", flat=True))
    return [each.label for each in _in_order(registry) if each.label not in labels]


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels in the order in which the views are to be refreshed: each once, after those it reads.

    Also by way of a view that is not among them. Those that do not read each other stay as they are.
    """
    wanted = dict.fromkeys(labels)
    if len(wanted) < 2:
        return list(wanted)
    named = [registry.find(label) for label in wanted]
    others = [each for each in registry if each.label not in wanted]
    return [each.label for each in _in_order([*named, *others]) if each.label in wanted]


def _in_order(definitions: Iterable[ViewDefinition]) -> list[ViewDefinition]:
    by_label = {each.label: each for each in definitions}
    after = _read_by(by_label)
    while circle := _circle(after):  # whatever comes first of it, another refresh is needed
        after[circle[1]].remove(circle[0])
    return [by_label[label] for label in TopologicalSorter(after).static_order()]


def _circle(after: Mapping[str, Collection[str]]) -> list[str]:
    """Some that come after each other, the first again at the end; empty if none do."""
    try:
        TopologicalSorter(after).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def _read_by(by_label: Mapping[str, ViewDefinition]) -> dict[str, set[str]]:
    """The views that each view reads, but for itself."""
    tables = {label: _tables_read(each) for label, each in by_label.items()}
    return {
        label: {
            other
            for other, each in by_label.items()
            if other != label and each.model._meta.db_table in read
        }
        for label, read in tables.items()
    }


def find_circle() -> list[str]:
    """Labels of views that read each other in a circle, the first again at the end; empty if none do."""
    return _circle(_read_by({each.label: each for each in registry}))


def _tables_read(definition: ViewDefinition) -> set[str]:
    return tables_read(definition, alias()) if definition.has_source else set()
