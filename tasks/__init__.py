"""The Celery tasks, imported as `matviews.tasks`. Only this package knows Celery.

A message is only a hint: a lost one costs time (`matviews.maintain` re-sends it), a duplicate costs
nothing (the token admits one). So the tasks keep Celery's default of early acknowledgement, use
neither retries nor results, and `eta` only to spread the starts of schedules.
"""

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

from celery import current_app, shared_task
from django.db import transaction

from .. import engine
from ..conf import get_settings
from ..engine import Message, NextStep
from ..exceptions import MatviewsError, ViewDisabled
from ..models import MAX_JITTER, Heartbeat, Origin
from ..phases import Phase
from ..redact import brief, in_one_line, traceback_text
from ..registry import registry
from . import broker_errors, expiry, inline, schedules
from .queues import BATCHES, queues_in_words

__all__ = [
    "delete_batch",
    "dispatch",
    "dispatch_all",
    "dispatch_on_commit",
    "insert_batch",
    "maintain",
    "refresh",
    "send",
    "update_batch",
]

logger = logging.getLogger(__name__)


def _not_after_a_timeout(error: Exception, _wait: float) -> None:
    """Prevent the second attempt if the broker hangs: a person may be waiting."""
    if type(error).__name__ == "TimeoutError":  # Python's or redis-py's
        raise error


# One immediate second attempt, because a pooled connection may be stale.
RETRY_POLICY = {
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0,
    "interval_max": 0,
    "errback": _not_after_a_timeout,
}


@shared_task(name="matviews.refresh", ignore_result=True, serializer="json")
def refresh(view: str, phases: list[str] | None = None, jitter: float = 0) -> None:
    """Request a refresh of a view on a schedule.

    Args:
        view: its label.
        phases: all by default.
        jitter: seconds over which the starts of views are spread. Each view always starts at the
            same offset within them, so its interval stays the same.
    """
    if expiry.is_expired(refresh.request):
        return
    try:
        engine.check_phases(registry.find(view), phases)
        if _sent_later(view, phases, jitter):
            return
        requested = engine.request(view, phases=phases, origin=Origin.SCHEDULE)
    except ViewDisabled as error:  # an operator decided this
        logger.info("refresh refused view=%s reason=%s", brief(view), error)
    except MatviewsError as error:  # an old message, or the code has changed; reconcile will fix it
        logger.warning(
            "refresh refused view=%s phases=%s reason=%s",
            brief(view), brief(phases), in_one_line(str(error)),
        )  # fmt: skip
    else:
        if requested.finished_at is None:
            dispatch(requested.view_id)


def _sent_later(view: str, phases: list[str] | None, jitter: float) -> bool:
    """Send the task again with an `eta` by the database's clock, if it has to wait.

    A worker keeps such a message in memory, unacknowledged. If it dies, the broker may deliver the
    message again, late or never. That is harmless: requests merge, and the next tick requests
    again.
    """
    is_number = isinstance(jitter, (int, float)) and not isinstance(jitter, bool)
    if not (is_number and 0 <= jitter <= MAX_JITTER):
        logger.error("jitter is invalid view=%s jitter=%s", view, brief(jitter))
        return False
    if jitter == 0 or current_app.conf.task_always_eager:
        return False
    fraction = crc32(f"{view} {phases}".encode()) / 2**32
    try:
        refresh.apply_async(
            (view, phases),
            eta=datetime.fromtimestamp(engine.timestamp() + fraction * jitter, UTC),
            queue=get_settings().CELERY_QUEUE,
            retry_policy=RETRY_POLICY,
        )
    except Exception:  # every broker raises its own errors
        logger.warning("jitter not applied view=%s", view, exc_info=True)
        return False
    return True


@shared_task(name="matviews.insert_batch", ignore_result=True, serializer="json")
def insert_batch(shard_id: int, token: int) -> None:
    """Run a batch of the insert phase in a shard, if `token` is still its token."""
    _run_batch(Phase.INSERT, shard_id, token)


@shared_task(name="matviews.update_batch", ignore_result=True, serializer="json")
def update_batch(shard_id: int, token: int) -> None:
    """Run a batch of the update phase in a shard, if `token` is still its token."""
    _run_batch(Phase.UPDATE, shard_id, token)


