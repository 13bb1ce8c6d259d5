"""What it costs to watch many views of which none has anything to do: metrics, health, maintenance.

The views have a `source()`, triggers on the tables that it reads, and a schedule of a minute each.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from django.apps.registry import Apps
from django.db import connection, models
from django.db.models import F, Model, QuerySet
from django.test import RequestFactory
from django.utils import timezone
from rich.console import Console
from rich.table import Table

from matviews import MaterializedView, answer_cache, changes, engine, health, metrics, series, tasks
from matviews.json_fields import Checkpoint
from matviews.models import RefreshSchedule, ViewChange, ViewControl, ViewShard
from matviews.queryset import fingerprint_of, plan_of
from matviews.registry import registry
from matviews.tasks.schedules import reconcile

from .processor import Processor
from .report import add
from .scheduled import Cost, cost
from .statements import statements

__all__ = ["MOST_CPU", "Watched", "idle_views", "measure", "save", "show"]

MOST_CPU = 600.0  # milliseconds in a minute, with the server's: 1 % of a core
LATER = 1e9  # seconds: what was kept before is forgotten
MINUTES = 10
SCRAPES, LOOKS = 15, 10  # seconds between two scrapes of the metrics, and two looks at the health
SOURCES = 20  # tables that the views read


@contextmanager
def idle_views(count: int) -> Iterator[None]:
    """Views with a `source()` and triggers, each on a schedule of a minute, all up to date."""
    sources = [_source(number) for number in range(min(SOURCES, count))]
    views = [_view(number, sources[number % len(sources)]) for number in range(count)]
    with registry.preserved(), _tables(sources + views):
        for other in list(registry):
            registry.unregister(other.label)
        for view in views:
            registry.register(view)
        engine.sync_controls()
        changes.install(connection.alias)
        _build(views)
        yield
        changes.remove(connection.alias)
        ViewControl.objects.filter(label__in=[view._meta.label for view in views]).delete()


def _source(number: int) -> Any:
    return _model(f"IdleSource{number}", (Model,), value=models.IntegerField())


def _view(number: int, source: Any) -> Any:
    def rows(cls: type) -> QuerySet[Any, Any]:
        return source._base_manager.values("value", key=F("pk"))  # type: ignore[no-any-return]

    return _model(
        f"Idle{number}", (MaterializedView, Model), key=models.BigIntegerField(unique=True),
        value=models.IntegerField(), source=classmethod(rows),
    )  # fmt: skip


def _model(name: str, bases: tuple[type, ...], **members: Any) -> Any:
    meta = type("Meta", (), {"app_label": "benchmarks", "apps": Apps()})
    return type(name, bases, {"__module__": __name__, "Meta": meta, **members})


@contextmanager
def _tables(made: list[Any]) -> Iterator[None]:
    with connection.schema_editor() as editor:
        for each in made:
            editor.create_model(each)
    try:
        yield
    finally:
        with connection.schema_editor() as editor:
            for each in made:
                editor.delete_model(each)


def _build(views: list[Any]) -> None:
    """Record that all phases have succeeded, as refreshes would."""
    now = timezone.now()
    for view in views:
        definition = registry.find(view)
        phases = definition.options.phases
        exact = plan_of(definition, connection.alias).exact_fingerprint
        ViewControl.objects.filter(label=definition.label).update(
            last_insert=now, last_update=now, last_delete=now,
            fingerprints=dict.fromkeys(phases, fingerprint_of(definition, connection.alias)),
        )  # fmt: skip
        ViewShard.objects.filter(view__label=definition.label).update(
            checkpoints=dict.fromkeys(phases, Checkpoint(0, exact))
        )
    ViewChange.objects.all().delete()
    labels = [view._meta.label for view in views]
    RefreshSchedule.objects.bulk_create(
        RefreshSchedule(view=view, every=1, period="minutes")
        for view in ViewControl.objects.filter(label__in=labels)
    )
    reconcile()


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Views that somebody watches.

    Attributes:
        views: how many.
        samples: of a scrape.
        statuses: finding the status of each view, which a scrape and a look share for a while.
        scrape, look: one with statuses that are kept.
        maintain: the task `matviews.maintain`.
        minute: what all of a minute takes, with the maintenance.
    """

    views: int
    samples: int
    statuses: Cost
    scrape: Cost
    look: Cost
    maintain: Cost
    minute: Cost


def measure(views: int, runs: int) -> Watched:
    with idle_views(views):
        for work in (_scrape, _look, tasks.maintain):
            work()  # what is compiled once
        return Watched(
            views=views,
            samples=len(series.collect()),
            statuses=cost(lambda: engine.view_statuses(counted=False), runs),
            scrape=cost(_uncached_scrape, runs), look=cost(_look, runs),
            maintain=cost(tasks.maintain, runs), minute=_minute(),
        )  # fmt: skip


def _scrape() -> None:
    """With whatever is kept."""
    assert metrics.metrics(RequestFactory().get("/")).content.startswith(b"# HELP")


def _uncached_scrape() -> None:
    series.recent_samples.forget()
    _scrape()


def _look() -> None:
    assert health.health(RequestFactory().get("/")).content


def _minute() -> Cost:
    """Of ten minutes of scrapes, looks and maintenance, a tenth.

    Maintenance finds the statuses for itself: it runs in another process than the addresses.
    """
    clock, processor = _Clock(), Processor()
    with patch.object(answer_cache, "time", clock), statements() as found:
        for second in range(60 * MINUTES):
            clock.second = second
            if second % SCRAPES == 0:
                _scrape()
            if second % LOOKS == 0:
                _look()
            if second % 60 == 0:
                tasks.maintain()
    return Cost(
        statements=round(len(found) / MINUTES), cpu=processor.own / MINUTES,
        server=processor.server / MINUTES,
    )  # fmt: skip


class _Clock:
    """Seconds of the simulated minutes, and the time that work really takes."""

    second = 0

    def monotonic(self) -> float:
        return LATER + self.second + time.process_time()


def show(found: Watched, database: str, console: Console) -> None:
    title = f"{database}: {found.views} idle views, {found.samples} samples"
    table = Table(title=title, title_justify="left")
    for column in ("", "statements", "processor ms", "server ms", "both"):
        table.add_column(column, justify="right" if column else "left")
    lines = {
        "statuses of all views": found.statuses, "a scrape, statuses kept": found.scrape,
        "a look at the health, kept": found.look, "matviews.maintain": found.maintain,
        f"a minute (at most {MOST_CPU:.0f} ms)": found.minute,
    }  # fmt: skip
    for name, each in lines.items():
        times = (f"{time:.0f}" for time in (each.cpu, each.server, each.total))
        table.add_row(name, f"{each.statements}", *times)
    console.print(table)


def save(found: Watched, database: str, path: Path) -> None:
    add(path, database, {"monitoring": asdict(found)})
