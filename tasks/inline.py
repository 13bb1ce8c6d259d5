"""Running batches in this process to the end: for eager tasks, the command and tests."""

import time
from collections.abc import Callable, Iterable, Iterator

from .. import engine
from ..engine import BatchReport, Message, NextStep, Outcome
from ..models import Refresh

__all__ = ["run_to_end", "run_until_idle"]

MIN_WAIT, MAX_WAIT = 0.02, 0.5  # seconds between checks of a view that others work on


def run_until_idle(shard_ids: Iterable[int]) -> None:
    """Run batches until nothing is due in the shards, or another process works in them.

    This is a loop because an eager task that sends the next one would be a recursion.
    """
    waiting = list(shard_ids)
    while waiting:
        waiting += _run_shard(waiting.pop(0))


def _run_shard(shard_id: int) -> Iterator[int]:
    """Run the batches of one shard; yield the other shards in which work became due."""
    report: BatchReport | None = None
    while True:
        step = engine.close_finished(shard_id, report)
        yield from (message.shard_id for message in step.other_shards)
        if step.message is None:
            return
        report = engine.run_batch(step.message)
        if report.outcome in _ENDS:
            return


_ENDS = (Outcome.BUSY, Outcome.LOST, Outcome.WAITING)


def _ignore(*_args: object) -> None: ...


def run_to_end(
    refresh: Refresh,
    *,
    on_report: Callable[[BatchReport], None] = _ignore,
    on_wait: Callable[[], None] = _ignore,
    on_closed: Callable[[NextStep], object] = _ignore,
    stop: Callable[[], bool] = lambda: False,
) -> Refresh:
    """Run batches of a view until one of its refreshes is closed, here or by a worker.

    Args:
        refresh: the refresh.
        on_report: called after each batch.
        on_wait: called repeatedly while other processes work.
        on_closed: called when refreshes of the view were closed here; others may wait for that.
        stop: called before each batch; if true, the refresh is left open for others to continue.

    Returns:
        The refresh as the database has it now: closed, or open because of `stop`, because an
        operator has paused or disabled the view, or because the view waits after a failure.
    """
    if refresh.finished_at:  # nothing has changed
        return refresh
    wait = MIN_WAIT
    last: BatchReport | None = None
    while not stop():
        steps = _close_finished(refresh.view_id, last, on_closed)
        if ours := [closed for each in steps for closed in each.closed if closed == refresh]:
            return ours[0]
        recorded, last = False, None
        for report in _run_batches((each.message for each in steps), stop):
            on_report(report)
            last = report
            recorded = recorded or report.outcome.recorded
        if recorded:
            wait = MIN_WAIT
            continue
        now = Refresh.objects.select_related("view").get(pk=refresh.pk)
        if now.finished_at or now.view.held or engine.is_waiting(now.view_id):
            return now
        on_wait()
        time.sleep(wait)
        wait = min(2 * wait, MAX_WAIT)
    # The last batch may have finished the refresh.
    _close_finished(refresh.view_id, last, on_closed)
    return Refresh.objects.select_related("view").get(pk=refresh.pk)


def _close_finished(
    view_id: int, report: BatchReport | None, on_closed: Callable[[NextStep], object]
) -> list[NextStep]:
    steps = engine.close_finished_in_view(view_id, report)
    for step in steps:
        if step.closed:
            on_closed(step)
    return steps


def _run_batches(
    messages: Iterable[Message | None], stop: Callable[[], bool]
) -> Iterator[BatchReport]:
    for message in messages:
        if message and not stop():
            yield engine.run_batch(message)
