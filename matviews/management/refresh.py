"""Refreshing views in this process, one after the other."""

from typing import Any

from django.core.management.base import CommandError

from matviews import engine
from matviews.conf import get_settings
from matviews.engine import Order, progress_of
from matviews.models import Refresh, ViewControl
from matviews.states import RefreshState
from matviews.tasks import dispatch_others, inline

from . import tables
from .interrupts import StopRequest, stop_on_signal
from .progress import so_far
from .reporting import ProgressDisplay, Reporter
from .targets import Targets

__all__ = ["refresh", "report_failure"]


def refresh(targets: Targets) -> None:
    """Refresh the views and show the progress.

    Raises:
        CommandError: a view failed, or the command was interrupted.
    """
    targets.refuse_in_transaction()
    order = Order(targets.labels())
    labels = order.labels
    reporter = targets.output.reporter()
    with stop_on_signal(reporter.note) as stop:
        for label in labels:
            if stop():
                break
            requested = targets.request(label, order)
            if requested and requested.finished_at:
                targets.output.entries.append(tables.refresh_as_dict(label, requested))
                targets.output.say(f"{label}: nothing has changed")
            elif requested:
                _tell_quiet(label, targets)
                _run(requested, targets, reporter, stop)
        if stop() and (stopped := _stopped(targets, labels)):
            raise CommandError(stopped, returncode=stop.returncode)
    targets.raise_failed(labels)


def _run(requested: Refresh, targets: Targets, reporter: Reporter, stop: StopRequest) -> None:
    display = ProgressDisplay(requested, reporter)
    try:
        display.update(now=True)
        ended = inline.run_to_end(
            requested,
            on_report=display.report,
            on_wait=_Waiting(requested, display, reporter),
            on_closed=dispatch_others,
            stop=stop,
        )
        display.update(now=True)
    except KeyboardInterrupt:
        ended = Refresh.objects.select_related("view").get(pk=requested.pk)
    finally:
        reporter.close()
    targets.output.entries.append(tables.refresh_as_dict(ended.view.label, ended))
    report_failure(ended, targets, stop)


class _Waiting:
    """Called while a refresh waits: shows its progress, and once why it waits."""

    def __init__(self, requested: Refresh, display: ProgressDisplay, reporter: Reporter) -> None:
        self._view, self._display, self._reporter = requested.view_id, display, reporter
        self._told = False

    def __call__(self) -> None:
        self._display.update()
        view = ViewControl.objects.get(pk=self._view)
        if view.wait and view.governed_since and not self._told:
            self._told = True
            self._reporter.note(
                f"{view.label} waits, at most {get_settings().GOVERNOR_MAX_WAIT}: {view.wait}"
            )


def _tell_quiet(label: str, targets: Targets) -> None:
    """Say that a refresh runs in the view's quiet hours, because a person requests it."""
    hours = ViewControl.objects.get(label=label).quiet_hours
    if hours and hours.until(engine.utc_now()):
        targets.output.say(f"{label}: refreshed now, in its quiet hours ({hours})")


def report_failure(ended: Refresh, targets: Targets, stop: StopRequest) -> None:
    """Report why a refresh has not succeeded, if it has not."""
    label = ended.view.label
    if ended.state == RefreshState.FAILED:
        targets.fail(label, ended.error)
    elif ended.state == RefreshState.STOPPED:
        targets.fail(label, "was stopped by an operator; what was committed stays")
    elif not ended.finished_at and not stop():
        targets.fail(label, _why_open(ended.view))


def _why_open(view: ViewControl) -> str:
    """Why no batch of a view begins."""
    if view.paused:
        return "is paused; the refresh continues when it is resumed"
    if not view.enabled:
        return "is disabled; the refresh continues when it is enabled"
    if view.wait:
        return f"waits ({view.wait}); workers continue the refresh later"
    return "has failed and waits; the refresh continues with the next try"


def _stopped(targets: Targets, labels: list[str]) -> str:
    """How far the command came, "" if it had finished."""
    waiting = (RefreshState.OPEN, RefreshState.MERGED)
    left = [entry for entry in targets.output.entries if entry["state"] in waiting]
    ended = len(targets.output.entries) - len(left)
    if ended == len(labels):
        return ""
    phases = "; ".join(map(_so_far, left))
    return (
        f"Stopped after {ended} of {len(labels)} views{phases and f' ({phases})'}. What was "
        f"committed stays; the next run, or a worker, continues from there."
    )


def _so_far(entry: dict[str, Any]) -> str:
    refresh = Refresh.objects.get(pk=entry["refresh"])
    phases = ", ".join(map(so_far, progress_of(refresh)))
    return f"{entry['view']}: {phases}"
