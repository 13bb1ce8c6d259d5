"""Views that fail: how long one waits before its next try, and when it is suspended.

The counts are columns of the control. The transaction that closes a refresh writes them, and
closes it only once, however many processes see its end. All times are the database's.
"""

import logging
from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import Any, NamedTuple

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Coalesce

from ... import signals
from ...conf import get_settings
from ...databases.clock import UtcNow
from ...definition import ViewDefinition
from ...logs import log
from ...models import PhaseRun, Refresh, RefreshSchedule, ScheduleKind, ViewControl, ViewShard
from ...registry import registry
from ...states import RefreshState, RunState
from ...waits import Wait, WaitCode
from ..locking import update_unlocked
from ..transactions import now, short_transaction, utc_now
from .definition_digest import definition_digest
from .recorded import recorded_failures

__all__ = [
    "FAILED_RUNS",
    "Ending",
    "delay_after",
    "end_quiet_hours",
    "is_forced",
    "is_waiting",
    "may_begin",
    "publish_ending",
    "record_ending",
    "release_changed",
    "resume",
    "resume_migrated",
    "try_now",
    "wait",
    "wake",
    "wake_views",
]

logger = logging.getLogger(__name__)

MIN_RETRY_DELAY = timedelta(seconds=10)
MAX_DOUBLINGS = 32
FAILED_RUNS = (RunState.FAILED, RunState.NOT_CONVERGING)
SUCCEEDED: dict[str, Any] = {
    "failures": 0,
    "failing_since": None,
    "own_failures": 0,
    "own_failing_since": None,
    "failed_phases": [],
    "failed_definition": "",
    "retry_at": None,
    "wait": None,
    "suspended_at": None,
}
#: One failure is left, so that the next success counts as a recovery.
RESUMED: dict[str, Any] = {
    "failures": 1,
    "own_failures": 0,
    "own_failing_since": None,
    "retry_at": None,
    "wait": None,
    "suspended_at": None,
}


def may_begin(prefix: str = "") -> Q:
    """Whether a view is neither suspended nor waiting, after a failure or for another reason.

    Args:
        prefix: of the control's columns, as in "view__".
    """
    waited = Q(**{f"{prefix}retry_at": None}) | Q(**{f"{prefix}retry_at__lte": UtcNow()})
    return Q(**{f"{prefix}suspended_at": None}) & waited


def is_forced(view: str) -> Exists:
    """Whether a view has a forced refresh to do; all its refreshes begin with that one.

    Args:
        view: the column with the primary key of its control.
    """
    forced = Refresh.objects.filter(forced=True, state=RefreshState.OPEN, stop_requested=False)
    return Exists(forced.filter(view=OuterRef(view)).order_by())


def is_waiting(view_id: int) -> bool:
    """Whether the refreshes of a view wait: after failures, for quiet hours or the governor."""
    waiting = ViewControl.objects.filter(~(may_begin() | is_forced("pk")), pk=view_id)
    return waiting.exists()


class Ending(NamedTuple):
    """What the end of a refresh means for its view."""

    #: The control, as it is now; None if nothing has changed.
    control: ViewControl | None = None
    #: Whether the view has just been suspended.
    suspended: bool = False
    #: Whether it had failed, and no longer does.
    recovered: bool = False


def record_ending(
    refresh: Refresh, runs: list[PhaseRun], definition: ViewDefinition | None, digest: str
) -> Ending:
    """Count a failure of the view, or forget its failures after a success.

    Part of the transaction that closes the refresh. A refresh whose runs were all merged into those
    of another is not counted: that one is.
    """
    failed = [run for run in runs if run.state in FAILED_RUNS and run.merged_into_id is None]
    if failed:
        return _record_failure(refresh, runs, failed, digest)
    control = refresh.view
    if refresh.state != RefreshState.SUCCEEDED or not control.failures:
        return Ending()
    present = definition.options.phases if definition else ()
    if any(phase in present and phase not in refresh.phases for phase in control.failed_phases):
        return Ending()
    failing = ViewControl.objects.filter(pk=control.pk, failures__gt=0)
    return Ending(control, recovered=failing.update(**SUCCEEDED) > 0)


