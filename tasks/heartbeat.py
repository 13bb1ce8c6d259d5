"""The signs of life of beat, the broker and the workers, and what it means if one is missing.

Each of them records its own. Nobody has to connect to the broker to find out.
"""

import logging
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from celery import signals
from django.utils.translation import gettext as _

from .. import engine
from ..logs import log
from ..models import Heartbeat, RefreshSchedule
from ..presentation import format_duration
from ..redact import loggable
from .expiry import is_from_beat
from .periodic import MAINTENANCE, MINUTE, PULSE, disabled_reason, from_beat, our_tasks
from .queues import queue_of

__all__ = [
    "Interruption", "connect", "interruption", "maintenance_problem", "nobody_polls", "record",
    "try_record", "try_record_poll",
]  # fmt: skip

logger = logging.getLogger(__name__)

TASK = "matviews.maintain"
MAX_SILENCE = timedelta(minutes=3)  # of maintenance: three messages of beat
MAX_UNPOLLED = timedelta(minutes=1)  # six times as long as between two records of polls
MAX_SENT_IN_VAIN = 5  # messages that beat has sent before maintenance ever ran
# Beat saves the time of its last message in the periodic task every three minutes only.
MAX_UNSAVED = timedelta(minutes=5)
# Longer than from one message of beat to the next, by which the one before has been taken.
MAX_SENDING = timedelta(seconds=90)

POLL_RECORDED_EVERY = 10.0  # seconds; polls are far more frequent
#: By column, when this process last recorded a poll, in seconds of the monotonic clock.
_POLLS: dict[str, float] = {}


class Interruption(NamedTuple):
    """What keeps the maintenance task from running."""

    #: "maintenance", "broker", "beat" or "no worker".
    kind: str
    #: What it is, and what to do about it, in the language that was active.
    text: str


def record(**times: Any) -> None:
    """Set columns of the heartbeat."""
    with engine.short_transaction():
        # Not update_or_create: on SQLite a transaction that has read cannot always write.
        if not Heartbeat.objects.update(**times):
            Heartbeat.objects.bulk_create([Heartbeat(pk=1, **times)], ignore_conflicts=True)


def try_record(**times: Any) -> bool:
    """`record` for callers that must not fail; False if it was not possible."""
    if engine.in_transaction():  # of a project, which an error would end
        return False
    try:
        record(**times)
    except Exception as error:  # noqa: BLE001 - whatever a database raises
        engine.drop_broken_connection()
        sentence = "a heartbeat could not be recorded"
        log(logger, logging.WARNING, sentence, exception=loggable(error, trusted=False))
        return False
    return True


def try_record_poll(column: str) -> None:
    """Record that this process has polled for refreshes that are due, every few seconds."""
    moment = time.monotonic()
    if moment >= _POLLS.get(column, -POLL_RECORDED_EVERY) + POLL_RECORDED_EVERY:
        _POLLS[column] = moment
        try_record(**{column: engine.now()})


def nobody_polls() -> bool:
    """Whether schedules are on change, and neither workers nor `--follow` poll for what is due."""
    heartbeat, recently = Heartbeat.objects.first() or Heartbeat(), engine.now() - MAX_UNPOLLED
    polls = (heartbeat.pulsed_at, heartbeat.followed_at)
    if any(poll and poll > recently for poll in polls) or not _are_followed():
        return False
    # Beat may not have sent the first pulse yet; it saves how many it has sent with this date.
    new = our_tasks().filter(name=PULSE, total_run_count=0, date_changed__gt=recently)
    return not new.exists()


def _are_followed() -> bool:
    schedules = RefreshSchedule.objects.filter(on_change=True, enabled=True)
    return any(not disabled_reason(each) for each in schedules.select_related("view", "crontab"))


def connect() -> None:
    """Have beat record that it sends the message of maintenance, and that the broker takes it."""
    signals.before_task_publish.connect(_sending, sender=TASK, dispatch_uid="matviews.sending")
    signals.after_task_publish.connect(_sent, sender=TASK, dispatch_uid="matviews.sent")


def _sending(*, headers: Any = None, **_kwargs: Any) -> None:
    if is_from_beat(headers):
        try_record(beat_began_at=engine.now())


def _sent(*, headers: Any = None, **_kwargs: Any) -> None:
    if is_from_beat(headers):
        try_record(beat_sent_at=engine.now())


def maintenance_problem() -> str:
    """What keeps the maintenance task from running, and what to do about it; "" if it runs.

    In the active language.
    """
    found = interruption()
    return found.text if found else ""


