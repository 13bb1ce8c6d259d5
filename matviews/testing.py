"""For a project's own tests: refreshing views at once, without worker, broker or commit.

`TestCase` and pytest-django's `django_db` never commit, so what `View.refresh()` does after the
commit never happens there.
"""

from collections.abc import Sequence

from . import engine
from .exceptions import RefreshFailed
from .models import PhaseRun, Refresh
from .registry import registry
from .states import RefreshState, RunState
from .tasks import inline

__all__ = ["refresh_views"]


def refresh_views(*views: str | type) -> list[Refresh]:
    """Refresh views here and now, each after those that it reads.

    Inside the transaction of a test, this sees what the test has written and is rolled back with
    it.

    Args:
        views: classes or labels; by default, every view that a refresh of all includes.

    Returns:
        Their refreshes, in the order in which they ran.

    Raises:
        RefreshFailed: one failed, or is paused or waits; those after it were not started.
        UnknownView, InvalidView, ViewDisabled: nothing was done.
        InvalidRequest: called within `transaction.atomic()` that is not the test case's own.
    """
    named = [registry.usable(view).label for view in views]
    engine.check_no_transaction("refresh_views()")
    engine.sync_controls()  # a test that flushed the tables has deleted the controls
    engine.drop_orphaned_stages()
    labels = engine.in_order(named) if named else engine.views_to_refresh()
    return [_refreshed(label) for label in labels]


def _refreshed(label: str) -> Refresh:
    refresh = inline.run_to_end(engine.request(label, force=True))
    if refresh.state != RefreshState.SUCCEEDED:
        error = RefreshFailed(f"{label}: {refresh.error or _why_open(refresh)}")
        for trace in _traces(refresh):
            error.add_note(trace)
        raise error
    return refresh


def _why_open(refresh: Refresh) -> str:
    if refresh.finished_at:
        return f"it was {refresh.state}"
    if refresh.view.held:
        return "it is paused" if refresh.view.paused else "it is disabled"
    return f"it waits: {refresh.view.wait or 'it has failed'}"


def _traces(refresh: Refresh) -> Sequence[str]:
    failed = PhaseRun.objects.filter(refresh=refresh, state=RunState.FAILED).exclude(traceback="")
    return list(dict.fromkeys(failed.values_list("traceback", flat=True)))
