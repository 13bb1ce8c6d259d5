"""A view that fails for a day: how often it tries, and what that leaves in tables, log and alarms.

The day passes by moving the times of the bookkeeping into the past.
"""

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from matviews import engine, signals
from matviews.models import (
    Alarm,
    Change,
    DirtyKeys,
    PhaseRun,
    Refresh,
    RefreshSchedule,
    ViewChange,
    ViewControl,
)
from matviews.states import ViewState
from matviews.tasks import alarms, inline
from matviews.tasks.heartbeat import record
from matviews.tasks.schedules import reconcile
from tests.helpers.engine import shard_of, travel
from tests.helpers.poison import Poisoned

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

COUNT = 60
BAD = 7
CHANGED = 5  # rows between two ticks


@pytest.fixture
def source() -> Iterator[Poisoned]:
    """A tracked view that fails for one bad row, because none may be parked."""
    poisoned = Poisoned(options={"max_parked_keys": 0})
    with poisoned.ready():
        poisoned.fill(COUNT)
        poisoned.refresh()
        poisoned.poison("check", BAD)
        yield poisoned


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What people are told, in order."""
    lines: list[str] = []

    def hear(*, alarm: Alarm, **_kwargs: Any) -> None:
        lines.append(f"{alarm.event} {alarm.kind}")

    for signal in (signals.view_alarm, signals.view_alarm_ended):
        signal.connect(hear)
    yield lines
    for signal in (signals.view_alarm, signals.view_alarm_ended):
        signal.disconnect(hear)


@pytest.mark.parametrize("minutes", [30, pytest.param(5, marks=pytest.mark.long)])
def test_a_day_of_failing_is_bounded(
    source: Poisoned,
    told: list[str],
    minutes: int,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A schedule asks every few minutes, rows change in between, and maintenance runs as often."""
    control = ViewControl.objects.get(label=source.View._meta.label)
    RefreshSchedule.objects.create(view=control, every=minutes)
    reconcile()
    caplog.set_level(logging.INFO, "matviews")
    for tick in range(24 * 60 // minutes):
        first = CHANGED * tick % COUNT + 1
        source.change(*range(first, first + CHANGED))
        engine.request(source.View)
        maintain()
        inline.run_until_idle([shard_of(source.View).pk])
        travel(timedelta(minutes=minutes))
    lines = caplog.records
    tries = sum(line.getMessage().startswith("phase failed") for line in lines)
    rows = {each.__name__: each._base_manager.count() for each in TABLES}
    rows["keys"] = sum(DirtyKeys.objects.values_list("count", flat=True))
    size = sum(len(line) for line in caplog.text.splitlines())
    with capsys.disabled():
        print(
            f"\na day of failing on {connection.vendor}: {tries} tries, rows {rows}, "
            f"{len(lines)} lines, {size:,} bytes, {len(told)} times told: {told}"
        )

    assert 20 <= tries <= 30
    assert rows["Refresh"] + rows["PhaseRun"] <= 14
    assert sum(Refresh.objects.values_list("repeats", flat=True)) >= tries - 3
    # a changed row is kept as often as it has changed, however many tries have failed
    changes = CHANGED * 24 * 60 // minutes
    assert rows["Change"] == 0
    assert rows["ViewChange"] + rows["keys"] <= changes
    assert len(lines) <= 10 * tries
    assert size < 300_000
    assert (told[0], told.count("raised suspended")) == ("raised failed", 1)
    assert len(told) <= 8
    assert rows["Alarm"] == 1
    [status] = engine.view_statuses([control.label])
    assert status.state == ViewState.SUSPENDED

    source.heal(BAD)
    source.refresh(force=True)
    assert source.right() == set(range(1, COUNT + 1))


TABLES = [Refresh, PhaseRun, Change, ViewChange, DirtyKeys, Alarm]


def maintain() -> None:
    """What the maintenance task does about a view that fails."""
    engine.move_log()
    engine.wake()
    engine.fold_failures()
    record(maintenance_ended_at=engine.now())
    alarms.notify()
