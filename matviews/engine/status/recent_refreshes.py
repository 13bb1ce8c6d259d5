"""How often the last refreshes of a view were full, and why."""

from collections import Counter
from dataclasses import dataclass

from ... import changes
from ...models import PhaseRun
from ...phases import Phase
from ...registry import registry
from ...states import RefreshStrategy, RunState
from ..transactions import alias

__all__ = ["RecentRefreshes", "recent_refreshes"]

MAX_REFRESHES = 20
# Fewer full refreshes are no habit: a new view begins with one.
MIN_FULL = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class RecentRefreshes:
    """The last refreshes of a view in which a phase ran, at most `MAX_REFRESHES`."""

    #: How many there are.
    count: int
    #: How many of them were full in some phase.
    full: int
    #: Why most of these were; "" if there are none.
    reason: str
    #: Whether every refresh of the view is full now, because it is pinned to that or not tracked.
    intended: bool = False

    @property
    def usually_full(self) -> bool:
        """Whether most of them were full, not only the first ones, and need not be."""
        return not self.intended and self.full >= MIN_FULL and 2 * self.full > self.count

    @property
    def in_words(self) -> str:
        """How often they were full, and why, for a person; "" if they never were, or have to be."""
        if not self.full or self.intended:
            return ""
        if self.count == 1:
            return f"the last refresh was full because {self.reason}"
        return (
            f"{self.full} of the last {self.count} refreshes were full, most of them because "
            f"{self.reason}"
        )


def recent_refreshes(label: str) -> RecentRefreshes:
    """The last refreshes of a view; those in which nothing had changed do not count."""
    runs = PhaseRun.objects.filter(
        shard__view__label=label, merged_into=None, state=RunState.SUCCEEDED
    )
    # Only hooks work in several shards, and their runs have no reason.
    columns = ("refresh", "full_refresh_reason", "shard__view__strategy")
    newest = list(runs.order_by("-pk").values_list(*columns)[: MAX_REFRESHES * len(Phase)])
    reasons: dict[int, str] = {}
    for refresh, reason, _strategy in newest:
        if len(reasons) < MAX_REFRESHES or refresh in reasons:
            reasons[refresh] = reasons.get(refresh) or reason
    full = Counter(filter(None, reasons.values()))
    [(reason, _times)] = full.most_common(1) or [("", 0)]
    pinned = newest[0][-1] if newest else None
    return RecentRefreshes(
        count=len(reasons), full=full.total(), reason=reason, intended=_is_intended(label, pinned)
    )


def _is_intended(label: str, pinned: str | None) -> bool:
    """Whether every refresh of a view has to be full.

    Args:
        label: the view.
        pinned: the strategy in its control, if any.
    """
    if label not in registry:
        return False
    definition = registry.find(label)
    strategy = RefreshStrategy(pinned) if pinned else definition.options.strategy
    return bool(strategy and strategy.is_full) or bool(
        changes.known_tracking(definition, alias()).reason
    )
