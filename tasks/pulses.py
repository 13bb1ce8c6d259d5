"""How beat sends `matviews.pulse`: whenever it is due, but ever less often if no worker takes it.

A broker keeps what no worker takes, so pulses would pile up. This way a day without workers leaves
a few dozen of them. Once a worker takes one, beat sends all of them again.
"""

import time
from datetime import timedelta
from typing import Any

from celery import Task

from .. import engine
from ..models import Heartbeat
from .expiry import is_from_beat

__all__ = ["Pulse", "are_taken"]

#: Pulses that are sent before checking whether workers take them.
UNCONFIRMED = 20
#: Workers record every few seconds that they take pulses.
TRUSTED = timedelta(seconds=30)
#: Seconds between pulses that no worker takes: at first, and at most.
FIRST_WAIT, LAST_WAIT = 1.0, 3600.0


class Pulse(Task):  # type: ignore[misc]
    """The base of the task, which beat calls in its own process."""

    #: Pulses sent since they were known to be taken.
    _sent = 0
    #: When the next may be sent although none is taken (monotonic clock), and the wait after that.
    _next, _wait = 0.0, FIRST_WAIT

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """As Celery's; it sends nothing and returns None if pulses are not taken."""
        if is_from_beat(options.get("headers")) and not self._may_send():
            return None
        return super().apply_async(*args, **options)

    def _may_send(self) -> bool:
        if self._sent >= UNCONFIRMED and are_taken():
            self._sent, self._next, self._wait = 0, 0.0, FIRST_WAIT
        self._sent += 1
        if self._sent <= UNCONFIRMED:
            return True
        if time.monotonic() < self._next:
            return False
        self._next, self._wait = time.monotonic() + self._wait, min(2 * self._wait, LAST_WAIT)
        return True


def are_taken() -> bool:
    """Whether workers have taken pulses recently."""
    heartbeat = Heartbeat.objects.first()
    pulsed_at = heartbeat.pulsed_at if heartbeat else None
    return pulsed_at is not None and pulsed_at > engine.now() - TRUSTED
