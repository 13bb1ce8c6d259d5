"""Reacting when schedules and controls are saved or deleted, in the admin or elsewhere.

And when beat starts.
"""

from typing import Any

from celery import signals
from django.db import transaction
from django.db.models import Exists, OuterRef
from django.db.models.signals import post_delete, post_save

from .. import engine
from ..models import Refresh, RefreshSchedule, ViewControl
from ..states import RefreshState
from . import dispatch_all, loading
from .schedules import reconcile_if_possible

__all__ = ["connect"]


def connect() -> None:
    """Connect the signals."""
    for model in (RefreshSchedule, ViewControl):
        post_save.connect(_saved, sender=model, dispatch_uid="matviews.saved")
        post_delete.connect(_deleted, sender=model, dispatch_uid="matviews.deleted")
    signals.beat_init.connect(_beat_started, dispatch_uid="matviews.beat")
    loading.connect()


def _beat_started(**_kwargs: Any) -> None:
    """Write the periodic tasks: without any, beat never sends `matviews.maintain`, which does."""
    reconcile_if_possible()


def _saved(
    *, instance: RefreshSchedule | ViewControl, created: bool, raw: bool, **_kwargs: Any
) -> None:
    if raw:  # `loading` reacts when everything is loaded
        return
    if isinstance(instance, RefreshSchedule):
        _follow([instance.view_id])
    elif not created:
        _follow([instance.pk])


def _deleted(**_kwargs: Any) -> None:
    _follow([])


class _AfterCommit:
    """The reaction to all the saves of one transaction."""

    def __init__(self) -> None:
        self.view_ids: set[int] = set()
        self.done = False
        self.__qualname__ = type(self).__qualname__  # Django logs a failing callback by this name

    def __call__(self) -> None:
        self.done = True
        engine.sync_shards()
        reconcile_if_possible()
        engine.try_now(self.view_ids, wait_again=True)
        dispatch_all(_runnable(self.view_ids))


def _follow(view_ids: list[int]) -> None:
    connection = transaction.get_connection(engine.alias())
    registered = [each for _savepoints, each, _robust in connection.run_on_commit]
    ours = [each for each in registered if isinstance(each, _AfterCommit)]
    # In a test case they stay registered after `captureOnCommitCallbacks` has run them.
    after = next((each for each in ours if not each.done), _AfterCommit())
    after.view_ids.update(view_ids)
    if after not in ours:
        transaction.on_commit(after, using=engine.alias(), robust=True)


def _runnable(view_ids: set[int]) -> list[int]:
    """Those of the views that have work and are neither paused nor disabled."""
    work = Refresh.objects.filter(view=OuterRef("pk"), state=RefreshState.OPEN)
    free = ViewControl.objects.filter(Exists(work), pk__in=view_ids, enabled=True, paused=False)
    return list(free.order_by("pk").values_list("pk", flat=True))
