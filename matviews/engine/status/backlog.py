"""The waiting requests, pending changes and parked keys of views. For metrics."""

from collections.abc import Mapping
from typing import NamedTuple

from django.db.models import Count, Exists, OuterRef, Q, Sum
from django.db.models.functions import Coalesce

from ... import changes
from ...models import ParkedKey, PhaseRun, Refresh, ViewControl
from ...phases import Phase
from ...states import RefreshState

__all__ = ["Backlog", "backlog"]


class Backlog(NamedTuple):
    """What every view has yet to do, by label; counts of 0 are left out."""

    #: Requests that no batch has begun to serve.
    requests: Mapping[str, int]
    #: Logged changes that no batch has read yet.
    changes: Mapping[str, int]
    #: Parked keys of each phase.
    parked: Mapping[tuple[str, Phase], int]


def backlog() -> Backlog:
    """Count what waits, in a number of statements that does not depend on the views."""
    labels = dict(ViewControl.objects.order_by().values_list("pk", "label"))
    parked = ParkedKey.objects.order_by().values("shard__view", "phase")
    return Backlog(
        requests={labels[pk]: count for pk, count in _requests() if pk in labels},
        changes={
            labels[pk]: count for pk, count in changes.count_waiting().items() if pk in labels
        },
        parked={
            (labels[pk], Phase(phase)): count
            for pk, phase, count in parked.values_list("shard__view", "phase", Count("pk"))
            if pk in labels
        },
    )


def _requests() -> list[tuple[int, int]]:
    """How many requests wait, by the view's control."""
    begun = PhaseRun.objects.filter(refresh=OuterRef("leader"))
    unfinished = Q(state=RefreshState.OPEN) | Q(state=RefreshState.MERGED)
    refreshes = Refresh.objects.filter(unfinished).annotate(leader=Coalesce("merged_into", "pk"))
    waiting = refreshes.filter(~Exists(begun)).order_by()
    return list(waiting.values("view").values_list("view", Sum("requests")))
