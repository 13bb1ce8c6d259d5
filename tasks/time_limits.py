"""Calls with a time limit to what may hang: mail servers, web addresses, hooks of the project."""

import threading
import time
from collections.abc import Callable, Mapping

from django.db import connections

__all__ = ["run_limited"]

#: The threads that may still be running in this process, by name.
_running: dict[str, threading.Thread] = {}


def run_limited(
    works: Mapping[str, Callable[[], object]], seconds: float
) -> dict[str, BaseException]:
    """Call functions at the same time, each in its own thread, and wait for a limited time.

    Nothing can stop a thread. One that hangs keeps running, and until it ends, nothing else is
    called under its name.

    Args:
        works: the functions, by name.
        seconds: how long to wait for all of them.

    Returns:
        The errors by name; `TimeoutError` for functions that have not ended.
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
