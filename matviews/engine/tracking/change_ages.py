"""How old the changes are that views on change have yet to process."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property

from django.db.models import Min

from ... import changes
from ...models import ParkedKey, RefreshSchedule, ViewShard
from ...phases import Phase
from ..transactions import now, utc_now
from .pending_drains import oldest_drained

__all__ = ["Ages", "phases_of"]


def phases_of(schedule: RefreshSchedule) -> tuple[Phase, ...]:
    """The phases that a schedule requests."""
    has = schedule.view.options.phases
    return tuple(phase for phase in has if not schedule.phases or phase in schedule.phases)


class Ages:
    """Ages of the changes of some views, read at most once per poll, each kind in a statement.

    Args:
        views: the primary keys of their controls.
    """

    def __init__(self, views: Collection[int]) -> None:
        self._views = views

    def oldest(self, view_id: int, phases: Collection[Phase]) -> timedelta | None:
        """The age of the oldest logged change, drained or not; None if there is none."""
        ages = (self._waiting.get(view_id), self._drained(view_id, phases))
        return max((age for age in ages if age is not None), default=None)

    def since_seen(self, schedule: RefreshSchedule, *, waiting: bool) -> timedelta | None:
        """The longest time for which the first change can have been visible; None if there is none.

        Its transaction may have logged it long before it committed. But the rows do not include
        it, so it was not visible yet when they were last computed.

        Args:
            schedule: that of a view.
            waiting: whether changes wait to be drained.
        """
        phases = phases_of(schedule)
        drained = self._drained(schedule.view_id, phases)
        if not waiting:
            return drained
        age = self._waiting.get(schedule.view_id, timedelta())
        computed = [getattr(schedule.view, phase.as_of_field) for phase in phases]
        since = [now() - moment for moment in computed if moment]
        age = min(age, max(since)) if since and None not in computed else age
        return max(drained or timedelta(), age)

    def _drained(self, view_id: int, phases: Collection[Phase]) -> timedelta | None:
        """How old the oldest drained change is that one of the phases has yet to process.

        None if there is none, and no parked key to be tried again now.
        """
        ages = list[timedelta]()
        for shard in self._shards.get(view_id, ()):
            oldest = oldest_drained(shard, phases)
            ages += [utc_now() - oldest] if oldest else []
            if shard.parked_count:
                retries = (self._retries.get((shard.pk, phase.value)) for phase in phases)
                ages += [now() - moment for moment in retries if moment]
        return max(ages, default=None)

    @cached_property
    def _waiting(self) -> Mapping[int, timedelta]:
        return changes.oldest_waiting(self._views)

    @cached_property
    def _shards(self) -> Mapping[int, Sequence[ViewShard]]:
        found = defaultdict[int, list[ViewShard]](list)
        for each in ViewShard.objects.filter(view__in=self._views).order_by("pk"):
            found[each.view_id].append(each)
        return found

    @cached_property
    def _retries(self) -> Mapping[tuple[int, str], datetime]:
        """Since when parked keys are to be tried again, by shard and phase."""
        due = ParkedKey.objects.filter(shard__view__in=self._views, retry_at__lte=now())
        rows = due.order_by().values("shard", "phase").annotate(first=Min("retry_at"))
        return {(each["shard"], each["phase"]): each["first"] for each in rows}
