"""How long the refreshes of a view take, and when one must begin to be in time for a target."""

import statistics
from collections.abc import Collection
from datetime import timedelta
from typing import NamedTuple

from django.db.models import Exists, OuterRef

from ...models import PhaseRun, Refresh, ViewControl
from ...phases import Phase
from ...states import RefreshState

__all__ = ["MissedTarget", "missed_target", "time_left_after_change", "usual_duration"]

RECENT = 10  # refreshes that are taken into account
#: How many times its usual duration a refresh may take and still be in time.
MARGIN = 2


class MissedTarget(NamedTuple):
    """A target that the refreshes of a view are too slow for."""

    #: What they usually take.
    takes: timedelta
    target: timedelta


def usual_duration(
    view_id: int, phases: Collection[str], *, since: str = "started_at"
) -> timedelta | None:
    """The median of what the last refreshes of a view took, from their first batch to their end.

    Refreshes that had nothing to do are ignored. None if no other that included one of the phases
    has succeeded.

    Args:
        view_id: the primary key of its control.
        phases: those that count.
        since: the column to count from; "requested_at" includes the wait for a worker.
    """
    ran = PhaseRun.objects.filter(refresh=OuterRef("pk"), merged_into=None)
    done = Refresh.objects.filter(Exists(ran), view=view_id, state=RefreshState.SUCCEEDED)
    rows = list(
        done.order_by("-pk").values_list("phases", since, "finished_at")[: RECENT * len(Phase)]
    )
    took = [
        max(0.0, (end - begin).total_seconds())
        for included, begin, end in rows
        if begin and end and set(included) & set(phases)
    ]
    return timedelta(seconds=statistics.median(took[:RECENT])) if took else None


def time_left_after_change(control: ViewControl, phases: Collection[str]) -> timedelta | None:
    """How long a refresh of these phases may wait after a change, to be in time for their target.

    None without a target.
    """
    target = min(_targets(control, phases).values(), default=None)
    if target is None:
        return None
    takes = usual_duration(control.pk, phases, since="requested_at") or timedelta()
    return max(target - MARGIN * takes, timedelta())


def missed_target(control: ViewControl) -> MissedTarget | None:
    """The first target of a view that is shorter than its refreshes usually take; or None.

    Rows would miss such a target even if each change began a refresh at once.
    """
    for phases, target in _targets(control, control.options.phases).items():
        takes = usual_duration(control.pk, phases)
        if takes and takes > target:
            return MissedTarget(takes, target)
    return None


def _targets(control: ViewControl, phases: Collection[str]) -> dict[tuple[str, ...], timedelta]:
    """The targets of some phases of a view, by those that share one."""
    if control.freshness_target:
        return {tuple(phases): control.freshness_target}
    return {
        tuple(named or phases): target
        for named, target in control.options.targets.items()
        if not named or set(named) & set(phases)
    }
