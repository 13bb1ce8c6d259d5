"""Which phase runs are long, so that they take turns with others in their queue."""

from ...definition import ViewDefinition
from ...json_fields import UNTRACKED, Cost
from ...models import PhaseRun, ViewShard
from ...phases import Phase

__all__ = ["is_long"]


def is_long(run: PhaseRun | None, definition: ViewDefinition | None, shard: ViewShard) -> bool:
    """Whether a run probably has more batches to do than one.

    It has had one, or it is a first build, or a full refresh that took long the last time.
    """
    if run is None or definition is None:
        return False
    if run.batches or run.failures:
        return True
    if run.phase not in definition.derived:
        return False
    if getattr(shard.view, Phase(run.phase).success_field) is None:
        return True
    checkpoint = shard.checkpoints.get(run.phase, UNTRACKED)
    is_full = checkpoint.fingerprint is None or checkpoint.drain_number < shard.full_refresh_after
    seconds = shard.costs.get(run.phase, Cost()).full or 0.0
    return is_full and seconds > shard.view.seconds_per_batch
