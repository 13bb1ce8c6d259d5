"""Hints: after a commit of this process, have a worker look when a view on change is due.

With `HINT_ON_COMMIT`, nobody waits for the next pulse. The request only notes which tables it wrote
to; a thread of the process decides what that means, and sends. So a broker that hangs delays no
request. A hint may be lost, with its process for example: the next pulse finds the change.
"""

import logging
import math
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from celery import current_app
from django.db import connections, transaction
from django.db.backends.signals import connection_created

from .. import engine
from ..conf import get_settings
from ..logs import log
from ..models import RefreshSchedule, TrackedTable
from ..redact import loggable
from .pulses import are_taken

__all__ = ["Hinter", "connect"]

logger = logging.getLogger(__name__)

#: Seconds: at least between two hints of a process; without any after one that could not be sent;
#: for which it trusts what it has read of schedules. Pulses are never further apart than the last.
MIN_INTERVAL, SILENCE, TRUSTED, LONGEST_DELAY = 0.1, 30.0, 10.0, 20.0
#: Seconds after which a transaction notes a table again: a rollback may have undone the first note.
NOTED = 1.0
WRITES = ("INS", "UPD", "DEL", "REP")
TABLE = re.compile(
    r"(?:INSERT(?:\s+(?:OR\s+)?IGNORE)?\s+INTO|REPLACE\s+INTO|UPDATE|DELETE\s+FROM)\s+"
    r"[\"`]?([^\"`\s(]+)",
    re.IGNORECASE,
)


def connect() -> None:
    """Note what this process writes from now on, if it is to give hints."""
    connection_created.connect(_watch, dispatch_uid="matviews.hints")
    os.register_at_fork(after_in_child=_HINTER.forget)


class Hinter:
    """Sends hints from a thread of its own, which it starts when a table of a view is written.

    Args:
        send: sends one hint; raises if the broker refuses.
    """

    def __init__(self, send: Callable[[], object]) -> None:
        self._send = send
        self.forget()

    def forget(self) -> None:
        """Start from scratch, as a forked process must."""
        self._wake, self._starting = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        #: The tables written since the last step; its values say nothing.
        self._written: dict[str, None] = {}
        #: By table, the shortest delay of the views on change that read it, in seconds.
        self._delays: dict[str, float] = {}
        self._known_until = -math.inf
        self._sent_at, self._silent_until = -math.inf, -math.inf

    def note(self, table: str) -> None:
        """Record a committed write to a table, without waiting for anything."""
        if time.monotonic() < self._known_until and table not in self._delays:
            return
        self._written[table] = None
        self._wake.set()
        if self._thread is None:
            with self._starting:
                self._thread = self._thread or self._start()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="matviews-hints", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        due = math.inf
        while True:
            self._wake.wait(None if due == math.inf else max(0.0, due - time.monotonic()))
            self._wake.clear()
            try:
                due = self.step(due)
            except Exception as error:  # noqa: BLE001 - whatever a database or a broker raises
                due, self._silent_until = math.inf, time.monotonic() + SILENCE
                sentence = "no hint sent; workers find the change with the next pulse"
                log(logger, logging.WARNING, sentence, exception=loggable(error, trusted=False))

    def step(self, due: float) -> float:
        """Send a hint if one is due.

        Args:
            due: when that is, by the monotonic clock.

        Returns:
            When the next one is due.
        """
        due = min(due, self._next_due())
        if time.monotonic() < due:
            return due
        self._sent_at = time.monotonic()
        self._send()
        return math.inf

    def _next_due(self) -> float:
        """When a hint is due for the tables written meanwhile; infinite if none is."""
        written, moment = set[str](), time.monotonic()
        while self._written:
            written.add(self._written.popitem()[0])
        if not written or moment < self._silent_until:
            return math.inf
        if moment >= self._known_until:
            self._read_delays()
            self._known_until = time.monotonic() + TRUSTED
        delays = [self._delays[table] for table in written if table in self._delays]
        if not delays:
            return math.inf
        delay = min(delays)
        return max(moment + delay, self._sent_at + max(delay / 2, MIN_INTERVAL))

    def _read_delays(self) -> None:
        """Read which tables matter; none while workers take no pulses, or they would pile up."""
        self._delays = {}
        try:
            if are_taken():
                self._delays = _delays()
        finally:
            connections.close_all()  # those of this thread


def _delays() -> dict[str, float]:
    """By table, the shortest delay of the schedules on change whose views read it, in seconds."""
    by_view = defaultdict[int, list[float]](list)
    for schedule in RefreshSchedule.objects.filter(on_change=True, enabled=True).order_by():
        if schedule.delay is not None and schedule.delay.total_seconds() < LONGEST_DELAY:
            by_view[schedule.view_id].append(schedule.delay.total_seconds())
    found = {}
    for table, views in TrackedTable.objects.values_list("table", "views"):
        if delays := [delay for view in views for delay in by_view.get(view, ())]:
            found[table] = min(delays)
    return found


def _send() -> None:
    from . import pulse

    if not current_app.conf.task_always_eager:
        pulse.apply_async(queue=get_settings().CELERY_QUEUE, retry=False)


_HINTER = Hinter(_send)
#: By connection, when its transaction noted each table.
_NOTED: WeakKeyDictionary[Any, dict[str, float]] = WeakKeyDictionary()


def _watch(*, connection: Any, **_kwargs: Any) -> None:
    """Have a new connection to the database of the views note what is written."""
    if not get_settings().HINT_ON_COMMIT or _execute in connection.execute_wrappers:
        return
    if connection.alias == engine.alias() or _is_same(connection):
        connection.execute_wrappers.append(_execute)


def _is_same(connection: Any) -> bool:
    """Whether another alias leads to the database of the views."""
    ours = connections[engine.alias()].settings_dict
    return all(connection.settings_dict[name] == ours[name] for name in ("HOST", "PORT", "NAME"))


def _execute(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
    """Execute a statement; note the table that it has written to, once that is committed."""
    result = execute(sql, params, many, context)
    if isinstance(sql, str) and sql[:3].upper() in WRITES and (found := TABLE.match(sql)):
        _note_on_commit(context["connection"], found[1])
    return result


def _note_on_commit(connection: Any, table: str) -> None:
    if not connection.in_atomic_block:
        if connection.get_autocommit():
            _HINTER.note(table)
        return
    noted, moment = _NOTED.setdefault(connection, {}), time.monotonic()
    if moment >= noted.get(table, -math.inf) + NOTED:
        noted[table] = moment
        transaction.on_commit(partial(_committed, noted, table), connection.alias, robust=True)


def _committed(noted: dict[str, float], table: str) -> None:
    noted.pop(table, None)
    _HINTER.note(table)
