"""Loading controls and schedules from a dump: `loaddata`, fixtures and other deserialized rows.

Bookkeeping is never loaded (`models.Bookkeeping`). Operators' settings are, matched by the names of
views.
"""

from typing import Any

from django.db import connections, transaction
from django.db.models import Model
from django.db.models.signals import pre_save
from django_celery_beat.models import PeriodicTask

from .. import changes, engine
from ..models import TOTALS, NamedKey, RefreshSchedule, ViewChange, ViewControl
from ..registry import registry
from . import periodic
from .schedules import reconcile_if_possible

__all__ = ["connect"]

OF_THIS_DATABASE = (
    "last_insert", "last_update", "last_delete", "insert_as_of", "update_as_of", "delete_as_of",
    "fingerprints", "verification", "differing",
    *TOTALS,
)  # fmt: skip


def connect() -> None:
    """Connect the signal."""
    pre_save.connect(_saving, dispatch_uid="matviews.loading")


def _saving(*, sender: type[Model], instance: Any, raw: bool, using: str, **_kwargs: Any) -> None:
    if not raw or not instance._state.adding:  # a row with references forward is saved twice
        return
    if sender is PeriodicTask:
        _keep_name(instance, using)
    elif using == engine.alias() and _concerns_views(sender) and (load := _load_of(using)):
        if sender is ViewControl:
            load.control(instance)
        elif sender is RefreshSchedule:
            load.schedule(instance)


def _concerns_views(model: type[Model]) -> bool:
    ours = model._meta.app_label == ViewControl._meta.app_label
    return ours or model._meta.label in registry


def _keep_name(task: Any, using: str) -> None:
    """Let one of our periodic tasks replace the row of the same name; `reconcile` does the rest."""
    if task.name.startswith(periodic.PREFIX):
        same = PeriodicTask.objects.using(using).filter(name=task.name)
        task.pk = same.values_list("pk", flat=True).first()


class _Load:
    """What one transaction loads; called after its commit."""

    def __init__(self) -> None:
        #: The primary keys of controls here, by their primary keys in the dump.
        self.controls: dict[int, int] = {}
        #: The primary keys of the controls that are loaded.
        self.views: set[int] = set()
        #: The primary keys of the controls whose schedules the dump's have replaced.
        self.replaced: set[int] = set()
        #: Whether it has been called.
        self.done = False
        self.__qualname__ = type(self).__qualname__  # Django logs a failing callback by this name

    def control(self, loaded: ViewControl) -> None:
        """Let a control replace the one with its label, except what describes this database."""
        own, created = ViewControl.objects.get_or_create(label=loaded.label)
        if loaded.pk is not None and not isinstance(loaded.pk, NamedKey):
            self.controls[loaded.pk] = own.pk
        self.views.add(own.pk)
        loaded.pk = own.pk
        for name in OF_THIS_DATABASE:
            setattr(loaded, name, getattr(own, name))
        loaded.default_schedules_created |= own.default_schedules_created
        if created:
            _mark_dirty({own.pk})

    def schedule(self, loaded: RefreshSchedule) -> None:
        """Add a schedule to its view; the earlier schedules of loaded views are deleted.

        Raises:
            ValueError: its view is unknown.
        """
        if not isinstance(loaded.view_id, NamedKey):
            if loaded.view_id not in self.controls:
                raise ValueError(
                    "its view is given by the primary key of a ViewControl that is not loaded with "
                    "it. Load both in one transaction, or dump with --natural-foreign."
                )
            loaded.view_id = self.controls[loaded.view_id]
        old = (self.views | {int(loaded.view_id)}) - self.replaced
        RefreshSchedule.objects.filter(view__in=old).delete()
        self.replaced |= old
        loaded.pk = None

    def __call__(self) -> None:
        """Create missing controls and write the periodic tasks."""
        self.done = True
        if self.views or self.replaced:
            engine.sync_controls()
            reconcile_if_possible()


def _load_of(using: str) -> _Load | None:
    """The load of this transaction, which marks every view dirty; None before our tables exist."""
    connection: Any = connections[using]
    within = set(connection.savepoint_ids) - {None}
    for savepoints, each, _robust in connection.run_on_commit:
        if isinstance(each, _Load) and not each.done and savepoints - {None} == within:
            return each
    if ViewChange._meta.db_table not in connection.introspection.table_names():
        return None
    load = _Load()
    _mark_dirty(set(ViewControl.objects.values_list("pk", flat=True)))
    transaction.on_commit(load, using=using, robust=True)
    return load


def _mark_dirty(views: set[int]) -> None:
    changes.enqueue(views, "rows were loaded from a dump")
