"""The functions that a project calls: ask for a refresh, ask whether a view is fresh.

This is the one module that reaches upward, when called: views are defined before Django's apps are
loaded, and the engine can only be imported after.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, transaction

from .exceptions import ViewNotReady
from .phases import Phase

if TYPE_CHECKING:
    from django.db.models import Model

    from .engine import Verification
    from .models import Refresh

__all__ = ["NOT_MIGRATED", "is_fresh", "mark_dirty", "refresh", "untracked", "verify"]

NOT_MIGRATED = "Tables of matviews are missing or out of date: run `manage.py migrate`."


@contextmanager
def _installed() -> Iterator[None]:
    """Say what to do where the app, or a table of its own, is missing.

    Raises:
        ImproperlyConfigured: the app is.
        ViewNotReady: a table or a column is.
    """
    if not apps.is_installed("matviews"):
        raise ImproperlyConfigured(
            "matviews is not in INSTALLED_APPS: add it, with django_celery_beat, and run manage.py migrate."
        )
    try:
        yield
    except DatabaseError as error:
        from . import engine

        if engine.lacks_own_tables(error):
            raise ViewNotReady(NOT_MIGRATED) from error
        raise


@_installed()
def refresh(
    view: str | type,
    *,
    phases: Iterable[Phase | str] | None = None,
    requested_by: str = "",
) -> "Refresh":
    """Ask for a refresh of a view; workers do it in the background.

    The request is recorded in the database and its messages are sent after the current transaction
    commits. It never waits for a running batch, and a broker that is down delays the work but
    does not lose it.

    Args:
        view: the view's class or label.
        phases: which phases to run; all that the view has by default.
        requested_by: who asked, for the record.

    A view whose changes are tracked, and for which none has been logged since it succeeded, is up to date:
    then the request is recorded as a refresh that has succeeded, and that is all.

    Returns:
        The recorded request. Call its `refresh_from_db()` to see how it went.

    Raises:
        UnknownView, InvalidView, ViewDisabled, ViewNotReady, InvalidRequest: nothing was recorded.
    """
    from . import engine, tasks

    asked = engine.request(view, phases=phases, requested_by=requested_by)
    if asked.finished_at is None:
        tasks.dispatch_on_commit(asked.view_id)
        _warn_in_test(asked)
    return asked


def _warn_in_test(asked: "Refresh") -> None:
    """A test's transaction never commits. Django's test runners make `mail.outbox`."""
    from . import engine

    if hasattr(mail, "outbox") and transaction.get_connection(engine.alias()).in_atomic_block:
        warnings.warn(
            f"refresh of {asked.view.label} recorded, to be done after the commit: if this transaction is "
            f"that of a test, which never commits, call matviews.testing.refresh_views",
            RuntimeWarning,
            stacklevel=2,
        )


@_installed()
def is_fresh(view: str | type, *, phases: Iterable[Phase | str] | None = None) -> bool:
    """Tell whether no phase of a view has work waiting, by calling its `needs_*` hooks.

    A view whose changes are tracked, and for which none has been logged since it succeeded, is known to
    be fresh: then nothing of its source is read.

    Args:
        view: the view's class or label.
        phases: which phases to ask about; all that the view has by default.

    Raises:
        UnknownView, InvalidView, InvalidRequest, HookError.
    """
    from . import engine

    return engine.is_fresh(view, phases=phases)


@_installed()
def mark_dirty(view: str | type, keys: Iterable[Any] | None = None) -> list[Any]:
    """Have the next refresh of a view look at rows again: something changed that no trigger logs.

    As in the current transaction: a rollback takes it back. It asks for no refresh.

    Args:
        view: the view's class or label.
        keys: the keys of the rows, as values or, of several fields, as tuples; a queryset of
            `values_list` will do. All rows by default. Each is converted once, by the view's field, as
            in `filter(field=key)`. A date that Python cannot hold is given as the database's text.

    Returns:
        Those of the keys that neither the view nor its source has at this moment, as they were given: it
        may be that a field spells them otherwise than the database does. They are marked all the same, as
        their rows may still be on the way. Empty where the next refresh looks at all keys anyway.

    Raises:
        UnknownView, InvalidView, ViewNotReady.
        InvalidRequest: something is not a key, or the view has no `source()`.
    """
    from . import engine

    return engine.mark_dirty(view, keys)


@contextmanager
def untracked(*models: "type[Model] | str") -> Iterator[None]:
    """A transaction for a bulk load: it logs no row of some models, and is followed by full passes.

    What triggers would cost is saved; when it commits, each view that reads one of the models has to
    look at all of its keys. Nothing else of the transaction goes unlogged.

    Args:
        models: the models that are written to, or their labels; tables of their parents included.

    Raises:
        LookupError: there is no such model.
        TypeError: none is named.
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
def verify(view: str | type, *, repair: bool = False, sample: int | None = None) -> "Verification":
    """Compare a view that has a `source()` with what that yields now.

    Each range of a few thousand keys is compared by one statement, so in one snapshot. What has
    changed in the source since the last refresh differs, of course.

    Args:
        view: the view's class or label.
        repair: write what differs, and only that; batches of the view wait meanwhile.
        sample: compare about so many keys, in ranges at random; None for all of them.

    Returns:
        How many keys were compared, how many are missing, differing and surplus, and the first of
        each with both values.

    Raises:
        UnknownView, InvalidView, InvalidRequest: there is nothing to compare, or no sample of it.
        ViewBusy: a batch kept the view from being mended for 30 seconds.
    """
    from . import engine, tasks

    found = engine.verify(view, repair=repair, sample=sample)
    if found.repaired is not None:
        tasks.dispatch_on_commit(found.view_id)  # a batch may have been turned away
    return found
