"""How long it takes after a fault until a batch commits, and until every view is on time."""

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field

from django.db.models import Sum

from matviews import engine
from matviews.models import ViewShard
from matviews.queryset import plan

__all__ = ["Recoveries", "late_views"]

SAMPLE_EVERY = 0.5  # seconds


def late_views() -> dict[str, str]:
    """What is wrong with the views that nobody holds and that are not on time, by label."""
    plan._fingerprint_of.cache_clear()  # a deploy has changed the code under this process
    statuses = engine.view_statuses(counted=False)
    return {each.label: each.fault.value for each in statuses if each.fault and not each.held}


@dataclass
class _Waiting:
    """A fault that has ended."""

    kind: str
    #: When, by the monotonic clock.
    since: float
    #: How many batches there had been, as first seen after the end.
    batches: int | None = None
    committed: bool = False


@dataclass
class _Late:
    """A view that is not on time."""

    #: Since when, by the monotonic clock.
    since: float
    #: What was wrong meanwhile.
    faults: set[str] = field(default_factory=set)


@dataclass
class Recoveries:
    """What was measured, by kind of fault, in seconds after the fault's end."""

    to_batch: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    to_on_time: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    #: For each view, the longest time in which it was never on time, and what was wrong then.
    longest: dict[str, tuple[float, str]] = field(default_factory=dict)
    _late: dict[str, _Late] = field(default_factory=dict)
    #: Faults after which another came before every view was on time.
    _waiting: list[_Waiting] = field(default_factory=list)
    _sampled_at: float = 0.0

    def ended(self, kind: str) -> None:
        """A fault has ended now."""
        self._waiting.append(_Waiting(kind, time.monotonic()))

    def sample(self) -> None:
        """Look at the database, at most every `SAMPLE_EVERY` seconds, if anything is awaited."""
        if not self._waiting or time.monotonic() < self._sampled_at + SAMPLE_EVERY:
            return
        self._sampled_at = time.monotonic()
        batches = ViewShard.objects.aggregate(batches=Sum("token"))["batches"]
        late = late_views()
        all_on_time, now = not late, time.monotonic()
        self.note(late, now)
        for each in self._waiting:
            if each.batches is None:
                each.batches = batches
            elif not each.committed and batches != each.batches:
                each.committed = True
                self.to_batch[each.kind].append(now - each.since)
            if all_on_time and each.committed:
                self.to_on_time[each.kind].append(now - each.since)
        if all_on_time:
            self._waiting = [each for each in self._waiting if not each.committed]

    def note(self, late: dict[str, str], now: float) -> None:
        """What is wrong with which views, at a time of the monotonic clock."""
        self._late = {label: self._late.get(label) or _Late(now) for label in late}
        for label, each in self._late.items():
            each.faults.add(late[label])
            seconds = now - each.since
            if seconds >= self.longest.get(label, (0.0, ""))[0]:
                self.longest[label] = seconds, ", ".join(sorted(each.faults))

    def figures(self) -> dict[str, list[str]]:
        """For each kind: median and maximum to the next batch, and to on time."""
        measured = (self.to_batch, self.to_on_time)
        kinds = {kind for each in measured for kind in each}
        return {
            kind: [figure for each in measured for figure in _figures(each[kind])] for kind in kinds
        }


def _figures(seconds: list[float]) -> tuple[str, str]:
    if not seconds:
        return "-", "-"
    return f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"
