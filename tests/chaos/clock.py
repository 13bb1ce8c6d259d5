"""A wall clock that is wrong, in a worker, a beat or a follower.

Covers `time.time()` and `time.time_ns()` wherever they are called, and `datetime.now()`,
`utcnow()` and `today()` in Celery, kombu, django-celery-beat and `django.utils.timezone`. Does not
cover `time.localtime()` and `time.gmtime()` without arguments, C code, and the monotonic clock,
which a change of the system's clock leaves alone too.
"""

import datetime as dt
import os
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

from .variables import CLOCK

__all__ = ["Clock", "install", "shift_datetimes"]

READ_EVERY = 0.2  # seconds
SHIFTED = ("celery", "kombu", "django_celery_beat", "django.utils.timezone")


class Clock:
    """How far the wall clock of a process is off, as a file says, which may change at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset, self._read_at = 0.0, -READ_EVERY

    def set(self, seconds: float) -> None:
        """Have the process that reads this file be so many seconds ahead."""
        draft = self._path.with_suffix(".draft")
        draft.write_text(str(seconds))
        draft.rename(self._path)

    @property
    def offset(self) -> float:
        """In seconds, as of a moment ago."""
        if time.monotonic() >= self._read_at + READ_EVERY:
            self._read_at = time.monotonic()
            self._offset = float(self._path.read_text()) if self._path.exists() else 0.0
        return self._offset


_clock: Clock | None = None


def install() -> None:
    """Have `time.time()` be off. Call it before anything is imported that binds the function."""
    global _clock
    _clock = clock = Clock(Path(os.environ[CLOCK]))
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + clock.offset
    time.time_ns = lambda: nanoseconds() + int(clock.offset * 1e9)


def shift_datetimes() -> None:
    """Have `datetime.now()` be off in the modules that have been imported."""
    if _clock is None:
        return
    shifted = ModuleType("datetime")
    vars(shifted).update(vars(dt), datetime=_Shifted)
    for name, module in list(sys.modules.items()):
        if not name.startswith(SHIFTED):
            continue
        for attribute, value in list(vars(module).items()):
            if value is datetime:
                setattr(module, attribute, _Shifted)
            elif value is dt:
                setattr(module, attribute, shifted)


class _OfDatetimes(type):
    """What is a datetime is an instance of the class below, which has none of its own."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)

    def __getattr__(cls, name: str) -> Any:
        return getattr(datetime, name)


class _Shifted(metaclass=_OfDatetimes):
    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        return datetime(*arguments, **named)  # noqa: DTZ001

    @staticmethod
    def now(tz: Any = None) -> datetime:
        return datetime.now(tz) + _offset()

    @staticmethod
    def today() -> datetime:
        return datetime.today() + _offset()  # noqa: DTZ002

    @staticmethod
    def utcnow() -> datetime:
        return datetime.utcnow() + _offset()  # noqa: DTZ003


def _offset() -> timedelta:
    assert _clock is not None
    return timedelta(seconds=_clock.offset)
