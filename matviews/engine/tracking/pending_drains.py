"""The drains of a view's queue that some phase has yet to process, with the times of their changes.

A drain is processed once every phase of the view has passed it. Until then, the shard's
`pending_drains` keeps its number and the time of its oldest change.
"""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from django.utils import timezone

from ...json_fields import Drain
from ...models import PhaseRun, ViewShard

__all__ = ["add_drain", "drop_processed", "oldest_drained", "processed", "utc"]


def utc(time: datetime) -> datetime:
    """A time of the database's clock with its zone, which Django leaves out without USE_TZ."""
    return time if timezone.is_aware(time) else time.replace(tzinfo=UTC)


def processed(shard: ViewShard, phases: Iterable[str]) -> int:
    """The number of the last drain that all these phases have passed; -1 if one never succeeded."""
    return min(
        (
            shard.checkpoints[phase].drain_number if phase in shard.checkpoints else -1
            for phase in phases
        ),
        default=-1,
    )


def add_drain(shard: ViewShard, logged_at: datetime, runs: Iterable[PhaseRun]) -> None:
    """Record the drain `shard.drain_number`, whose oldest change was logged at `logged_at`.

    Drains that phases can only pass together are kept as one, so that the list stays short even if
    a phase does not run for long. A phase can stop at a checkpoint of the shard or of one of the
    `runs`.
    """
    leaders = (run.merged_into or run for run in runs)
    checkpoints = [*shard.checkpoints.values(), *(leader.checkpoint for leader in leaders)]
    stops = {checkpoint.drain_number for checkpoint in checkpoints if checkpoint} | {
        shard.drain_number
    }
    oldest: dict[int, datetime] = {}
    for drain in [*shard.pending_drains, Drain(shard.drain_number, utc(logged_at))]:
        stop = min(number for number in stops if number >= drain.number)
        oldest[stop] = min(drain.logged_at, oldest.get(stop, drain.logged_at))
    shard.pending_drains = [Drain(*item) for item in sorted(oldest.items())]


def drop_processed(shard: ViewShard, phases: Collection[str]) -> None:
    """Drop the drains that every phase of the view has passed."""
    done = processed(shard, phases)
    shard.pending_drains = [drain for drain in shard.pending_drains if drain.number > done]


def oldest_drained(shard: ViewShard, phases: Collection[str]) -> datetime | None:
    """When the oldest drained change that some phase has yet to process was logged, or None."""
    done = processed(shard, phases)
    return min(
        (drain.logged_at for drain in shard.pending_drains if drain.number > done), default=None
    )
