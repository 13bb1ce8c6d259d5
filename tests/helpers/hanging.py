"""Work that hangs until a test ends, for what runs with a time limit."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from matviews.tasks import time_limits


@contextmanager
def until_the_end() -> Iterator[threading.Event]:
    """What waits for the event hangs until the block ends; then its threads end too."""
    event = threading.Event()
    yield event
    event.set()
    for thread in time_limits._running.values():
        thread.join(20)
