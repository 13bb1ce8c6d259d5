"""Views on change whose refreshes change their own source: a loop that no check sees.

A trigger of the project may write into a source of a view when the view's rows change. Each refresh
then makes the next one due, for ever. Such a view is slowed, not stopped: other changes of its
source are still refreshed at once. It is recognized by the times when its changes were logged: in a
loop, all of them were logged while the view, or one that reads it, was being refreshed, and none at
other times.
"""

import logging
from collections import Counter
from datetime import datetime, timedelta

from ... import changes
from ...logs import log
from ...models import Refresh, ViewControl
from ...phases import Phase
from ..transactions import alias, now
from .view_graph import reached, view_graph

__all__ = ["LOOP_TEXT", "Echoes", "is_in_loop"]

#: A refresh that is due so soon after the last one may be an echo of it.
QUICK = timedelta(seconds=3)
#: How many of these in a row are not looked into: a busy source has as many.
UNSUSPECTED = 20
#: How long the first echo waits; each further one waits twice as long, up to a limit.
FIRST_WAIT, MAX_WAIT = timedelta(milliseconds=100), timedelta(minutes=1)
#: So many echoes in a row are reported: a minute of a loop.
REPORTED = 10
#: Refreshes that are looked at, of all views in question.
RECENT = 20
#: What is wrong, for a person.
LOOP_TEXT = (
    "its refreshes change its own source, so they are slowed down: look for a trigger that writes "
    "to one of its source tables when its rows change"
)

logger = logging.getLogger(__name__)


class Echoes:
    """Tells refreshes that are due to a change from those that are due to the last refresh."""

    def __init__(self) -> None:
        #: By view, how often in a row it was due soon after its last refresh.
        self._quick = Counter[int]()

    def record_due(self, view: ViewControl) -> float:
        """Count a refresh that is due; return for how many seconds it must wait, as a likely echo.

        It takes no statement, unless the view has been due very often in a row.
        """
        if not view.echoes and not self._count_if_quick(view):
            return 0.0
        passed = _time_at_rest(view)
        if passed is None:
            self._quick.pop(view.pk, None)
            _record(view, view.echoes // 2)
            return 0.0
        if not view.echoes:
            _record(view, 1)
        elif passed >= _wait(view.echoes) and _wait(view.echoes) < MAX_WAIT:
            _record(view, view.echoes + 1)
            return 0.0
        return max(0.0, (_wait(max(view.echoes, 1)) - passed).total_seconds())

    def _count_if_quick(self, view: ViewControl) -> bool:
        ended = _last_success(view)
        if ended is None or now() - ended > QUICK:
            self._quick.pop(view.pk, None)
            return False
        self._quick[view.pk] += 1
        return self._quick[view.pk] > UNSUSPECTED


def is_in_loop(view: ViewControl) -> bool:
    """Whether the refreshes of a view are known to change its source, and still do."""
    ended = _last_success(view)
    return view.echoes >= REPORTED and ended is not None and now() - ended < 3 * MAX_WAIT


def _last_success(view: ViewControl) -> datetime | None:
    ended = [getattr(view, phase.success_field) for phase in Phase]
    return max(filter(None, ended), default=None)


def _wait(echoes: int) -> timedelta:
    return timedelta(seconds=min(FIRST_WAIT.total_seconds() * 2 ** (echoes - 1), MAX_WAIT.seconds))


def _time_at_rest(view: ViewControl) -> timedelta | None:
    """How long ago the view and those that read it were last refreshed.

    None if its source has changed since, or if one of them is being refreshed.
    """
    labels = reached([view.label], view_graph().views_reading)
    rows = Refresh.objects.filter(view__label__in=labels).order_by("-pk")
    recent = list(rows.values_list("finished_at", flat=True)[:RECENT])
    ends = list(filter(None, recent))
    definition = view.definition
    if len(ends) < len(recent) or not ends or definition is None:
        return None
    passed = now() - max(ends)
    tables = changes.known_tracking(definition, alias()).tables
    newest = changes.newest_waiting(view.pk, tables)
    return None if newest is None or newest < passed else passed


def _record(view: ViewControl, echoes: int) -> None:
    """Record how often in a row it was an echo, and say once that it is a loop."""
    if echoes == view.echoes:
        return
    same = ViewControl.objects.filter(pk=view.pk, echoes=view.echoes)
    if same.update(echoes=echoes) and echoes == REPORTED > view.echoes:
        log(logger, logging.WARNING, LOOP_TEXT, view=view.label)