@shared_task(name="matviews.delete_batch", ignore_result=True, serializer="json")
def delete_batch(shard_id: int, token: int) -> None:
    """Run a batch of the delete phase in a shard, if `token` is still its token."""
    _run_batch(Phase.DELETE, shard_id, token)


@shared_task(name="matviews.maintain", ignore_result=True, serializer="json")
def maintain() -> None:
    """Re-send lost messages, then do the housekeeping. Runs every minute."""
    if expiry.is_expired(maintain.request):
        return
    messages = engine.rescue()
    if not send(messages):
        engine.clear_resends(messages)
    elif messages and (views := engine.unclaimed_views(messages)):
        logger.warning(
            "no worker has taken a re-sent message: check that one runs and listens to %s views=%s",
            queues_in_words(*BATCHES), ",".join(views),
        )  # fmt: skip
    chores = (
        schedules.reconcile, engine.sync_shards, engine.sweep_stages, engine.trim_history,
        engine.move_log, engine.collapse_long_queues, engine.mark_untrackable,
        engine.mark_missing_triggers, engine.finish_triggers, engine.mark_mistyped_views,
    )  # fmt: skip
    for work in chores:
        _attempt(work)
    now = engine.now()
    with engine.short_transaction():
        # Not update_or_create: on SQLite a transaction that has read cannot always write.
        if not Heartbeat.objects.update(ran_at=now):
            Heartbeat.objects.bulk_create([Heartbeat(pk=1, ran_at=now)], ignore_conflicts=True)


def _attempt(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - the next run tries again
        trace = traceback_text(error, trusted=False)
        # Not `logger.exception`: a traceback may hold values of rows.
        logger.error("maintenance could not %s\n%s", work.__name__, trace)  # noqa: TRY400


_BATCH_TASKS = {
    Phase.INSERT: insert_batch,
    Phase.UPDATE: update_batch,
    Phase.DELETE: delete_batch,
}


def _run_batch(phase: Phase, shard_id: Any, token: Any) -> None:
    if not (_is_number(shard_id) and _is_number(token)):
        logger.error(
            "message is invalid shard=%s token=%s phase=%s", brief(shard_id), brief(token), phase
        )
        return
    report = engine.run_batch(Message(phase, shard_id, token))
    if report.outcome.recorded:  # otherwise others take care of the shard, or `maintain` will
        _send_due([engine.close_finished(shard_id)])


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**63


def dispatch_on_commit(view_id: int) -> None:
    """`dispatch` after the current transaction commits, at once if there is none."""

    def send_due() -> None:  # Django logs a failing callback by its name; a partial has none
        dispatch(view_id)

    transaction.on_commit(send_due, using=engine.alias(), robust=True)


def dispatch(view_id: int) -> bool:
    """Send the messages that are due in a view's shards; False if the broker refused one."""
    return _send_due(engine.close_finished_in_view(view_id))


def dispatch_all(view_ids: Iterable[int]) -> bool:
    """`dispatch` for several views, up to the first message that the broker refuses.

    Returns:
        False if it refused one; `matviews.maintain` sends the rest.
    """
    return all(map(dispatch, view_ids))


def _send_due(steps: Iterable[NextStep]) -> bool:
    return send(message for step in steps for message in step.messages)


def send(messages: Iterable[Message]) -> bool:
    """Send batch messages; if tasks are eager, run their batches here and now.

    A broker that is down is not an error: the work is recorded, and `matviews.maintain` sends it
    later.

    Returns:
        False if the broker refused a message.
    """
    messages = list(messages)
    if current_app.conf.task_always_eager:
        inline.drain(message.shard_id for message in messages)
        return True
    for message in messages:
        try:
            _BATCH_TASKS[message.phase].apply_async(
                (message.shard_id, message.token),
                queue=get_settings().CELERY_QUEUE,
                retry_policy=RETRY_POLICY,
            )
        except Exception as error:  # every broker raises its own errors
            broker_errors.note(error)
            logger.warning(
                "message not sent; matviews.maintain will send it when the broker is back "
                "shard=%s token=%s phase=%s",
                message.shard_id, message.token, message.phase, exc_info=True,
            )  # fmt: skip
            return False
    return True
