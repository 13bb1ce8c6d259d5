"""Measure on the database that MATVIEWS_TEST_DB names, in a scratch database of its own."""

import argparse
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from .measured import Measured
    from .querysets import figures as querysets
    from .report import Figures
    from .timers import Timer

ENGINE, QUERYSETS, TRACKING, STRATEGY = "engine", "querysets", "tracking", "strategy"
MONITORING, FRESHNESS, ADDITIVE = "monitoring", "freshness", "additive"

REUSE = (0, 10_000)  # Celery closes its database connection after each task, or as good as never

# Batches of the long refresh. What runs in Python is the same everywhere, so the servers get fewer.
LONG, LONG_ON_SERVERS = 10_000, 3_000


def main() -> int:
    options = _options()
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    import django
    from django.test.utils import setup_databases, teardown_databases

    django.setup()
    databases = setup_databases(verbosity=0, interactive=False)
    try:
        if options.part in (None, ENGINE):
            _publish(_measure(options), options.json)
        if options.part in (None, QUERYSETS):
            _publish_querysets(_measure_querysets(options), options.json)
        if options.part in (None, TRACKING):
            _measure_tracking(options)
        if options.part in (None, STRATEGY):
            _measure_strategy(options)
        if options.part in (None, MONITORING):
            _measure_monitoring(options)
        if options.part in (None, FRESHNESS):
            _measure_freshness(options)
        if options.part in (None, ADDITIVE):
            _measure_additive(options)
    finally:
        teardown_databases(databases, verbosity=0)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="PATH", help="add the figures to this file")
    parser.add_argument(
        "--part",
        choices=(ENGINE, QUERYSETS, TRACKING, STRATEGY, MONITORING, FRESHNESS, ADDITIVE),
        help="measure only this part",
    )
    parser.add_argument("--runs", type=int, default=5, help="runs that medians are taken of")
    parser.add_argument("--batches", type=int, default=200, help="batches in a run")
    parser.add_argument(
        "--long",
        type=int,
        metavar="BATCHES",
        help=f"batches of the long refresh; {LONG} on SQLite, {LONG_ON_SERVERS} on the others",
    )
    parser.add_argument(
        "--only", nargs="*", default=(), metavar="VIEW", help="views of the part strategy"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="in the parts tracking and strategy, measure CPU time: for a busy machine with "
        "Linux and the database on it",
    )
    parser.add_argument("--views", type=int, default=1000, help="views that are idle")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="seconds of silence, and of writes, in the part freshness",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=1_000_000,
        help="source rows of the queryset views, of a tenth as many keys; on PostgreSQL also with "
        "a tenth and with five times as many",
    )
    return parser.parse_args()


def _measure(options: argparse.Namespace) -> "Figures":
    from tests.helpers.services import selected_database

    from . import measure, report, scheduled, through_redis

    database = selected_database()
    long = options.long or (LONG if database == "sqlite" else LONG_ON_SERVERS)
    with through_redis.broker() as address:
        return report.Figures(
            environment=_environment(address),
            database=database,
            synchronous=measure.synchronous(options.runs, options.batches),
            idle=measure.idle(options.runs, options.batches // 10),
            through_redis=tuple(
                through_redis.hops(address, reuse, options.runs, options.batches // 2)
                for reuse in REUSE
            ),
            long=measure.long(long),
            scheduled=scheduled.scheduled(options.views, options.runs),
        )


def _measure_querysets(options: argparse.Namespace) -> "querysets.Figures":
    from tests.helpers.services import selected_database

    from . import through_redis
    from .querysets import figures

    with through_redis.broker() as address:
        return figures.measure(selected_database(), address, options.rows, options.runs, _say)


def _measure_tracking(options: argparse.Namespace) -> None:
    from . import through_redis, tracking

    found = tracking.measure(options.rows, options.runs, _timer(options), _say)
    with through_redis.broker() as address:
        for reuse in REUSE:
            _say("from a commit to the view's row")
            found.append(tracking.until_seen(address, reuse, 10 * options.runs))
    _publish_measured(found, TRACKING, options.json)


def _measure_additive(options: argparse.Namespace) -> None:
    from .additive import measure

    found = measure.measure(options.rows, options.runs, _timer(options), _say)
    _publish_measured(found, ADDITIVE, options.json)


def _publish_measured(found: "list[Measured]", part: str, path: Path | None) -> None:
    from tests.helpers.services import selected_database

    from . import measured

    measured.show(found, f"{selected_database()}: {part}", _console())
    if path:
        measured.save(found, part, selected_database(), path)


def _measure_strategy(options: argparse.Namespace) -> None:
    from tests.helpers.services import selected_database

    from .strategy import measure, report

    cells = measure.measure(options.rows, options.runs, options.only, _timer(options), _say)
    report.show(cells, selected_database(), _console())
    if options.json:
        report.save(cells, selected_database(), options.json)


def _timer(options: argparse.Namespace) -> "Timer":
    from . import timers

    return timers.processor if options.processor_time else timers.elapsed


def _measure_monitoring(options: argparse.Namespace) -> None:
    from tests.helpers.services import selected_database

    from . import monitoring

    found = monitoring.measure(options.views, options.runs)
    monitoring.show(found, selected_database(), _console())
    if options.json:
        monitoring.save(found, selected_database(), options.json)


def _measure_freshness(options: argparse.Namespace) -> None:
    from tests.helpers.services import selected_database

    from . import freshness, through_redis

    with through_redis.broker() as address:
        measured = freshness.measure(address, options.views, options.seconds, options.runs, _say)
        found = list(measured)
    freshness.show(found, selected_database(), _console())
    if options.json:
        freshness.save(found, selected_database(), options.json)


def _say(what: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {what} ...", file=sys.stderr, flush=True)


def _environment(broker: str) -> dict[str, str]:
    import redis
    from django.db import connection

    with redis.Redis.from_url(broker) as client:
        redis_version = client.info("server")["redis_version"]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        connection.display_name: ".".join(map(str, connection.get_database_version())),
        "Redis": redis_version,
        "Python": platform.python_version(),
        "Django": version("django"),
        "Celery": version("celery"),
        "cores": str(os.cpu_count()),
        "load average before": f"{os.getloadavg()[0]:.1f}",
    }


def _publish(figures: "Figures", path: Path | None) -> None:
    from . import report

    report.show(figures, _console())
    if path:
        report.save(figures, path)


def _publish_querysets(figures: "querysets.Figures", path: Path | None) -> None:
    from tests.helpers.services import selected_database

    from .querysets import report

    report.show(figures, selected_database(), _console())
    if path:
        report.save(figures, selected_database(), path)


def _console() -> "Console":
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 110)


if __name__ == "__main__":
    sys.exit(main())
