"""Answers that are expensive to find, cached for a while in this process."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["CachedAnswer"]

T = TypeVar("T")
#: An answer is cached for this many times as long as it took, so that finding it again and again
#: takes at most a thousandth of the time, for any number of views.
FACTOR = 1000
MAX_SECONDS = 60.0


class CachedAnswer(Generic[T]):
    """What a function returned last, for some seconds; for longer, if it took long.

    A function that raises is called again the next time. While one thread calls it, the others get
    what it returned last.
    """

    def __init__(self, find: Callable[[], T], seconds: float, longest: float = MAX_SECONDS) -> None:
        self._find, self._seconds, self._longest = find, seconds, longest
        self._last: tuple[float, T] | None = None

    def __call__(self) -> T:
        """The answer, found now unless it is cached."""
        last = self._last
        if last is None or time.monotonic() > last[0]:
            self._last = last = self._found_again(last)
        return last[1]

    def _found_again(self, last: tuple[float, T] | None) -> tuple[float, T]:
        """The answer, and until when it is cached."""
        began = time.monotonic()
        if last:  # a time limit, not a lock: a lock would stay taken in a process forked meanwhile
            self._last = (began + self._longest, last[1])
        try:
            answer = self._find()
        except BaseException:
            self._last = last
            raise
        ended = time.monotonic()
        lasting = min(max(self._seconds, FACTOR * (ended - began)), self._longest)
        return ended + lasting, answer

    def forget(self) -> None:
        """Call the function the next time, however recent its answer is."""
        self._last = None
