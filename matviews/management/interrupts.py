"""Ctrl-C and SIGTERM: the first is a wish to stop between batches, the second interrupts."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["Wish", "interruptible"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Wish:
    """Whether a person, or a supervisor, wishes to stop.

    Attributes:
        signal: number of the signal that said so, 0 if none did.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> bool:
        return bool(self.signal)

    @property
    def returncode(self) -> int:
        """What a shell reports of a program that this signal ended."""
        return 128 + self.signal


@contextmanager
def interruptible(tell: Callable[[str], object]) -> Iterator[Wish]:
    """Let the first Ctrl-C or SIGTERM be a wish; the second raises KeyboardInterrupt.

    A signal that is ignored, as SIGINT is in a shell's background job, stays so.
    """
    wish = Wish()

    def note(number: int, _frame: FrameType | None) -> None:
        if wish():
            raise KeyboardInterrupt
        wish.signal = number
        with suppress(RuntimeError):  # the signal came while the same stream was written to
            tell("Stopping after this batch. Ctrl-C again interrupts it.")

    before = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread, where no signal arrives
        yield wish
        return
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
