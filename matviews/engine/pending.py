"""Since when changes are pending that were drained from a view's queue.

A drain is processed once every phase of the view has passed it. Until then the shard keeps the time of the
oldest change in it, in `ViewShard.pending`, by number.
"""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from django.utils import timezone

from ..json_fields import Drain
from ..models import PhaseRun, ViewShard

__all__ = ["add_drain", "drop_processed", "oldest_drained", "processed", "utc"]


def utc(moment: datetime) -> datetime:
    """A time of the database's clock with its zone, which it lacks without USE_TZ."""
    return moment if timezone.is_aware(moment) else moment.replace(tzinfo=UTC)


def processed(shard: ViewShard, phases: Iterable[str]) -> int:
    """The number of the last drain that all of these phases have passed, -1 if one never succeeded."""
    return min(
        (
            shard.checkpoints[phase].drain_number if phase in shard.checkpoints else -1
            for phase in phases
        ),
        default=-1,
    )


def add_drain(shard: ViewShard, logged_at: datetime, runs: Iterable[PhaseRun]) -> None:
    """Note the drain that has just taken the number `shard.drain_number`; its oldest change was logged at a time.

    Drains that can only be passed together are kept as one, so that the list stays short however long a
    phase does not run. Phases stop at what they have passed, and at what one of the `runs` is to pass.
    """
    stops = {each.drain_number for each in shard.checkpoints.values()}
    leaders = (run.merged_into or run for run in runs)
    stops |= {run.checkpoint.drain_number for run in leaders if run.checkpoint} | {
        shard.drain_number
    }
    kept: dict[int, datetime] = {}
    for number, moment in [*shard.pending, Drain(shard.drain_number, utc(logged_at))]:
        stop = min(each for each in stops if each >= number)
        kept[stop] = min(moment, kept.get(stop, moment))
    shard.pending = [Drain(*each) for each in sorted(kept.items())]


def drop_processed(shard: ViewShard, phases: Collection[str]) -> None:
    """Forget the drains that every phase of the view has passed."""
    done = processed(shard, phases)
    shard.pending = [each for each in shard.pending if each.number > done]


def oldest_drained(shard: ViewShard, phases: Collection[str]) -> datetime | None:
    """When the oldest change was logged that was drained, and that some phase has yet to pass."""
    done = processed(shard, phases)
    return min((each.logged_at for each in shard.pending if each.number > done), default=None)
