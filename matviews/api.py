"""The functions that a project calls.

They import the engine when they are called, because views are defined before Django's apps are
loaded, and the engine can be imported only after that.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, transaction

from .exceptions import NOT_MIGRATED, ViewNotReady
from .phases import Phase

if TYPE_CHECKING:
    from django.db.models import Model

    from .engine import DataStatus, Parked, Verification
    from .models import Refresh

__all__ = [
    "is_fresh", "mark_dirty", "parked", "refresh", "status", "untracked", "verify",
]  # fmt: skip


@contextmanager
def _installed() -> Iterator[None]:
    """Explain what to do if the app is not installed or not migrated.

    Raises:
        ImproperlyConfigured: it is not installed.
        ViewNotReady: one of its own tables or columns is missing.
    """
    if not apps.is_installed("matviews"):
        raise ImproperlyConfigured(
            "matviews is not in INSTALLED_APPS: add it, with django_celery_beat, and run "
            "manage.py migrate."
        )
    try:
        yield
    except DatabaseError as error:
        from . import engine

        if engine.own_tables_missing(error):
            raise ViewNotReady(NOT_MIGRATED) from error
        raise


@_installed()
def refresh(
    view: str | type,
    *,
    phases: Iterable[Phase | str] | None = None,
    requested_by: str = "",
    force: bool = False,
    upstream: bool = False,
    downstream: bool = False,
) -> "Refresh":
    """Request a refresh of a view, which workers run in the background.

    The request is recorded in the database, and its messages are sent after the current transaction
    commits. This never waits for a running batch. A broker that is down delays the work, but no
    work is lost.

    If changes of the view are tracked and none has been logged since its last success, the view is
    up to date: the request is recorded as a refresh that has succeeded, and nothing else happens.

    Args:
        view: the view's class or label.
        phases: which phases to run; all that the view has by default.
        requested_by: who requests it, for the record.
        force: begin at once, even if the view waits after a failure or is suspended; success ends
            that.
        upstream: first refresh the views that it reads, directly or through others.
        downstream: afterwards refresh the views that read it, directly or through others. Each view
            begins when the refreshes before it have ended or cannot continue. Views that are
            disabled are left out; `phases` are those of the view itself.

    Returns:
        The recorded request of the view. Call its `refresh_from_db()` to see its outcome.

    Raises:
        UnknownView, InvalidView, ViewDisabled, ViewNotReady, InvalidRequest: no refresh of the view
            was recorded.
    """
    from . import engine, tasks

    requested, *others = engine.request_with_neighbours(
        view, phases=phases, requested_by=requested_by, force=force,
        upstream=upstream, downstream=downstream,
    )  # fmt: skip
    for each in (*others, requested):
        if each.finished_at is None:
            tasks.dispatch_on_commit(each.view_id)
            _warn_in_test(each)
    return requested


def _warn_in_test(requested: "Refresh") -> None:
    """Warn in a test's transaction, which never commits. Test runners create a `mail.outbox`."""
    from . import engine

    if hasattr(mail, "outbox") and transaction.get_connection(engine.alias()).in_atomic_block:
        warnings.warn(
            f"The refresh of {requested.view.label} is recorded, and starts after the commit. The "
            f"transaction of a test never commits: call matviews.testing.refresh_views there.",
            RuntimeWarning,
            stacklevel=2,
        )


@_installed()
def is_fresh(view: str | type, *, phases: Iterable[Phase | str] | None = None) -> bool:
    """Whether no phase of a view has pending work, according to its `needs_*` hooks.

    It is not fresh while keys are parked, nor while a view that it reads, directly or through
    others, has failed or is paused or disabled. If changes of the view are tracked and none has
    been logged since its last success, it is fresh, and its source is not read.

    Args:
        view: the view's class or label.
        phases: which phases to check; all that the view has by default.

    Raises:
        UnknownView, InvalidView, InvalidRequest, HookError.
    """
    from . import engine

    return engine.is_fresh(view, phases=phases)