def interruption() -> Interruption | None:
    """What keeps the maintenance task from running; None if it runs."""
    task = our_tasks().filter(name=MAINTENANCE).first()
    if task is None:
        text = _(
            "The periodic task '%(task)s' is missing, so lost messages are not re-sent. Run "
            "`manage.py migrate`, which creates it."
        ) % {"task": MAINTENANCE}
        return Interruption("maintenance", text)
    if not task.enabled:
        text = _(
            "The periodic task '%(task)s' is disabled, so lost messages are not re-sent. Run "
            "`manage.py migrate`, which enables it."
        ) % {"task": MAINTENANCE}
        return Interruption("maintenance", text)
    heartbeat = Heartbeat.objects.first() or Heartbeat()
    if not _is_silent(task, heartbeat):
        return None
    silence = _silence(heartbeat.maintenance_ended_at)
    return next(_causes(task, heartbeat, silence))


def _is_silent(task: Any, heartbeat: Heartbeat) -> bool:
    now = engine.now()
    if heartbeat.maintenance_ended_at:
        return heartbeat.maintenance_ended_at < now - MAX_SILENCE
    # Beat updates the row whenever it saves what it has sent.
    sent: int = task.total_run_count
    return bool(task.date_changed < now - MAX_UNSAVED) or sent >= MAX_SENT_IN_VAIN


def _silence(ran_at: datetime | None) -> str:
    if ran_at is None:
        return _("The maintenance task has not run yet, so lost messages are not re-sent.")
    return _("The maintenance task has not run for %(time)s, so lost messages are not re-sent.") % {
        "time": _minutes_since(ran_at)
    }


def _minutes_since(moment: datetime) -> str:
    return format_duration(round((engine.now() - moment) / MINUTE) * MINUTE)


def _causes(task: Any, heartbeat: Heartbeat, silence: str) -> Iterator[Interruption]:
    """Why maintenance is silent: the first one is the answer."""
    if fault := _broker_fault(heartbeat):
        text = _(
            "The broker accepts no messages: %(error)s. Check that it runs, and that beat and the "
            "workers can reach it."
        ) % {"error": fault}
        yield Interruption("broker", f"{silence} {text}")
    if _is_beat_silent(task, heartbeat):
        text = _(
            "Beat has not sent its message. Check that celery beat (with the DatabaseScheduler of "
            "django-celery-beat) is running, and reaches the broker."
        )
        yield Interruption("beat", f"{silence} {text}")
    recently = engine.now() - MAX_SILENCE
    if heartbeat.maintenance_began_at and heartbeat.maintenance_began_at > recently:
        text = _(
            "A worker begins the maintenance task, but does not finish it: see the worker's log."
        )
        yield Interruption("maintenance", f"{silence} {text}")
    yield Interruption("no worker", f"{silence} {_what_workers_need()}")


def _what_workers_need() -> str:
    queue = queue_of(TASK)
    if not queue:
        return _(
            "Beat sends its message, but no worker takes it. Check that a worker is running, and "
            "listens to the queue of its tasks."
        )
    return _(
        "Beat sends its message, but no worker takes it. Check that a worker is running, and "
        "listens to the queue '%(queue)s'."
    ) % {"queue": queue}


def _broker_fault(heartbeat: Heartbeat) -> str:
    """The broker's error when it last refused a message; "" if it is not known to refuse any."""
    failed, ran = heartbeat.send_failed_at, heartbeat.maintenance_ended_at
    if failed and failed > engine.now() - MAX_SILENCE and (ran is None or failed > ran):
        return heartbeat.send_error
    began, taken = heartbeat.beat_began_at, heartbeat.beat_sent_at
    if began is None or (taken and taken >= began):
        return ""
    # Between the two of a message that goes out now, or that a broker hangs with.
    late = taken is None or began - taken > MAX_SENDING or began < engine.now() - MAX_SENDING
    return _("beat tries to send, but fails") if late else ""


def _is_beat_silent(task: Any, heartbeat: Heartbeat) -> bool:
    seen, now = heartbeat.beat_began_at, engine.now()
    saved = from_beat(task.last_run_at) if task.total_run_count else None
    # What there is instead if beat runs without our code, perhaps only of late.
    if saved and (seen is None or saved > seen + MAX_SENDING):
        return saved < now - MAX_UNSAVED
    return seen is None or seen < now - MAX_SILENCE
