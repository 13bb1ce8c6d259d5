"""The exceptions with which views last failed, for log records of other processes."""

from collections.abc import Collection
from typing import NamedTuple

from django.db.models import OuterRef, Subquery

from ...models import PhaseRun, Refresh, ViewControl
from ...phases import Phase
from ...redact import recorded_exception
from ...states import RefreshState, RunState

__all__ = ["RecordedFailure", "recorded_failures"]


class RecordedFailure(NamedTuple):
    """How a phase failed, according to the history."""

    phase: Phase
    #: With its class, message and traceback; None if no exception was the cause.
    exception: BaseException | None


def recorded_failures(labels: Collection[str]) -> dict[str, RecordedFailure]:
    """The first failure in the last refresh of each view that failed, by label.

    Two statements, however many views there are; none for no views.
    """
    if not labels:
        return {}
    failed = PhaseRun.objects.filter(state=RunState.FAILED).exclude(error="")
    last = Refresh.objects.filter(
        view=OuterRef("pk"), state=RefreshState.FAILED, pk__in=failed.values("refresh")
    )
    views = ViewControl.objects.filter(label__in=labels).order_by()
    refreshes = views.annotate(last=Subquery(last.order_by("-pk").values("pk")[:1]))
    by_refresh = dict(refreshes.values_list("last", "label"))
    found: dict[str, RecordedFailure] = {}
    runs = failed.filter(refresh__in=[pk for pk in by_refresh if pk]).order_by("pk")
    for run in runs.only("refresh", "phase", "error", "traceback"):
        exception = recorded_exception(run.error, run.traceback)
        found.setdefault(by_refresh[run.refresh_id], RecordedFailure(Phase(run.phase), exception))
    return found
