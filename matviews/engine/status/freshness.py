"""Whether a view is fresh, by its checkpoints or its `needs_*` hooks. It changes nothing."""

from collections.abc import Iterable

from django.db.models import Count, Sum

from ...contract import Shard
from ...definition import ViewDefinition
from ...models import ViewShard
from ...phases import Phase
from ...registry import registry
from ..batches.checkpoints import change_status_of
from ..batches.hooks import call_needs
from ..graph.upstream import upstream_problems
from ..requests.requests import check_phases

__all__ = ["is_fresh"]


def is_fresh(view: str | type, *, phases: Iterable[Phase | str] | None = None) -> bool:
    """Whether no phase of a view has pending work in any shard, and no key is parked.

    It is not fresh while a view that it reads, directly or through others, has failed or is held.

    Raises:
        UnknownView, InvalidView, InvalidRequest, HookError.
    """
    definition = registry.usable(view)
    requested = check_phases(definition, phases)
    if any(upstream_problems(definition.label)):
        return False
    status, fresh = change_status_of(definition, requested)
    if status and fresh and not status.parked:
        return True
    shards = ViewShard.objects.filter(view__label=definition.label)
    found = shards.aggregate(count=Count("pk"), parked=Sum("parked_count"))
    if found["parked"] and definition.parking.intersection(requested):
        return False  # and to read the source might fail
    count = found["count"] or 1
    return not any(_needs(definition, phase, count) for phase in requested)


def _needs(definition: ViewDefinition, phase: Phase, count: int) -> bool:
    return any(
        call_needs(definition, phase, shard=Shard(number, count), parked=())
        for number in range(count)
    )
