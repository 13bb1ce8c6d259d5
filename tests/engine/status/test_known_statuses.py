"""A status that is kept says what one that is computed afresh says."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from matviews import changes, engine
from matviews.engine import ViewStatus
from matviews.engine.status import known_statuses, records, statuses
from matviews.models import (
    ParkedKey,
    Refresh,
    RefreshSchedule,
    TrackedTable,
    VerifyRun,
    ViewControl,
    ViewShard,
)
from matviews.states import RefreshState, ViewState
from tests.helpers.source_views import LABEL, sourced_up_to_date
from tests.helpers.view_classes import run
from tests.sample.models import Item, Limited

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

UNTRACKED = "sample.Limited"
VIEWS = (LABEL, UNTRACKED)
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def views(own_views: None) -> Iterator[type[Any]]:
    """A tracked view and one with hooks, both up to date, whose statuses are kept."""
    engine.sync_controls()
    view = sourced_up_to_date()
    run(Limited)
    look()
    yield view
    changes.remove(engine.alias())


def controls() -> Any:
    return ViewControl.objects.filter(label__in=VIEWS)


def look() -> dict[str, ViewStatus]:
    found = {each.label: each for each in engine.view_statuses(counted=False)}
    return {label: found[label] for label in VIEWS}


def look_again() -> dict[str, ViewStatus]:
    known_statuses._STATUSES.clear()
    records._controls.cache_clear()
    records._shards.cache_clear()
    return look()


def values(statuses: dict[str, ViewStatus]) -> dict[str, Any]:
    """All of them, without the moment at which they were found."""
    found = {label: asdict(each) for label, each in statuses.items()}
    for each in found.values():
        for name in ("age", "staleness", "change_lag", "retry_in", "waiting_for"):
            each[name] = each[name] and round(each[name] / timedelta(minutes=1))
    return found


def add_schedule() -> None:
    for view in controls():
        RefreshSchedule.objects.create(view=view, every=1, period="minutes")


def park() -> None:
    shard = ViewShard.objects.get(view__label=LABEL)
    moment = engine.now()
    ParkedKey.objects.create(
        shard=shard, phase="insert", key=[1], fingerprint="", first_seen=moment, last_seen=moment,
        retry_at=moment,
    )  # fmt: skip
    ViewShard.objects.filter(pk=shard.pk).update(parked_count=1)


def verify() -> None:
    for view in controls():
        VerifyRun.objects.create(view=view, requested_at=engine.now())


def fail() -> None:
    Refresh.objects.filter(view__label__in=VIEWS).update(
        state=RefreshState.FAILED, error="division by zero"
    )


CHANGES: dict[str, Callable[[], object]] = {
    "paused": lambda: controls().update(paused=True, paused_by="Ann"),
    "disabled": lambda: controls().update(enabled=False),
    "suspended": lambda: controls().update(suspended_at=engine.now(), failures=20),
    "failing": lambda: controls().update(failures=2, failing_since=engine.now()),
    "failed": fail,
    "a target": lambda: controls().update(freshness_target=HOUR),
    "a target missed": lambda: controls().update(freshness_target=timedelta(microseconds=1)),
    "a queue": lambda: controls().update(queue="reports"),
    "another definition": lambda: controls().update(fingerprints={"insert": "other"}),
    "what a verification found": lambda: controls().update(
        differing={"since": "2026-01-01T00:00:00+00:00", "missing": 1}
    ),
    "a verification": verify,
    "a success": lambda: controls().update(last_insert=engine.now() - 3 * HOUR),
    "never built": lambda: controls().update(last_delete=None),
    "echoes": lambda: controls().update(echoes=50),
    "a schedule": add_schedule,
    "a parked key": park,
    "a request": lambda: [engine.request(label, force=True) for label in VIEWS],
    "a change": lambda: Item.objects.create(value=5),
    "triggers that are gone": lambda: TrackedTable.objects.update(triggers=[]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_each_kind_of_change(change: str) -> None:
    before = values(look())
    CHANGES[change]()
    after = values(look())
    assert after == values(look_again())
    assert after != before


def two_hours_later() -> Any:
    """Only the clock goes on: nothing in the bookkeeping changes."""
    return mock.patch.object(statuses, "now", side_effect=lambda: engine.now() + 2 * HOUR)


def test_nothing_of_a_quiet_view_is_found_again_but_its_age() -> None:
    before = look()
    with (
        two_hours_later(),
        mock.patch.object(statuses, "compute_status", wraps=statuses.compute_status) as computed,
        mock.patch.object(ViewControl, "from_db", wraps=ViewControl.from_db) as from_db,
    ):
        after = look()
        assert not {call.args[0] for call in computed.call_args_list} & set(VIEWS)
        assert from_db.call_count == 0
        assert values(after) == values(look_again())
    for label in VIEWS:
        assert (after[label].age or HOUR) > (before[label].age or HOUR) + HOUR


def test_a_quiet_view_falls_behind_as_time_passes() -> None:
    controls().update(freshness_target=HOUR)
    assert look()[UNTRACKED].on_time
    with two_hours_later():
        found = look()
    assert found[UNTRACKED].faults == (ViewState.BEHIND,)
    assert found[LABEL].on_time  # its changes are logged, and there are none
    run(Limited)
    assert look()[UNTRACKED].on_time


def test_statuses_do_not_share_what_a_caller_may_change() -> None:
    [first] = records.load_records([UNTRACKED])
    first.open_refreshes.append("mine")
    first.paused = True
    [second] = records.load_records([UNTRACKED])
    assert (second.open_refreshes, second.paused) == ([], False)
