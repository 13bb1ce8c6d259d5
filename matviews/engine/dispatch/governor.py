"""The governor: a batch waits while the database is overloaded, or too many views are refreshed.

It is consulted after a commit, before the message of the next batch is sent, and again by the
worker that takes it. A waiting batch holds nothing: all that there is of it is a time and a reason
in the control, and `failures.wake` consults the governor again. Each process reads the load at most
every `READ_EVERY` seconds.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, InterfaceError, transaction
from django.db.models.functions import Coalesce

from ...conf import get_settings
from ...databases import Load, load_reader_of
from ...databases.clock import UtcNow
from ...definition import ViewDefinition
from ...exceptions import InvalidView
from ...logs import log
from ...models import PhaseRun, Refresh, ViewControl
from ...queryset import tables_read
from ...waits import Wait, WaitCode
from ..failures.backoff import wait
from ..tracking.pending_drains import utc
from ..transactions import alias, drop_broken_connection, utc_now
from ..work.shard_work import Work
from .refresh_limit import is_limited, release_permit, take_permit

__all__ = ["ineffective_limits", "is_governed", "load_fault", "throttle"]

logger = logging.getLogger(__name__)

READ_EVERY = 10.0  # seconds
ASK_AGAIN = timedelta(seconds=10)
NO_WAIT: dict[str, Any] = {"governed_since": None, "retry_at": None, "wait": None}
#: By setting, the field of `Load` that it limits.
LIMITED = {
    "GOVERNOR_REPLICATION_LAG": "replication_lag",
    "GOVERNOR_ACTIVE_SESSIONS": "active_sessions",
    "GOVERNOR_TRANSACTION_AGE": "transaction_age",
    "GOVERNOR_VACUUM": "vacuumed",
}
#: The waits for those that have a number.
CODES = {
    "GOVERNOR_REPLICATION_LAG": WaitCode.REPLICATION_LAG,
    "GOVERNOR_ACTIVE_SESSIONS": WaitCode.ACTIVE_SESSIONS,
    "GOVERNOR_TRANSACTION_AGE": WaitCode.TRANSACTION_AGE,
}


def is_governed() -> bool:
    """Whether a limit is set, of the load or of refreshes."""
    return any(_limits()) or is_limited()


def _limits() -> Iterator[str]:
    settings = get_settings()
    return (name for name in LIMITED if getattr(settings, name))


def ineffective_limits() -> dict[str, str]:
    """The limits that have no effect, by setting, and why."""
    reader, set_limits = load_reader_of(alias()), list(_limits())
    unknown = {
        name: "this database does not report it" for name in set_limits
        if LIMITED[name] not in reader.known
    }  # fmt: skip
    if len(unknown) == len(set_limits) or reader.may_see():
        return unknown
    return dict.fromkeys(set_limits, f"the role is not a member of {reader.right}") | unknown


def throttle(work: Work) -> bool:
    """Have the batch that is due wait if a limit is exceeded; return whether it waits.

    After `GOVERNOR_MAX_WAIT` the refresh runs to its end, and so do others of the view while it is
    open.
    """
    if not is_governed():
        return False
    control = work.shard.view
    if control.held or work.quiet_until:  # something else holds it now
        release_permit(control.pk)
        if control.governed_since is not None:
            ViewControl.objects.filter(pk=control.pk).update(governed_since=None)
    run = None if work.blocked else work.next_run()
    if run is None:
        return False
    if any(refresh.proceeded_despite for refresh in work.refreshes):
        take_permit(control, beyond=True)
        return False
    return _apply_limits(work, run)


def _apply_limits(work: Work, run: PhaseRun) -> bool:
    control, since = work.shard.view, work.shard.view.governed_since
    waited = utc_now() - utc(since) if since else timedelta()
    out, load = waited >= get_settings().GOVERNOR_MAX_WAIT, load_fault(work.definition)
    reason = load if load and not out else take_permit(control, beyond=out) or load
    if reason and out:
        _proceed_despite(run, reason, waited)
    elif reason:
        _wait(control, reason)
        # One that has just ended, and given up its permit, may not have seen that this one waits.
        if load or take_permit(control):
            return True
    if since is not None or reason:
        ViewControl.objects.filter(pk=control.pk).update(**NO_WAIT)
    return False


def _wait(control: ViewControl, reason: Wait) -> None:
    wait(control, ASK_AGAIN, reason)
    if control.governed_since is None:
        waiting = ViewControl.objects.filter(pk=control.pk)
        waiting.update(governed_since=Coalesce("governed_since", UtcNow()))


def _proceed_despite(run: PhaseRun, reason: Wait, waited: timedelta) -> None:
    Refresh.objects.filter(pk=run.refresh_id).update(proceeded_despite=reason)
    log(
        logger, logging.WARNING, "refresh proceeds, it has waited long enough",
        view=run.refresh.view.label, refresh=run.refresh_id, reason=str(reason),
        seconds=round(waited.total_seconds()),
    )  # fmt: skip


def load_fault(definition: ViewDefinition | None) -> Wait | None:
    """Why the database is too busy for a view, by the first limit exceeded; None if it is not."""
    if not any(_limits()):
        return None
    load, settings = _load(), get_settings()
    for name, code in CODES.items():
        limit, value = getattr(settings, name), getattr(load, LIMITED[name])
        if limit is not None and value is not None and value > limit:
            return Wait(code, {"found": value, "limit": limit})
    if not (settings.GOVERNOR_VACUUM and load.vacuumed):
        return None
    vacuumed = ", ".join(sorted(_tables(definition) & load.vacuumed))
    return Wait(WaitCode.VACUUM, {"tables": vacuumed}) if vacuumed else None


def _tables(definition: ViewDefinition | None) -> set[str]:
    if definition is None:
        return set()
    read: set[str] = set()
    if definition.has_source:
        with suppress(InvalidView, DatabaseError):  # the refresh will fail and say why
            read = set(tables_read(definition, alias()))
    return {definition.model._meta.db_table, *read}


#: By database, the last reading and when it was made, in seconds of the monotonic clock.
_READINGS: dict[str, tuple[float, Load]] = {}
#: The databases whose ineffective_limits was logged.
_LOGGED: set[str] = set()


def _load() -> Load:
    """The load, read a moment ago at most. What cannot be read blocks nothing."""
    using = alias()
    read_at, load = _READINGS.get(using, (float("-inf"), Load()))
    if time.monotonic() - read_at < READ_EVERY:
        return load
    try:
        with transaction.atomic(using=using):  # a failure must not break an outer transaction
            load = load_reader_of(using).read()
            ineffective = {} if using in _LOGGED else ineffective_limits()
    except (DatabaseError, InterfaceError) as error:
        drop_broken_connection()
        log(logger, logging.WARNING, "the load of the database cannot be read", exception=error)
        load, ineffective = Load(), {}
    _READINGS[using] = time.monotonic(), load
    if ineffective:
        _LOGGED.add(using)
        for setting, why in ineffective.items():
            log(
                logger, logging.WARNING, "a limit of the governor has no effect",
                setting=setting, reason=why,
            )  # fmt: skip
    return load
