"""What keeps views from being refreshed: problems, for monitoring and for alarms.

They are found in the bookkeeping and the list of triggers, without connecting to the broker.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple

from django.db import DatabaseError, InterfaceError
from django.db.models import F, Subquery
from django.utils import translation

from .. import engine
from ..conf import get_settings
from ..databases.clock import UtcNow
from ..engine import ViewStatus
from ..exceptions import NOT_MIGRATED
from ..models import Change, Heartbeat, RefreshSchedule
from ..states import ViewState
from . import broker_errors, heartbeat
from .queues import BATCHES, queue_of

__all__ = ["NO_POLLING", "OF_SOME_ROWS", "Health", "HealthState", "Problem", "check_health"]

#: The kind of problem that makes views late that are refreshed on change.
NO_POLLING = "no polling"
#: The kind of problem of a view whose refreshes change its own source.
LOOP = "loop"
UNVERIFIED = "unverified"
#: Seconds that an open refresh may wait for a worker.
MAX_WAIT = timedelta(minutes=2)
#: How old the oldest entry of the change log may be: the maintenance task moves it each minute.
MAX_LOG_AGE = timedelta(minutes=10)
#: How many entries it may have: there are as many after a large bulk load, but for minutes only.
MAX_LOG_ENTRIES = 1_000_000
# While the first refresh of a definition runs, these are no problem.
BEING_BUILT = (ViewState.NEVER_BUILT, ViewState.CHANGED)
# These explain no other fault of a view, and may last: people accept a bad row.
OF_SOME_ROWS = (ViewState.PARKED, ViewState.DIFFERS)


class HealthState(StrEnum):
    """How well views are refreshed; the worst is last."""

    FINE = "fine"
    #: Some views have a problem.
    DEGRADED = "degraded"
    #: Nothing may be refreshed: the database, the maintenance task or the workers do not answer,
    #: or every view fails.
    BROKEN = "broken"

    @property
    def _rank(self) -> int:
        return list(HealthState).index(self)


class Problem(NamedTuple):
    """Something that a person should know about."""

    state: HealthState
    #: What it is, for programs: the state of a view, or "database", "not migrated", "maintenance",
    #: "beat", "broker", "no worker", "no polling", "log", "loop", "unverified" or "all views".
    kind: str
    #: The label of the view; "" if it concerns all.
    view: str
    #: The same for people, without values of rows.
    text: str
    #: The error with which the view failed, as in the history; "" without one.
    error: str = ""
    #: Labels of the views that it makes late; none: all of them, if it makes any late.
    views: tuple[str, ...] = ()


class Health(NamedTuple):
    """What is wrong, and how bad it is."""

    state: HealthState
    problems: tuple[Problem, ...]

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> "Health":
        """The health with these problems, the worst of them first."""
        found = sorted(problems, key=lambda each: (-each.state._rank, each.view, each.kind))
        return cls(found[0].state if found else HealthState.FINE, tuple(found))


def check_health(statuses: Callable[[], list[ViewStatus]] | None = None) -> Health:
    """Find what keeps views from being refreshed.

    The number of statements does not depend on the number of views.

    Args:
        statuses: what finds the status of every view; by default it is read from the database.
    """
    try:
        with translation.override(None):
            return Health.of(_problems(statuses or _statuses))
    except (DatabaseError, InterfaceError) as error:
        if engine.own_tables_missing(error):
            return Health.of([_broken("not migrated", NOT_MIGRATED)])
        return Health.of(
            [_broken("database", "The database cannot be reached, or refuses statements.")]
        )


def _broken(kind: str, text: str) -> Problem:
    return Problem(HealthState.BROKEN, kind, "", text)


def _statuses() -> list[ViewStatus]:
    return engine.view_statuses(counted=False)


def _problems(find: Callable[[], list[ViewStatus]]) -> Iterator[Problem]:
    scheduled = RefreshSchedule.objects.filter(enabled=True).exists()
    expected = scheduled or Heartbeat.objects.exists()
    interruption = heartbeat.interruption() if expected else None
    if interruption:
        yield _broken(*interruption)
    elif error := broker_errors.last_error():
        yield Problem(
            HealthState.DEGRADED, "broker", "",
            f"A process cannot send messages to the broker ({error}), so its refreshes begin only "
            f"when matviews.maintain sends them: check that it can reach the broker.",
        )  # fmt: skip
    statuses = find()
    if interruption is None or interruption.kind not in ("broker", "no worker"):
        yield from _unclaimed(statuses)
    # A pulse needs beat, the broker and a worker, too.
    if interruption is None or not get_settings().PULSE_SECONDS:
        yield from _polling()
    yield from _log()
    yield from _of_views(statuses)


def _of_views(statuses: Iterable[ViewStatus]) -> Iterator[Problem]:
    expected = [each for each in statuses if each.fault != ViewState.REMOVED and not each.held]
    for status in expected:
        for fault in _independent(status.faults):
            built = status.state == ViewState.REFRESHING and fault in BEING_BUILT
            error = "" if fault in OF_SOME_ROWS else status.error
            text = f"{status.label}: {TEXTS[fault]}{_named(fault, status)}"
            if not built:
                yield Problem(HealthState.DEGRADED, fault.value, status.label, text, error)
        if status.in_loop:
            text = f"{status.label}: {engine.LOOP_TEXT}"
            yield Problem(HealthState.DEGRADED, LOOP, status.label, text)
        if failure := (status.verification or {}).get("error"):
            text = f"{status.label}: its last verification ended with an error"
            yield Problem(HealthState.DEGRADED, UNVERIFIED, status.label, text, failure)
    if expected and all(status.fault in FAILING for status in expected):
        yield _broken("all views", "Every view fails.")


def _named(fault: ViewState, status: ViewStatus) -> str:
    """The views upstream that are meant, for the end of a sentence."""
    upstream = {
        ViewState.UPSTREAM_FAILED: status.upstream.failed,
        ViewState.UPSTREAM_PAUSED: status.upstream.held,
    }
    labels = upstream.get(fault, ())
    return f" ({', '.join(labels)})" if labels else ""


def _independent(faults: Iterable[ViewState]) -> Iterator[ViewState]:
    """The faults of a view that no other explains: the first, and those of some of its rows."""
    yield from (each for each in faults if each in OF_SOME_ROWS)
    yield from [each for each in faults if each not in OF_SOME_ROWS][:1]


FAILING = (ViewState.INVALID, ViewState.SUSPENDED, ViewState.FAILED)
TEXTS = {
    ViewState.INVALID: "its definition is invalid: run manage.py check",
    ViewState.SUSPENDED: "it kept failing, so it is suspended: fix the cause, and resume it",
    ViewState.FAILED: (
        "a phase has failed and not succeeded since: see its page in the admin, or --list"
    ),
    ViewState.PARKED: "some of its rows cannot be computed or written: see --parked",
    ViewState.DIFFERS: (
        "rows differ from its source although no change of them is pending: run manage.py "
        "update_materialized_views --verify --repair"
    ),
    ViewState.NOT_MIGRATED: "its table or its bookkeeping is missing: run manage.py migrate",
    ViewState.NOT_LOGGED: (
        "changes of a source table are not logged, so every refresh is full: run "
        "manage.py update_materialized_views --triggers install"
    ),
    ViewState.UPSTREAM_FAILED: "a view that it reads has failed: fix that one",
    ViewState.UPSTREAM_PAUSED: "a view that it reads is paused or disabled: resume that one",
    ViewState.CHANGED: "its definition has changed since its last refresh",
    ViewState.NEVER_BUILT: "it has never been refreshed",
    ViewState.BEHIND: "its rows are older than its target",
}


def _unclaimed(statuses: Iterable[ViewStatus]) -> Iterator[Problem]:
    """Refreshes that no worker has begun for a while."""
    labels = sorted(
        each.label for each in statuses if each.waiting_for and each.waiting_for > MAX_WAIT
    )
    if labels:
        named = ", ".join(labels[:3]) + (f" and {len(labels) - 3:,} more" * (len(labels) > 3))
        late = [each for each in statuses if each.label in labels]
        queues = set().union(*map(_queues, late))
        yield Problem(
            HealthState.BROKEN,
            "no worker",
            "",
            f"No worker has taken the refreshes of {named} for {MAX_WAIT.seconds // 60} minutes: "
            f"check that one runs and listens to {', '.join(sorted(queues))}.",
            views=tuple(each.label for each in statuses if queues.intersection(_queues(each))),
        )


def _queues(status: ViewStatus) -> set[str]:
    """The queues of a view's batches."""
    return {queue_of(task, status.queue) for task in BATCHES}