def _record_failure(
    refresh: Refresh, runs: list[PhaseRun], failed: list[PhaseRun], digest: str
) -> Ending:
    views: QuerySet[Any] = ViewControl.objects.filter(pk=refresh.view_id)
    control = views.annotate(now=UtcNow()).select_for_update().order_by().get()
    control.failures += 1
    unfinished = {run.phase for run in runs if run.state != RunState.SUCCEEDED}
    succeeded = {run.phase for run in runs} - unfinished
    phases = {*control.failed_phases, *(run.phase for run in failed)} - succeeded
    changes: dict[str, Any] = {
        "failures": control.failures,
        "failing_since": Coalesce("failing_since", UtcNow()),
        "failed_phases": sorted(phases),
        "retry_at": UtcNow() + _delay(control),
        "wait": None,
    }
    if control.suspended_at is None:  # a suspended view waits for another definition than its own
        changes["failed_definition"] = digest
    if not all(run.external_cause for run in failed):
        control.own_failures += 1
        changes["own_failures"] = control.own_failures
        changes["own_failing_since"] = Coalesce("own_failing_since", UtcNow())
    suspended = control.suspended_at is None and _has_failed_enough(control)
    if suspended:
        changes["suspended_at"] = UtcNow()
    views.update(**changes)
    return Ending(control, suspended=suspended)


def _has_failed_enough(control: Any) -> bool:
    """Whether a view with this many failures of its own, since then, is to be suspended."""
    options, settings = control.options, get_settings()
    count = options.suspend_after_failures or settings.SUSPEND_AFTER_FAILURES
    lasting = options.suspend_after or settings.SUSPEND_AFTER
    since = control.own_failing_since or control.now
    return bool(control.own_failures >= count and control.now - since >= lasting)


def _delay(control: ViewControl) -> timedelta:
    """How long a view waits after its latest failure."""
    longest = control.options.max_retry_delay or get_settings().MAX_RETRY_DELAY
    schedules = RefreshSchedule.objects.filter(
        view=control, enabled=True, kind=ScheduleKind.REFRESH
    )
    intervals = [each.interval for each in schedules.exclude(every=None).order_by()]
    shortest = min(filter(None, intervals), default=MIN_RETRY_DELAY)
    return timedelta(seconds=delay_after(control.failures, shortest, longest))


def delay_after(failures: int, interval: timedelta, longest: float) -> float:
    """The wait after consecutive failures, in seconds: the interval, doubled each time."""
    first = max(interval, MIN_RETRY_DELAY).total_seconds()
    return min(first * 2.0 ** min(failures - 1, MAX_DOUBLINGS), longest)


def publish_ending(ending: Ending, refresh: Refresh) -> None:
    """Log and signal that a view was suspended or has recovered. After the commit."""
    control = ending.control
    if control is None:
        return
    sender = control.definition and control.definition.model
    facts: dict[str, Any] = {"view": control.label, "refresh": refresh.pk}
    if ending.suspended:
        failure = recorded_failures([control.label]).get(control.label)
        log(
            logger, logging.ERROR, "view suspended, it kept failing", **facts,
            phase=failure.phase if failure else "", failures=control.failures,
            error=refresh.error, exception=failure and failure.exception,
        )  # fmt: skip
        signals.view_suspended.send_robust(sender=sender, refresh=refresh)
    elif ending.recovered:
        log(logger, logging.INFO, "view recovered", **facts, failures=control.failures)
        signals.view_recovered.send_robust(
            sender=sender, refresh=refresh, failures=control.failures
        )


def try_now(view_ids: Iterable[int], *, wait_again: bool = False) -> None:
    """End the waits of views after failures, which still count; suspended ones wait on.

    The caller sends their messages, and those of views that are no longer held.

    Args:
        view_ids: their primary keys.
        wait_again: whether the governor may let them wait for `GOVERNOR_MAX_WAIT` again.
    """
    with short_transaction(durable=False):
        waiting = ViewControl.objects.filter(pk__in=list(view_ids), suspended_at=None)
        waiting.exclude(retry_at=None).update(retry_at=None, wait=None)
        if wait_again:
            waiting.exclude(governed_since=None).update(governed_since=None)
        _expect_messages(view_ids)


