"""Notifications of alarms: a log record, a signal, mail, and the project's hook."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from django.core.mail import get_connection, mail_admins
from django.utils.module_loading import import_string

from .. import engine, signals
from ..conf import get_settings
from ..logs import log
from ..models import Alarm, AlarmEvent
from ..presentation import format_time, pluralize
from ..redact import error_text, loggable
from ..registry import registry
from ..states import ViewState
from .time_limits import run_limited

__all__ = ["Delivery", "deliver"]

logger = logging.getLogger(__name__)

MAX_SECONDS = 10.0  # for signal, mail and hook together
MAX_MAILS = 10  # more alarms at once are one mail
FAILING = (ViewState.FAILED, ViewState.SUSPENDED)  # the alarms whose cause is an exception

_recording = threading.Lock()  # two channels may come to their ends at once

Channel = Callable[[list[Alarm]], object]


@dataclass(kw_only=True, slots=True)
class Delivery:
    """What one channel delivers, in a thread that may outlast the wait of `deliver`."""

    channel: str
    #: Not delivered yet: the channel removes what it has delivered.
    left: list[Alarm]
    #: What the database has as undelivered.
    recorded: list[Alarm] = field(default_factory=list)

    def call(self, channel: Channel) -> None:
        """Have the channel deliver them, in its thread."""
        try:
            channel(self.left)
        finally:
            self.record_late()

    def record_late(self) -> None:
        """Record what was delivered after the wait for it had ended.

        The thread calls it at its end, and so does the waiting process once it has recorded the
        rest.
        """
        with _recording:
            for alarm in [each for each in self.recorded if each not in self.left]:
                same = Alarm.objects.filter(
                    pk=alarm.pk, notified_at=alarm.notified_at, event=alarm.event
                )
                for undelivered in same.values_list("undelivered", flat=True):
                    rest = [each for each in undelivered.split(",") if each != self.channel]
                    same.update(undelivered=",".join(rest))
                self.recorded.remove(alarm)


def deliver(alarms: Sequence[Alarm]) -> list[Delivery]:
    """Notify people of alarms, for a limited time.

    Args:
        alarms: each has in `event` what happened. Those with `undelivered` are delivered again to
            these only.

    Returns:
        What each channel has left. Who records that sets `recorded`, and calls `record_late`.
    """
    _log([each for each in alarms if not each.undelivered])
    channels = _channels()
    deliveries = [
        Delivery(
            channel=name,
            left=[each for each in alarms if name in (each.undelivered or name).split(",")],
        )
        for name in channels
    ]
    works = {
        each.channel: partial(each.call, channels[each.channel]) for each in deliveries if each.left
    }
    for name, error in run_limited(works, MAX_SECONDS).items():
        log(
            logger, logging.ERROR, "alarms could not be delivered", channel=name,
            exception=loggable(error, trusted=False), error=error_text(error, trusted=False),
        )  # fmt: skip
    return deliveries


def _channels() -> dict[str, Channel]:
    settings = get_settings()
    channels: dict[str, Channel] = {"signal": _signal}
    if settings.ALARM_MAIL:
        channels["mail"] = _mail
    if settings.ALARM_HOOK:
        channels["hook"] = partial(_call_hook, settings.ALARM_HOOK)
    return channels


def _log(alarms: Sequence[Alarm]) -> None:
    """Log each alarm; with the exception, if a view has failed with one."""
    raised = [each for each in alarms if each.event != AlarmEvent.ENDED]
    failures = engine.recorded_failures({each.view for each in raised if each.kind in FAILING})
    for alarm in alarms:
        failure = failures.get(alarm.view) if alarm in raised and alarm.kind in FAILING else None
        log(
            logger, logging.ERROR if alarm in raised else logging.INFO, f"alarm: {alarm.kind}",
            event=alarm.event, view=alarm.view, phase=failure.phase if failure else "",
            kind=alarm.kind, since=alarm.since, views=",".join(alarm.views), reason=alarm.text,
            error=alarm.error, exception=failure and failure.exception,
        )  # fmt: skip


def _signal(left: list[Alarm]) -> None:
    for alarm in list(left):
        sender = registry.find(alarm.view).model if alarm.view in registry else None
        ended = alarm.event == AlarmEvent.ENDED
        signal = signals.view_alarm_ended if ended else signals.view_alarm
        signal.send_robust(sender=sender, alarm=alarm)
        left.remove(alarm)


def _call_hook(path: str, left: list[Alarm]) -> None:
    import_string(path)(list(left))
    left.clear()


def _mail(left: list[Alarm]) -> None:
    mails = [(_subject(each), _text(each), [each]) for each in left]
    if len(mails) > MAX_MAILS:
        subject = f"matviews: {pluralize(len(mails), 'alarm')}"
        mails = [(subject, "\n\n".join(text for _subject, text, _alarm in mails), list(left))]
    connection: Any = get_connection()
    if getattr(connection, "timeout", MAX_SECONDS) is None:  # then a thread would hang for ever
        connection.timeout = MAX_SECONDS
    with connection:
        _send(mails, connection, left)


def _send(
    mails: Sequence[tuple[str, str, Sequence[Alarm]]], connection: Any, left: list[Alarm]
) -> None:
    """Send each mail, also if the server refuses others."""
    refused: Exception | None = None
    for subject, text, alarms in mails:
        try:
            mail_admins(subject, text, connection=connection)
        except Exception as error:  # noqa: BLE001 - every mail backend raises its own errors
            refused = error
        else:
            for alarm in alarms:
                left.remove(alarm)
    if refused:
        raise refused


def _subject(alarm: Alarm) -> str:
    event = f" ({alarm.event})" if alarm.event != AlarmEvent.RAISED else ""
    return f"{alarm}{event}"


def _text(alarm: Alarm) -> str:
    lines = [_subject(alarm), alarm.text, f"Since: {format_time(alarm.since)}"]
    if alarm.ended_at:
        lines.append(f"Ended: {format_time(alarm.ended_at)}")
    if alarm.views:
        lines.append(f"Late because of it: {', '.join(alarm.views)}")
    if alarm.error:
        lines.append(f"Error: {alarm.error}")
    return "\n".join(lines)
