"""Refreshing views in this process, one after the other, until they are done or a person stops."""

from typing import Any

from django.core.management.base import CommandError

from matviews import engine
from matviews.engine import progress_of
from matviews.models import Refresh
from matviews.states import RefreshState
from matviews.tasks import inline

from . import tables
from .interrupts import Wish, interruptible
from .progress import so_far
from .reporters import Follower, Reporter
from .requests import Requests

__all__ = ["refresh"]


def refresh(requests: Requests) -> None:
    """Refresh the views here, showing how it goes.

    Raises:
        CommandError: a view failed, or the command was interrupted.
    """
    requests.refuse_in_transaction()
    labels = engine.in_order(requests.labels())
    reporter = requests.output.reporter()
    with interruptible(reporter.note) as wish:
        for label in labels:
            if wish():
                break
            asked = requests.request(label)
            if asked and asked.finished_at:
                requests.output.entries.append(tables.refresh_as_dict(label, asked))
                requests.output.say(f"{label}: nothing has changed")
            elif asked:
                _run(asked, requests, reporter, wish)
        if wish() and (stopped := _stopped(requests, labels)):
            raise CommandError(stopped, returncode=wish.returncode)
    requests.raise_failed(labels)


def _run(asked: Refresh, requests: Requests, reporter: Reporter, wish: Wish) -> None:
    follower = Follower(asked, reporter)
    try:
        follower.look(at_once=True)
        ended = inline.run_to_end(
            asked, on_report=follower.report, on_wait=follower.look, stop=wish
        )
        follower.look(at_once=True)
    except KeyboardInterrupt:
        ended = Refresh.objects.select_related("view").get(pk=asked.pk)
    finally:
        reporter.close()
    requests.output.entries.append(tables.refresh_as_dict(ended.view.label, ended))
    _tell_failure(ended, requests, wish)


def _tell_failure(ended: Refresh, requests: Requests, wish: Wish) -> None:
    if ended.state == RefreshState.FAILED:
        requests.fail(ended.view.label, ended.error)
    elif ended.state == RefreshState.STOPPED:
        requests.fail(ended.view.label, "was stopped by an operator; what was committed stays")
    elif not ended.finished_at and not wish():
        word, remedy = ("paused", "resumed") if ended.view.paused else ("disabled", "enabled")
        requests.fail(ended.view.label, f"is {word}; it goes on when it is {remedy}")


def _stopped(requests: Requests, labels: list[str]) -> str:
    """How far the command came, "" if it had done all."""
    waiting = (RefreshState.OPEN, RefreshState.MERGED)
    left = [entry for entry in requests.output.entries if entry["state"] in waiting]
    ended = len(requests.output.entries) - len(left)
    if ended == len(labels):
        return ""
    so_far = "; ".join(map(_so_far, left))
    return (
        f"Stopped after {ended} of {len(labels)} views{so_far and f' ({so_far})'}. What was "
        f"committed stays; the next run, or a worker, goes on from there."
    )


def _so_far(entry: dict[str, Any]) -> str:
    refresh = Refresh.objects.get(pk=entry["refresh"])
    phases = ", ".join(map(so_far, progress_of(refresh)))
    return f"{entry['view']}: {phases}"
