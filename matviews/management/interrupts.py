"""Ctrl-C and SIGTERM: the first asks to stop between batches, the second interrupts the batch."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["StopRequest", "stop_on_signal"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a person or a supervisor has asked the command to stop; called, it says so."""

    def __init__(self) -> None:
        #: The number of the signal that asked, 0 if none did.
        self.signal = 0

    def __call__(self) -> bool:
        return bool(self.signal)

    @property
    def returncode(self) -> int:
        """The exit status by which a shell recognizes the signal."""
        return 128 + self.signal


@contextmanager
def stop_on_signal(
    write: Callable[[str], object],
    sentence: str = "Stopping after this batch. Ctrl-C again interrupts it.",
) -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; the second raises KeyboardInterrupt.

    A signal that is ignored, as SIGINT is in a shell's background job, stays ignored.

    Args:
        write: shows a sentence to the person who pressed the keys.
        sentence: that the request was understood.
    """
    request = StopRequest()

    def handle(number: int, _frame: FrameType | None) -> None:
        if request():
            raise KeyboardInterrupt
        request.signal = number
        with suppress(RuntimeError):  # the signal interrupted a write to the same stream
            write(sentence)

    before = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
    except ValueError:  # not in the main thread, which alone receives signals
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
