"""Views whose statements are too long for the other views on their queue."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import NamedTuple

from django.db import DatabaseError, models

from ...definition import ViewDefinition
from ...exceptions import InvalidView
from ...json_fields import Cost
from ...models import ViewShard
from ...queryset import plan_of
from ..transactions import alias
from .records import load_records
from .timeliness import target_of

__all__ = ["LongStatement", "long_statements"]


class LongStatement(NamedTuple):
    """A staged view, and the view on its queue with the shortest target."""

    label: str
    model: type[models.Model]
    #: How long its last full refresh took; if that is unknown, the time limit that it asks for.
    takes: timedelta
    queue: str | None
    other: str
    target: timedelta


def long_statements() -> list[LongStatement]:
    """The staged views whose source takes longer than the target of another view on their queue."""
    return list(_found())


def _found() -> Iterator[LongStatement]:
    controls = sorted(load_records(None), key=lambda control: str(control.label))
    costs: dict[int, list[dict[str, Cost]]] = defaultdict(list)
    for view, cost in ViewShard.objects.values_list("view", "costs"):
        costs[view].append(cost)
    targets = {
        control.label: target
        for control in controls
        if control.enabled and (target := target_of(control.definition, control))
    }
    queues = {control.label: control.queue_name for control in controls}
    for control in controls:
        others = {
            label: target
            for label, target in targets.items()
            if label != control.label and queues[label] == queues[control.label]
        }
        definition = control.definition
        if not (others and control.enabled and definition and _is_staged(definition)):
            continue
        takes = timedelta(seconds=_seconds(definition, costs[control.pk]))
        other = min(others, key=others.__getitem__)
        if takes > others[other]:
            yield LongStatement(
                control.label, definition.model, takes, queues[control.label], other, others[other]
            )


def _is_staged(definition: ViewDefinition) -> bool:
    if not definition.derived or definition.errors:
        return False
    try:
        return plan_of(definition, alias()).strategy.staged
    except (InvalidView, DatabaseError):
        return False


def _seconds(definition: ViewDefinition, costs: Iterable[dict[str, Cost]]) -> float:
    full = [cost.full for by_phase in costs for cost in by_phase.values()]
    known = [seconds for seconds in full if seconds is not None]
    return sum(known) if known else definition.options.statement_timeout or 0.0
