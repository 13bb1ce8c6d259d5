"""What the statements of a worker process took: one line per statement in a file."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db.backends.signals import connection_created

VARIABLE = "MATVIEWS_BENCH_SPENT"


def keep_time() -> None:
    """From now on write down the time of each statement, if a file is named for it."""
    if os.environ.get(VARIABLE):
        connection_created.connect(_watch, dispatch_uid=__name__)


def seconds(path: Path, part: str) -> float:
    """What the statements have taken of which `part` is a part."""
    lines = (line.split(" ", 1) for line in path.read_text().splitlines())
    return sum(float(took) for took, sql in lines if part in sql)


def _watch(connection: Any, **_kwargs: Any) -> None:
    if _time not in connection.execute_wrappers:
        connection.execute_wrappers.append(_time)


def _time(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
    started = time.perf_counter()
    try:
        return execute(sql, *arguments)
    finally:
        took = time.perf_counter() - started
        with Path(os.environ[VARIABLE]).open("a") as file:
            file.write(f"{took:.6f} {' '.join(sql.split())}\n")
