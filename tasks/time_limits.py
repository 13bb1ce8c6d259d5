"""Calling what may hang, for a limited time: mail servers, web addresses, hooks of the project."""

import threading
import time
from collections.abc import Callable, Mapping

from django.db import connections

__all__ = ["run_limited"]

#: By name, what may still be running in this process.
_running: dict[str, threading.Thread] = {}


def run_limited(
    works: Mapping[str, Callable[[], object]], seconds: float
) -> dict[str, BaseException]:
    """Call functions at the same time, each in a thread of its own, for so many seconds in all.

    Nothing can stop a thread. One that hangs is left to itself, and while it does, nothing else of
    its name is called.

    Args:
        works: by name, what to call.
        seconds: how long to wait.

    Returns:
        By name, the errors; `TimeoutError` for what has not ended.
    """
    errors: dict[str, BaseException] = {}
    ended: set[str] = set()
    started = {
        name: _start(name, work, errors, ended)
        for name, work in works.items()
        if name not in _running or not _running[name].is_alive()
    }
    deadline = time.monotonic() + seconds
    for thread in started.values():
        thread.join(max(0.0, deadline - time.monotonic()))
    late = TimeoutError(f"it took longer than {seconds:g} seconds")
    return {name: errors.get(name, late) for name in works if name in errors or name not in ended}


def _start(
    name: str,
    work: Callable[[], object],
    errors: dict[str, BaseException],
    ended: set[str],
) -> threading.Thread:
    def call() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - whatever a project's hook raises
            errors[name] = error
        finally:
            connections.close_all()  # those of this thread
            ended.add(name)

    thread = threading.Thread(target=call, name=f"matviews-{name}", daemon=True)
    _running[name] = thread
    thread.start()
    return thread