def _polling() -> Iterator[Problem]:
    if heartbeat.nobody_polls():
        pulses = get_settings().PULSE_SECONDS
        advice = (
            "check that beat sends matviews.pulse and that a worker takes it, or that the process "
            "with --follow runs"
            if pulses
            else "start manage.py update_materialized_views --follow, or set "
            "MATVIEWS['PULSE_SECONDS'] to 1"
        )
        yield Problem(
            HealthState.DEGRADED, NO_POLLING, "",
            f"For {heartbeat.MAX_UNPOLLED.seconds} seconds, no process has polled for changes of "
            f"the sources of views on change, so these views are not refreshed: {advice}.",
        )  # fmt: skip


def _log() -> Iterator[Problem]:
    age, count = _age_and_length_of_log()
    if age > MAX_LOG_AGE or count > MAX_LOG_ENTRIES:
        yield Problem(
            HealthState.DEGRADED, "log", "",
            f"The change log has about {count:,} entries, the oldest "
            f"{age.total_seconds() / 60:,.0f} minutes old: check that matviews.maintain runs: it "
            f"moves them every minute.",
        )  # fmt: skip


def _age_and_length_of_log() -> tuple[timedelta, int]:
    """The age of the first entry of the log, and about how many follow, however many there are.

    The primary keys count them, which rolled back transactions have taken too.
    """
    newest = Change.objects.order_by("-pk").values("pk")[:1]
    first = Change.objects.order_by("pk").annotate(
        age=UtcNow() - F("logged_at"), length=Subquery(newest) - F("pk") + 1
    )
    found: tuple[timedelta, int] | None = first.values_list("age", "length").first()
    return found or (timedelta(), 0)
