"""What follows when rows are loaded from a dump: by `loaddata`, as fixtures of tests, or otherwise deserialized.

Bookkeeping is not loaded (`models.Bookkeeping`); what an operator has chosen is, by the names of views.
"""

from typing import Any

from django.db import connections, transaction
from django.db.models import Model
from django.db.models.signals import pre_save
from django_celery_beat.models import PeriodicTask

from .. import changes, engine
from ..models import NamedKey, RefreshSchedule, ViewChange, ViewControl
from ..registry import registry
from . import periodic
from .schedules import reconcile_if_possible

__all__ = ["connect"]

OF_THIS_DATABASE = ("last_insert", "last_update", "last_delete", "fingerprints", "verification")


def connect() -> None:
    """Follow what is loaded from now on."""
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
    """Have a periodic task of ours take the place of the one of its name; `reconcile` does the rest."""
    if task.name.startswith(periodic.PREFIX):
        same = PeriodicTask.objects.using(using).filter(name=task.name)
        task.pk = same.values_list("pk", flat=True).first()


class _Load:
    """What one transaction loads, and what follows after its commit.

    Attributes:
        controls: primary keys of controls, by those that the dump has.
        views: primary keys of the controls that are loaded.
        replaced: those whose schedules are the dump's by now.
        done: whether it has ended.
    """

    def __init__(self) -> None:
        self.controls: dict[int, int] = {}
        self.views: set[int] = set()
        self.replaced: set[int] = set()
        self.done = False
        self.__qualname__ = type(self).__qualname__  # by which Django logs a callback that fails

    def control(self, loaded: ViewControl) -> None:
        """Have a control take the place of the one of its label, and keep what that knows of this database."""
        own, created = ViewControl.objects.get_or_create(label=loaded.label)
        if loaded.pk is not None and not isinstance(loaded.pk, NamedKey):
            self.controls[loaded.pk] = own.pk
        self.views.add(own.pk)
        loaded.pk = own.pk
        for name in OF_THIS_DATABASE:
            setattr(loaded, name, getattr(own, name))
        loaded.default_scheduled |= own.default_scheduled
        if created:
            _tell({own.pk})

    def schedule(self, loaded: RefreshSchedule) -> None:
        """Add a schedule to those of its view; those that the loaded views had before make way.

        Raises:
            ValueError: nobody can tell which view it is of.
        """
        if not isinstance(loaded.view_id, NamedKey):
            if loaded.view_id not in self.controls:
                raise ValueError(
                    "its view is given by the primary key of a ViewControl that is not loaded with it: "
                    "load both, in one transaction, or dump with --natural-foreign."
                )
            loaded.view_id = self.controls[loaded.view_id]
        old = (self.views | {int(loaded.view_id)}) - self.replaced
        RefreshSchedule.objects.filter(view__in=old).delete()
        self.replaced |= old
        loaded.pk = None

    def __call__(self) -> None:
        """Bring about what the loaded rows want."""
        self.done = True
        if self.views or self.replaced:
            engine.sync_controls()
            reconcile_if_possible()


def _load_of(using: str) -> _Load | None:
    """The load that is under way; at its beginning all views are told. None before our tables are there."""
    connection: Any = connections[using]
    within = set(connection.savepoint_ids) - {None}
    for savepoints, each, _robust in connection.run_on_commit:
        if isinstance(each, _Load) and not each.done and savepoints - {None} == within:
            return each
    if ViewChange._meta.db_table not in connection.introspection.table_names():
        return None
    load = _Load()
    _tell(set(ViewControl.objects.values_list("pk", flat=True)))
    transaction.on_commit(load, using=using, robust=True)
    return load


def _tell(views: set[int]) -> None:
    changes.enqueue(views, "rows were loaded from a dump")
