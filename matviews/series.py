"""The series that the metrics consist of, from one reading of the bookkeeping.

Every process reads the same values, so dashboards take the maximum over processes. `SERIES` has
them all.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

from django.db import DatabaseError, InterfaceError
from django.db.models import Min

from . import engine
from .answer_cache import CachedAnswer
from .databases.clock import UtcNow
from .engine import ViewStatus, ViewTotals
from .health import HealthState, check_health, recent_statuses
from .models import Change, Heartbeat
from .registry import registry

__all__ = ["SERIES", "Sample", "Series", "collect", "collect_groups"]

#: How long the rows of the views are kept: counting a table may read all of it.
ROWS_SECONDS = 60.0


class Series(NamedTuple):
    """A metric: what its samples mean, and the names of their labels."""

    #: With the prefix "matviews_"; that of a counter ends in "_total".
    name: str
    help: str
    labels: tuple[str, ...] = ("view",)

    @property
    def kind(self) -> str:
        """Its type: "counter" or "gauge"."""
        return "counter" if self.name.endswith("_total") else "gauge"


class Sample(NamedTuple):
    """A value of a series."""

    series: Series
    #: The values of its labels.
    labels: tuple[str, ...]
    value: float


UP = Series("matviews_up", "1 if the bookkeeping could be read.", ())
HEALTH = Series("matviews_health_state", "1 for the present health.", ("state",))
MAINTENANCE = Series(
    "matviews_maintenance_age_seconds", "Time since the maintenance task last ran.", ()
)
LOG = Series("matviews_change_log_age_seconds", "Age of the oldest entry of the change log.", ())
STATE = Series("matviews_view_state", "1 for the present state of the view.", ("view", "state"))
ON_TIME = Series("matviews_view_on_time", "1 if the view is on time.")
AGE = Series("matviews_view_age_seconds", "Time since the last success of the view.")
LAG = Series(
    "matviews_view_change_lag_seconds",
    "Age of the oldest change that the view has yet to process; only where changes are tracked.",
)
STALENESS = Series(
    "matviews_view_staleness_seconds", "What the target is compared with: change lag, or else age."
)
TARGET = Series("matviews_view_target_seconds", "How old the rows of the view may be.")
ROWS = Series("matviews_view_rows", "Rows of the view, estimated if it is large.")
FAILING = Series("matviews_view_failures_in_a_row", "Failed refreshes since the last success.")
SUSPENDED = Series("matviews_view_suspended", "1 if the view is suspended.")
CHANGES = Series("matviews_pending_changes", "Logged changes that no batch has read yet.")
REQUESTS = Series("matviews_waiting_requests", "Requests that no batch has begun to serve.")
PARKED = Series("matviews_parked_keys", "Parked keys, where there are any.", ("view", "phase"))
BATCHES = Series("matviews_batches_total", "Batches that committed.", ("view", "phase"))
WRITTEN = Series("matviews_rows_written_total", "Rows that batches wrote.", ("view", "phase"))
WORK = Series(
    "matviews_work_seconds_total", "Time that committed batches worked.", ("view", "phase")
)
FAILED = Series(
    "matviews_batch_failures_total",
    "Batches that were rolled back or killed their worker.",
    ("view", "phase"),
)
REFRESHES = Series("matviews_refreshes_total", "Refreshes that have ended.", ("view", "outcome"))

SERIES = (
    UP, HEALTH, MAINTENANCE, LOG, STATE, ON_TIME, AGE, LAG, STALENESS, TARGET, ROWS, FAILING,
    SUSPENDED, CHANGES, REQUESTS, PARKED, BATCHES, WRITTEN, WORK, FAILED, REFRESHES,
)  # fmt: skip


def collect() -> list[Sample]:
    """Every sample, in a number of statements that does not depend on the number of views.

    They are kept for a while, if there are many. If the database does not answer, or its tables are
    missing, there is only `UP`, with 0.
    """
    return [sample for group in collect_groups() for sample in group]


def collect_groups() -> list[list[Sample]]:
    """The samples of `collect`, in groups. One that has not changed is the same list as before."""
    try:
        # Counters are read each time: they must never fall between processes.
        return [recent_samples(), *map(_of_totals, engine.view_totals())]
    except (DatabaseError, InterfaceError):
        engine.drop_broken_connection()
        return [[Sample(UP, (), 0)]]


#: What the bookkeeping says, kept a thousand times as long as it takes to find.
recent_samples = CachedAnswer(lambda: [Sample(UP, (), 1), *_common(), *_of_views()], 0.0)
_row_counts = CachedAnswer(
    lambda: engine.count_rows(registry), ROWS_SECONDS, longest=10 * ROWS_SECONDS
)


def _common() -> Iterator[Sample]:
    found = check_health(recent_statuses).state
    yield from (Sample(HEALTH, (state.value,), state is found) for state in HealthState)
    heartbeat = Heartbeat.objects.first()
    if heartbeat and heartbeat.maintenance_ended_at:
        yield Sample(MAINTENANCE, (), _seconds(engine.now() - heartbeat.maintenance_ended_at))
    age = Change.objects.order_by().aggregate(age=UtcNow() - Min("logged_at"))["age"]
    yield Sample(LOG, (), _seconds(age or timedelta()))


def _of_views() -> Iterator[Sample]:
    rows, waiting = _row_counts(), engine.backlog()
    for status in recent_statuses():
        view = (status.label,)
        yield Sample(STATE, (status.label, status.state.value), 1)
        yield Sample(ON_TIME, view, status.on_time)
        yield from _times(status)
        yield Sample(FAILING, view, status.failures)
        yield Sample(SUSPENDED, view, status.suspended_at is not None)
        yield Sample(CHANGES, view, waiting.changes.get(status.label, 0))
        yield Sample(REQUESTS, view, waiting.requests.get(status.label, 0))
        if count := rows.get(status.label):
            yield Sample(ROWS, view, count.rows)
    for (label, phase), keys in waiting.parked.items():
        yield Sample(PARKED, (label, phase.value), keys)


def _times(status: ViewStatus) -> Iterator[Sample]:
    lag = status.change_lag
    if lag is None and status.staleness == timedelta():  # every change is logged, and none waits
        lag = timedelta()
    times = {AGE: status.age, LAG: lag, STALENESS: status.staleness, TARGET: status.target}
    for series, time in times.items():
        if time is not None:
            yield Sample(series, (status.label,), _seconds(time))


def _seconds(time: timedelta) -> float:
    return time.total_seconds()


_known_totals: dict[str, tuple[ViewTotals, list[Sample]]] = {}


def _of_totals(totals: ViewTotals) -> list[Sample]:
    known = _known_totals.get(totals.label)
    if known is None or known[0] != totals:
        known = _known_totals[totals.label] = totals, list(_counters(totals))
    return known[1]


def _counters(totals: ViewTotals) -> Iterator[Sample]:
    for phase, done in totals.phases.items():
        labels = (totals.label, phase.value)
        yield Sample(BATCHES, labels, done.batches)
        yield Sample(WRITTEN, labels, done.rows)
        yield Sample(WORK, labels, done.seconds)
        yield Sample(FAILED, labels, done.failures)
    for outcome, count in totals.refreshes.items():
        yield Sample(REFRESHES, (totals.label, outcome.value), count)
