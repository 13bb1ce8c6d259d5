"""Is a view fresh: what its `needs_*` hooks say, without doing anything."""

from collections.abc import Iterable

from ..contract import Shard
from ..definition import ViewDefinition
from ..models import ViewShard
from ..phases import Phase
from ..registry import registry
from .checkpoints import change_status_of
from .hooks import call_needs
from .requests import check_phases

__all__ = ["is_fresh"]


def is_fresh(view: str | type, *, phases: Iterable[Phase | str] | None = None) -> bool:
    """Tell whether no phase of a view has work waiting in any shard.

    Raises:
        UnknownView, InvalidView, InvalidRequest, HookError.
    """
    definition = registry.usable(view)
    wanted = check_phases(definition, phases)
    _stands, fresh = change_status_of(definition, wanted)
    if fresh:
        return True
    count = ViewShard.objects.filter(view__label=definition.label).count() or 1
    return not any(_needs(definition, phase, count) for phase in wanted)


def _needs(definition: ViewDefinition, phase: Phase, count: int) -> bool:
    return any(call_needs(definition, phase, Shard(number, count)) for number in range(count))