@_installed()
def mark_dirty(view: str | type, keys: Iterable[Any] | None = None) -> list[Any]:
    """Make the next refresh of a view compare rows again, because of a change that no trigger logs.

    This is part of the current transaction, so a rollback undoes it. It does not request a
    refresh.

    Args:
        view: the view's class or label.
        keys: the keys of the rows, as values, or as tuples if the key has several fields; a
            `values_list` queryset will do. All rows by default. Each key is converted once by the
            view's field, as in `filter(field=key)`. Pass a date that Python cannot hold as the
            database's text.

    Returns:
        The given keys that neither the view nor its source contains now, perhaps because a field
        spells them differently from the database. They are marked anyway, because their rows may
        still be uncommitted. Empty if the next refresh compares all keys.

    Raises:
        UnknownView, InvalidView, ViewNotReady.
        InvalidRequest: a value is not a key, or the view has no `source()`.
    """
    from . import engine

    return engine.mark_dirty(view, keys)


@_installed()
def parked(view: str | type) -> "list[Parked]":
    """The keys that refreshes left out, because their rows cannot be computed or written.

    A row of the view with such a key stays as it was. The key is tried again if a change affects
    it, if the definition changes, and after a wait of at most a day.

    Args:
        view: the view's class or label.

    Returns:
        For each phase and key, the database's error, how often it occurred and since when.

    Raises:
        UnknownView: there is no such view.
    """
    from . import engine

    return engine.list_parked(view)


@_installed()
def status(view: str | type) -> "DataStatus":
    """How recent the rows of a view are, for pages that show them: "data as of 12:03".

    It takes at most two statements, and one more if the view reads other views. Call it before you
    read the rows: rows that you read later may be more recent, but rows read earlier may be older.

    Args:
        view: the view's class or label.

    Returns:
        `as_of`: the rows include every change of the source that committed before this moment.
        `pending`, `state` and `on_time`: its present status. `upstream_failed`, `upstream_paused`:
        which views that it reads, directly or through others, have failed or are held.

    Raises:
        UnknownView: there is no such view.
    """
    from . import engine

    return engine.data_status(view)


@contextmanager
def untracked(*models: "type[Model] | str") -> Iterator[None]:
    """A transaction for a bulk load: it logs no changes of some models, and full refreshes follow.

    This saves the cost of the triggers. After the commit, the next refresh of every view that reads
    one of the models is full. Changes of all other models are logged as usual.

    Args:
        models: the models that are written to, or their labels. This includes the tables of their
            parents.

    Raises:
        LookupError: a model does not exist.
        TypeError: no model is named.
    """
    if not models:
        raise TypeError("Name the models that are written to.")
    given = [apps.get_model(each) if isinstance(each, str) else each for each in models]
    tables = {
        each._meta.db_table for model in given for each in (model, *model._meta.get_parent_list())
    }
    with _installed():
        from . import changes, engine

        with changes.untracked(engine.alias(), tables):
            yield


@_installed()
def verify(
    view: str | type,
    *,
    repair: bool = False,
    sample: int | None = None,
    leave_out_pending: bool = False,
) -> "Verification":
    """Compare a view with what its `source()` returns now.

    One statement, and so one snapshot, compares each range of a few thousand keys.

    Args:
        view: the view's class or label.
        repair: write the rows that differ, and only those; the view's batches wait meanwhile.
        sample: compare about this many keys, in random ranges; None for all.
        leave_out_pending: do not count keys with a pending change, if changes are tracked.
            Otherwise changes of the source since the last refresh show up as differences.

    Returns:
        How many rows were compared, how many are missing, differing and surplus, and the first of
        each kind with both values.

    Raises:
        UnknownView, InvalidView, InvalidRequest: the view has no `source()`, or cannot be sampled.
        ViewBusy: a batch blocked the repair for 30 seconds.
    """
    from . import engine, tasks

    found = engine.verify(view, repair=repair, sample=sample, leave_out_pending=leave_out_pending)
    if found.repaired is not None:
        tasks.dispatch_on_commit(found.view_id)  # a batch may have been refused meanwhile
    return found
