"""The Celery tasks, imported as `matviews.tasks`. Only this package knows Celery.

A message is only a hint: a lost one costs time (`matviews.maintain` re-sends it), a duplicate costs
nothing (the token admits one). So the tasks keep Celery's default of early acknowledgement, use
neither retries nor results, and `eta` only to spread the starts of schedules.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from celery import current_app, shared_task
from django.db import transaction

from .. import engine
from ..engine import Message, NextStep, VerifyMessage
from ..exceptions import MatviewsError, ViewDisabled
from ..logs import log
from ..models import Origin
from ..phases import Phase
from ..redact import brief, error_text, loggable
from ..registry import registry
from . import (
    alarms,
    broker_errors,
    check_in,
    crowded_queues,
    expiry,
    heartbeat,
    inline,
    polling,
    schedules,
    verifications,
)
from .connections import drops_broken_connection, outage
from .pulses import Pulse
from .queues import queue_of
from .sending import RETRY_POLICY, delay_by_jitter, is_number
from .verifications import SLICE_TASK, verify

__all__ = [
    "delete_batch",
    "dispatch",
    "dispatch_all",
    "dispatch_on_commit",
    "dispatch_others",
    "insert_batch",
    "maintain",
    "pulse",
    "refresh",
    "send",
    "update_batch",
    "verify",
    "verify_slice",
]

logger = logging.getLogger(__name__)


@shared_task(name="matviews.refresh", ignore_result=True, serializer="json")
@drops_broken_connection
def refresh(
    view: str, phases: list[str] | None = None, jitter: float = 0, crontab: bool = False
) -> None:
    """Request a refresh of a view on a schedule.

    Args:
        view: its label.
        phases: all by default.
        jitter: seconds over which the starts of views are spread. Each view always starts at the
            same offset within them, so its interval stays the same.
        crontab: whether a crontab chose this time, at which also a failing view tries again.
    """
    if expiry.is_expired(refresh.request):
        return
    try:
        engine.check_phases(registry.find(view), phases)
        arguments = (view, phases, 0, True) if crontab is True else (view, phases)
        if delay_by_jitter(refresh, arguments, f"{view} {phases}", jitter):
            return
        requested = engine.request(view, phases=phases, origin=Origin.SCHEDULE)
    except ViewDisabled as error:  # an operator decided this
        log(logger, logging.INFO, "refresh refused", view=brief(view), error=error)
    except MatviewsError as error:  # an old message, or the code has changed; reconcile will fix it
        log(
            logger, logging.WARNING, "refresh refused", view=brief(view), phases=brief(phases),
            error=error,
        )  # fmt: skip
    else:
        if requested.finished_at is None:
            if crontab is True:
                engine.try_now([requested.view_id])
            dispatch(requested.view_id)


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
@drops_broken_connection
def maintain() -> None:
    """Re-send lost messages, do the housekeeping, then notify of alarms. Runs every minute."""
    if error := outage():
        sentence = "maintenance did not run, the database cannot be reached"
        log(logger, logging.WARNING, sentence, error=error)
        return
    if expiry.is_expired(maintain.request):
        return
    heartbeat.try_record(maintenance_began_at=engine.now())
    _attempt(_dispatch_failing)
    _attempt(_send_due_turns)
    _attempt(_request_unlogged)
    ran = _attempt(_resend_lost)
    chores = (
        verifications.rescue, schedules.reconcile, engine.sync_shards, engine.sweep_stages,
        engine.sweep_dirty_keys, engine.fold_failures, engine.trim_history, engine.trim_alarms,
        engine.renumber_entries, engine.move_log, engine.collapse_long_queues,
        engine.trim_value_logs,
        engine.mark_untrackable, engine.mark_missing_triggers, engine.finish_triggers,
        engine.mark_truncated, engine.mark_mistyped_views, engine.distrust_misfits,
    )  # fmt: skip
    began = engine.now()
    failed = {work for work in chores if not _attempt(work)}
    if ran:  # otherwise health says that maintenance has not ended
        seen = {} if engine.mark_missing_triggers in failed else {"triggers_seen_at": began}
        ran = heartbeat.try_record(maintenance_ended_at=engine.now(), **seen)
    if _attempt(alarms.notify) and ran:  # otherwise the check-in stays away, which is noticed
        _attempt(check_in.check_in)


@shared_task(name="matviews.pulse", ignore_result=True, serializer="json", base=Pulse)
@drops_broken_connection
def pulse() -> None:
    """Request the refreshes that are due on change. Beat sends it every `PULSE_SECONDS`.

    Its message does not expire: `Pulse` sends only a few while no worker takes them, and it is
    never wrong to poll late.
    """
    if (expiry.came_from_beat(pulse.request) and not polling.is_due()) or _poll():
        heartbeat.try_record_poll("pulsed_at")


def _poll() -> bool:
    """Poll for refreshes that are due on change; False if the database cannot be reached."""
    views = polling.poll()
    dispatch_all(views or ())
    return views is not None


def _request_unlogged() -> None:
    dispatch_all(polling.request_without_change())


def _queues(messages: Iterable[Message]) -> list[str]:
    return sorted({queue_of(_BATCH_TASKS[each.phase].name, each.queue) for each in messages})


def _dispatch_failing() -> None:
    """Let the views try again whose wait is over, or whose definition has changed."""
    engine.end_quiet_hours()
    dispatch_all([*engine.release_changed(), *engine.wake()])


def _resend_lost() -> None:
    messages = engine.rescue()
    if not send(messages):
        engine.clear_resends(messages)
    elif messages and (views := engine.unclaimed_views(messages)):
        log(
            logger, logging.WARNING,
            "no worker has taken a re-sent message: check that one runs and listens to its queue",
            queue=",".join(_queues(messages)), views=",".join(views),
        )  # fmt: skip


def _send_due_turns() -> None:
    """Send the messages of long refreshes whose turn it is, in case that a worker has died."""
    _send_turns(engine.grant_all_turns())


def _send_turns(messages: list[Message]) -> bool:
    """`send`; if the broker refuses, these long refreshes wait for their turns again."""
    sent = send(messages)
    if not sent:
        engine.revoke_turns(messages)
    return sent


def _attempt(work: Callable[[], object]) -> bool:
    """Do a chore; whether it could."""
    try:
        return work() is not False
    except Exception as error:  # noqa: BLE001 - the next run tries again
        engine.drop_broken_connection()
        log(
            logger, logging.ERROR, "a maintenance chore failed", chore=work.__name__,
            exception=loggable(error, trusted=False), error=error_text(error, trusted=False),
        )  # fmt: skip
        return False


_BATCH_TASKS = {
    Phase.INSERT: insert_batch,
    Phase.UPDATE: update_batch,
    Phase.DELETE: delete_batch,
}


@drops_broken_connection
def _run_batch(phase: Phase, shard_id: Any, token: Any) -> None:
    if not (is_number(shard_id) and is_number(token)):
        log(
            logger, logging.ERROR, "message is invalid", shard=brief(shard_id), token=brief(token),
            phase=phase,
        )  # fmt: skip
        return
    if engine.is_governed() and (step := engine.close_finished(shard_id)).message is None:
        _send_due([step])  # it waits, or nothing is due any more in this shard
        crowded_queues.pass_on(shard_id, _send_turns)
        return
    crowded_queues.pass_on(shard_id, _send_turns)
    report = engine.run_batch(Message(phase, shard_id, token))
    if report.outcome.recorded:  # otherwise others take care of the shard, or `maintain` will
        _send_due([engine.close_finished(shard_id, report)])
    crowded_queues.pass_on_after(report, _send_turns)
    if polling.is_due():
        _poll()


@shared_task(name=SLICE_TASK, ignore_result=True, serializer="json")
@drops_broken_connection
def verify_slice(run_id: int, token: int) -> None:
    """Work on a verification for some seconds, if `token` is still its token."""
    if not (is_number(run_id) and is_number(token)):
        log(logger, logging.ERROR, "message is invalid", run=brief(run_id), token=brief(token))
        return
    message = VerifyMessage(run_id, token)
    repaired = engine.repaired_view(message)
    if following := engine.verify_slice(message):
        verifications.send([following])
    if repaired:
        dispatch(repaired)  # a batch may have been refused meanwhile


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


def dispatch_others(step: NextStep, run_here: Callable[[list[int]], list[int]] = list) -> None:
    """Send the messages of other views that have waited for refreshes that this process closed.

    For processes that run batches themselves. Others wait for those that were closed, or for a
    permit of `MAX_REFRESHES`.

    Args:
        step: what was closed.
        run_here: takes the primary keys of views that have a permit now; returns those of them that
            workers are to refresh.
    """
    _send_turns(engine.take_turns(step.other_shards))
    dispatch_all(run_here(engine.wake_next_in_line()))


def _send_due(steps: Iterable[NextStep]) -> bool:
    steps = list(steps)
    messages = [message for step in steps for message in step.messages]
    if current_app.conf.task_always_eager:
        return send(messages)
    sent = _send_turns(engine.take_turns(messages))
    if any(step.closed for step in steps):
        return dispatch_all(engine.wake_next_in_line()) and sent
    return sent


def send(messages: Iterable[Message]) -> bool:
    """Send batch messages; if tasks are eager, run their batches here and now.

    A broker that is down is not an error: the work is recorded, and `matviews.maintain` sends it
    later.

    Returns:
        False if the broker refused a message.
    """
    messages = list(messages)
    if current_app.conf.task_always_eager:
        inline.run_until_idle(message.shard_id for message in messages)
        return True
    for message in messages:
        try:
            _BATCH_TASKS[message.phase].apply_async(
                (message.shard_id, message.token),
                queue=message.queue,
                retry_policy=RETRY_POLICY,
            )
        except Exception as error:  # noqa: BLE001 - every broker raises its own errors
            broker_errors.record(error)
            log(
                logger, logging.WARNING,
                "message not sent; matviews.maintain will send it when the broker is back",
                exception=error, shard=message.shard_id, token=message.token, phase=message.phase,
                queue=queue_of(_BATCH_TASKS[message.phase].name, message.queue),
            )  # fmt: skip
            return False
        broker_errors.clear()
    return True
