"""What beat and `maintain` cost while many views are on schedules and none is due."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from celery import current_app
from django.db.models import Model
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks
from django_celery_beat.schedulers import DatabaseScheduler

from matviews import tasks
from matviews.models import RefreshSchedule, ViewControl, ViewShard
from matviews.registry import registry
from matviews.tasks.schedules import reconcile

from .hooks import NoHooksMixin
from .processor import Processor
from .statements import statements

# In a minute beat looks every 5 seconds, and writes down and reads all again every 3 minutes.
LOOKS, READS = 12, 1 / 3


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one call: statements, and milliseconds of CPU time."""

    statements: int
    #: Of this process.
    cpu: float
    #: Of its session on the server.
    server: float = 0.0

    @property
    def total(self) -> float:
        """Of both."""
        return self.cpu + self.server


@dataclass(frozen=True, kw_only=True)
class Scheduled:
    """Views with a schedule each, of which none is due.

    Attributes:
        views: how many.
        minute: what a minute of beat and `maintain` costs.
        peer_minute: what a minute of beat alone costs, with as many periodic tasks made by hand.
        look: beat looks whether something is due.
        read: beat reads all periodic tasks.
        maintain: the task `matviews.maintain`.
        reconcile: what the task spends on the schedules.
        peer_look, peer_read: the same of the peer.
    """

    views: int
    minute: Cost
    peer_minute: Cost
    look: Cost
    read: Cost
    maintain: Cost
    reconcile: Cost
    peer_look: Cost
    peer_read: Cost


def scheduled(views: int, runs: int) -> Scheduled:
    with registry.preserved():
        _make_views(views)
        look, read = _beat(runs)
        maintain, alone = cost(tasks.maintain, runs), cost(reconcile, runs)
    with _made_by_hand(views):
        peer_look, peer_read = _beat(runs)
    return Scheduled(
        views=views,
        minute=_minute(look, read, maintain), peer_minute=_minute(peer_look, peer_read),
        look=look, read=read, maintain=maintain, reconcile=alone,
        peer_look=peer_look, peer_read=peer_read,
    )  # fmt: skip


def _make_views(count: int) -> None:
    """Views that are fresh, each on a schedule of an hour."""
    labels = [_define(number) for number in range(count)]
    now = timezone.now()
    ViewControl.objects.bulk_create(
        ViewControl(label=label, last_insert=now, last_update=now, last_delete=now)
        for label in labels
    )
    views = ViewControl.objects.filter(label__in=labels)
    ViewShard.objects.bulk_create(ViewShard(view=view, number=0) for view in views)
    RefreshSchedule.objects.bulk_create(
        RefreshSchedule(view=view, every=1, period="hours") for view in views
    )
    reconcile()
    PeriodicTask.objects.filter(task="matviews.maintain").update(last_run_at=now)


def _define(number: int) -> str:
    from django.apps.registry import Apps

    meta = type("Meta", (), {"app_label": "benchmarks", "apps": Apps()})
    members = {"__module__": __name__, "Meta": meta}
    view: Any = type(f"View{number}", (NoHooksMixin, Model), members)
    return registry.register(view).label


@contextmanager
def _made_by_hand(count: int) -> Iterator[None]:
    """Only periodic tasks that have nothing to do with this package."""
    RefreshSchedule.objects.all().delete()
    PeriodicTask.objects.all().delete()
    hour = IntervalSchedule.objects.create(every=1, period="hours")
    PeriodicTask.objects.bulk_create(
        PeriodicTask(
            name=f"task {number}", task="bench.hop", args="[0]", interval=hour,
            last_run_at=timezone.now(),
        )
        for number in range(count)
    )  # fmt: skip
    PeriodicTasks.update_changed()
    try:
        yield
    finally:
        PeriodicTask.objects.all().delete()


def _beat(runs: int) -> tuple[Cost, Cost]:
    """A beat in this process: what a look costs, and what it costs to read all again."""
    scheduler: Any = DatabaseScheduler(current_app._get_current_object())
    assert scheduler.tick() > 0, "something is due"

    def read() -> None:
        changed = timezone.now() + timedelta(microseconds=1)
        PeriodicTasks.objects.update(last_update=changed)
        scheduler.tick()

    return cost(scheduler.tick, runs), cost(read, runs)


def cost(work: Callable[[], object], runs: int) -> Cost:
    with statements() as found:
        work()
    own, server = [], []
    for _ in range(runs):
        processor = Processor()
        work()
        own.append(processor.own)
        server.append(processor.server)
    return Cost(statements=len(found), cpu=statistics.median(own), server=statistics.median(server))


def _minute(look: Cost, read: Cost, maintain: Cost | None = None) -> Cost:
    maintain = maintain or Cost(statements=0, cpu=0)
    return Cost(
        statements=round(LOOKS * look.statements + READS * read.statements) + maintain.statements,
        cpu=LOOKS * look.cpu + READS * read.cpu + maintain.cpu,
    )
