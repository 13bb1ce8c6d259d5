"""How old the rows of a view are, and how old they may be: by view, or by phase."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError

from ...changes import Tracking
from ...definition import ViewDefinition
from ...exceptions import InvalidView
from ...models import ViewControl
from ...phases import Phase
from ...queryset import plan_of
from ..tracking.pending_drains import oldest_drained, utc
from ..transactions import alias

__all__ = ["Sources", "change_lag", "target_of", "timeliness"]

TARGET_INTERVALS = 2  # of the schedule: the target of a view without one of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """What is known about the source tables of all views, by primary key of the control."""

    #: The time by the database's clock.
    now: datetime
    #: How long the oldest change has waited to be drained.
    waiting: Mapping[int, timedelta]
    #: What the views depend on.
    trackings: Mapping[int, Tracking]
    #: The tables whose changes are not logged for a view.
    unlogged: Mapping[int, set[str]]
    #: Which of these tables triggers cannot track.
    untrackable: Collection[str]

    def logs_all(self, control: ViewControl) -> bool:
        """Whether every change that matters to a view is logged."""
        return control.pk in self.trackings and not self.unlogged[control.pk]

    def missing(self, control: ViewControl) -> tuple[str, ...]:
        """The tables whose changes triggers could log for a view, but do not."""
        return tuple(sorted(self.unlogged.get(control.pk, set()) - set(self.untrackable)))


def timeliness(
    definition: ViewDefinition | None,
    control: Any,
    successes: Mapping[Phase, datetime | None],
    sources: Sources,
) -> tuple[timedelta | None, timedelta | None]:
    """The target of a view, and how old its rows are.

    If its phases have targets of their own, those of the phases that need attention most.
    """
    if None in successes.values():
        return target_of(definition, control), None
    in_code = definition.options.targets if definition and not control.freshness_target else {}
    if not any(in_code):  # one for all phases, or none
        return target_of(definition, control), _staleness(definition, control, successes, sources)
    found = []
    for phases, target in in_code.items():
        own = {phase: successes[phase] for phase in phases if phase in successes}
        found.append((target, _staleness(definition, control, own, sources) or timedelta()))
    return max(found, key=lambda each: each[1] / each[0])


def _staleness(
    definition: ViewDefinition | None,
    control: Any,
    successes: Mapping[Phase, datetime | None],
    sources: Sources,
) -> timedelta | None:
    """How old the rows of phases are: as old as the oldest change that they do not include.

    If changes do not show that, or time alone changes the source, as old as the last success.
    """
    oldest = min(filter(None, successes.values()), default=None)
    age = sources.now - oldest if oldest else None
    if age is None or not sources.logs_all(control) or definition is None:
        return age
    waited = change_lag(control, successes, sources) or timedelta()
    return max(age, waited) if _is_past(definition, control, successes, sources) else waited


def _is_past(
    definition: ViewDefinition, control: Any, phases: Collection[Phase], sources: Sources
) -> bool:
    """Whether the dates in `source()` have changed since these phases last succeeded."""
    if not sources.trackings[control.pk].has_dates:
        return False
    try:
        now = plan_of(definition, alias()).exact_fingerprint
    except (InvalidView, DatabaseError):
        return True
    covered = [shard.checkpoints.get(phase) for shard in control.all_shards for phase in phases]
    return any(each is None or each[1] != now for each in covered)


def change_lag(control: Any, phases: Collection[Phase], sources: Sources) -> timedelta | None:
    """How long ago the oldest change was logged that a phase has yet to process."""
    if not sources.logs_all(control):
        return None
    drained = (oldest_drained(shard, phases) for shard in control.all_shards)
    ages = [utc(control.now) - moment for moment in drained if moment]
    ages += [sources.waiting[control.pk]] if control.pk in sources.waiting else []
    return max(ages, default=None)


def target_of(definition: ViewDefinition | None, control: Any) -> timedelta | None:
    """How old the rows of a view may be, if its phases have no targets of their own."""
    in_code = definition.options.targets.get(()) if definition else None
    own: timedelta | None = control.freshness_target or in_code
    if own:
        return own
    intervals: list[timedelta | None] = control.intervals
    if not intervals or None in intervals:
        return None
    return TARGET_INTERVALS * max(filter(None, intervals))
