"""What is wrong with a view, in a sentence each."""

from collections.abc import Iterator
from datetime import timedelta

from matviews.engine import Upstream, ViewStatus
from matviews.presentation import format_duration, format_time, pluralize
from matviews.states import ViewState
from matviews.tasks.queues import BATCHES, queues_in_words
from matviews.waits import WaitCode

__all__ = [
    "IN_LOOP",
    "differing_in_words",
    "failing_in_words",
    "length",
    "not_logged_in_words",
    "parked_in_words",
    "pausing_in_words",
    "timeliness_in_words",
    "upstream_in_words",
    "waiting_in_words",
]  # fmt: skip


def length(time: timedelta | None) -> str:
    """A length of time; "" if it is unknown."""
    return "" if time is None else format_duration(time)


def failing_in_words(status: ViewStatus) -> str:
    """How often in a row a view has failed, and when it tries again; "" if it works."""
    if not status.failures or not status.failing_since:
        return ""
    first = format_time(status.failing_since)
    since = f"failed {pluralize(status.failures, 'time')} in a row since {first}"
    if status.suspended_at:
        return (
            f"{since}, and suspended: resume it in the admin, or refresh it once with "
            f"`manage.py update_materialized_views --models {status.label}`"
        )
    if status.retry_in is None:
        return since
    return (
        f"{since}; scheduled refreshes wait for {format_duration(status.retry_in)}, and "
        f"`manage.py update_materialized_views --models {status.label}` tries now"
    )


def pausing_in_words(status: ViewStatus) -> str:
    """Why and how long the refreshes of a view wait, failures apart; "" if they do not."""
    if status.quiet_until:
        return f"quiet hours until {format_time(status.quiet_until)}"
    if status.wait and status.wait.code == WaitCode.TURNS:
        return str(status.wait)
    return f"waits: {status.wait}" if status.wait else ""


#: That a view is slowed, because nothing but its own refreshes changes its source.
IN_LOOP = (
    "its refreshes change its own source, so they are slowed down to one a minute: look for a "
    "trigger that writes to one of its source tables when its rows change"
)


def upstream_in_words(upstream: Upstream) -> Iterator[str]:
    """Which views that it reads are not kept up to date, and why, a sentence for each reason."""
    if upstream.failed:
        yield f"upstream failed: {', '.join(upstream.failed)}"
    if upstream.held:
        yield f"upstream paused: {', '.join(upstream.held)}"


def not_logged_in_words(status: ViewStatus) -> str:
    """Which tables have no triggers, and what to do about it; "" if all have them."""
    if not status.not_logged:
        return ""
    return (
        f"changes of {', '.join(status.not_logged)} are not logged, so every refresh is full: run "
        f"`manage.py update_materialized_views --triggers install`"
    )


def parked_in_words(label: str, count: int) -> str:
    """How many keys of a view are parked, and how to see them; "" if none is."""
    if not count:
        return ""
    return (
        f"{pluralize(count, 'key')} parked: see "
        f"`manage.py update_materialized_views --parked --models {label}`"
    )


def differing_in_words(status: ViewStatus) -> str:
    """How many rows are known to differ, and what to do about it; "" if none is."""
    if not status.differing:
        return ""
    kinds = ("missing", "differing", "surplus")
    counts = ", ".join(f"{status.differing[kind]:,} {kind}" for kind in kinds)
    if sums := status.differing.get("sums"):
        counts += f", {sums:,} wrong sums"
    return (
        f"rows differ from source() ({counts}): run "
        f"`manage.py update_materialized_views --verify --repair --models {status.label}`"
    )


def timeliness_in_words(status: ViewStatus) -> str:
    """Whether a view is on time, and why not, in one line."""
    waits = f"; {waiting_in_words(status)}" if status.state == ViewState.WAITING else ""
    pauses = pausing_in_words(status)
    return f"{_timeliness(status)}{waits}{pauses and f'; {pauses}'}"


def waiting_in_words(status: ViewStatus) -> str:
    """Why a refresh may be waiting."""
    return (
        f"a refresh is waiting for a worker: check that one runs and listens to "
        f"{queues_in_words(*BATCHES, queue=status.queue)}"
    )


def _timeliness(status: ViewStatus) -> str:
    numbers = ", ".join(_numbers(status))
    if status.fault is None:
        return f"on time ({numbers})"
    if status.fault == ViewState.BEHIND:
        return f"not on time: behind ({numbers})"
    if status.fault == ViewState.NOT_LOGGED:
        return f"not on time: {not_logged_in_words(status)}"
    if status.fault in (ViewState.UPSTREAM_FAILED, ViewState.UPSTREAM_PAUSED):
        return f"not on time: {'; '.join(upstream_in_words(status.upstream))}"
    if status.fault in (ViewState.PARKED, ViewState.DIFFERS):
        parked = status.fault == ViewState.PARKED
        words = (
            parked_in_words(status.label, status.parked) if parked else differing_in_words(status)
        )
        behind = f"; behind ({numbers})" if ViewState.BEHIND in status.faults else ""
        return f"not on time: {words}{behind}"
    if status.fault == ViewState.NOT_MIGRATED:
        return (
            "not on time: its table or its bookkeeping is missing; run makemigrations and migrate"
        )
    why = status.error.partition("\n")[0].removeprefix(f"{status.label}: ")
    failing = failing_in_words(status)
    return f"not on time: {status.fault}{why and f': {why}'}{failing and f' ({failing})'}"


def _numbers(status: ViewStatus) -> Iterator[str]:
    if status.change_lag is not None:
        yield f"oldest change {length(status.change_lag)} ago"
    if status.staleness != status.change_lag and status.staleness and status.age is not None:
        yield f"last success {length(status.age)} ago"
    elif status.change_lag is None:
        yield "no change pending"
    yield f"target {length(status.target)}" if status.target else "no target"