def wait(control: ViewControl, time: timedelta, reason: Wait) -> None:
    """Have refreshes of a view that are not forced wait for a while; `wake` ends it."""
    views = ViewControl.objects.filter(pk=control.pk, suspended_at=None)
    if not views.filter(may_begin()).update(retry_at=UtcNow() + time, wait=reason):
        return
    log(
        logger, logging.INFO, "refreshes wait", view=control.label, reason=str(reason),
        seconds=round(time.total_seconds(), 1),
    )  # fmt: skip


def resume(view_ids: Iterable[int]) -> None:
    """Let views that fail or are suspended begin at once, as after a first failure.

    The caller sends the messages.
    """
    with short_transaction(durable=False):
        failing = ViewControl.objects.filter(pk__in=list(view_ids), failures__gt=0)
        failing.update(**RESUMED)
        _expect_messages(view_ids)


def end_quiet_hours() -> None:
    """End the waits for quiet hours that the code or an operator has since removed or shortened."""
    waiting = ViewControl.objects.filter(retry_at__gt=UtcNow(), wait__isnull=False)
    for control in waiting.order_by("pk"):
        hours = control.quiet_hours
        over = hours is None or hours.until(utc_now()) is None
        if over and control.wait.code == WaitCode.QUIET_HOURS:
            unchanged = waiting.filter(pk=control.pk, retry_at=control.retry_at)
            unchanged.update(retry_at=UtcNow())


def wake() -> list[int]:
    """Views whose wait is over and whose refreshes are open: each is returned once, to one process.

    The caller sends their messages.
    """
    over = ViewControl.objects.filter(retry_at__lte=UtcNow(), suspended_at=None)
    still_open = Refresh.objects.filter(view=OuterRef("pk"), state=RefreshState.OPEN)
    free = over.filter(Exists(still_open.order_by()), enabled=True, paused=False)
    return [pk for pk in free.order_by("pk").values_list("pk", flat=True) if _wake(pk, over)]


def wake_views(view_ids: Iterable[int]) -> list[int]:
    """End the waits of views that have not failed; those that this process has woken."""
    waiting = ViewControl.objects.filter(suspended_at=None)
    return [pk for pk in view_ids if _wake(pk, waiting)]


def _wake(view_id: int, over: QuerySet[ViewControl]) -> bool:
    with short_transaction():
        if not over.filter(pk=view_id).update(retry_at=None, wait=None):
            return False
        _expect_messages([view_id])
        return True


def _expect_messages(view_ids: Iterable[int]) -> None:
    """Record that the messages of views are sent now, so that `rescue` gives them a lease."""
    lease = timedelta(seconds=get_settings().LEASE)
    if not (controls := list(view_ids)):
        return
    # A locked shard runs a batch, which sends the next message itself.
    shards = ViewShard.objects.filter(view__in=controls)
    update_unlocked(shards, resend_after=now() + lease, resends=0, turn_token=0)


def release_changed() -> list[int]:
    """Let waiting and suspended views begin at once whose definition has changed since.

    Returns:
        The primary keys of their controls.
    """
    waiting = ViewControl.objects.filter(~may_begin(), failures__gt=0).order_by("pk")
    return [control.pk for control in waiting if _release(control)]


def _release(control: ViewControl) -> bool:
    digest = definition_digest(control.definition)
    if not digest or digest == control.failed_definition:
        return False
    unchanged = ViewControl.objects.filter(
        pk=control.pk, failures=control.failures, failed_definition=control.failed_definition
    )
    if not unchanged.update(**RESUMED):
        return False
    log(
        logger, logging.INFO, "view tries again, its definition has changed",
        view=control.label, failures=control.failures,
    )  # fmt: skip
    return True


def resume_migrated(app_labels: Collection[str]) -> None:
    """Let the views of apps that were migrated begin, if they fail: `wake` finds them."""
    labels = [view.label for view in registry if view.model._meta.app_label in app_labels]
    failing = ViewControl.objects.filter(label__in=labels, failures__gt=0)
    failing.update(**{**RESUMED, "retry_at": UtcNow()})
