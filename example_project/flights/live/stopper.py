"""Ends processes when whoever started them closes the pipe to this one, or dies, however it dies.

A script of its own, with one process group per line of its standard input. The first, which the
others talk to, is ended last.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

__all__: list[str] = []

GRACE = 8.0  # seconds for a worker to finish its batch
# What os.killpg raises where nothing is left; the second on macOS, for a group of zombies.
GONE = (ProcessLookupError, PermissionError)


def stop(groups: Sequence[int]) -> None:
    # SIGINT is what all of them would get from a terminal.
    for number in (signal.SIGINT, signal.SIGKILL):
        for group in groups:
            with suppress(*GONE):
                os.killpg(group, number)
        deadline = time.monotonic() + GRACE
        while any(map(_is_there, groups)) and time.monotonic() < deadline:
            time.sleep(0.05)


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except GONE:
        return False
    return True


if __name__ == "__main__":
    started = [int(line) for line in sys.stdin]
    stop(started[1:])
    stop(started[:1])
