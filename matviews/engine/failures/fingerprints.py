"""The definitions with which the phases of a view last succeeded."""

from collections.abc import Iterable

from ...definition import ViewDefinition
from ...models import PhaseRun, ViewControl
from ...phases import Phase
from ...queryset import fingerprint_of
from ...states import RunState
from ..transactions import alias

__all__ = ["changed_phases", "save_fingerprints"]


def changed_phases(definition: ViewDefinition, control: ViewControl) -> list[Phase]:
    """The phases whose last success had another definition than the code has now."""
    last = {
        phase: control.fingerprints.get(phase) for phase in Phase if phase in definition.derived
    }
    if not any(last.values()):
        return []
    current = fingerprint_of(definition, alias())
    return [phase for phase, text in last.items() if text and current and text != current]


def save_fingerprints(control: ViewControl, runs: Iterable[PhaseRun]) -> None:
    """Save the fingerprint with which each derived phase succeeded. Call it in a transaction."""
    leaders = [(run, run.merged_into or run) for run in runs]
    unfinished = {run.phase for run, _leader in leaders if run.state != RunState.SUCCEEDED}
    new = {
        run.phase: leader.fingerprint
        for run, leader in leaders
        if leader.fingerprint and run.phase not in unfinished
    }
    if new.items() - control.fingerprints.items():
        locked = ViewControl.objects.select_for_update().get(pk=control.pk)
        locked.fingerprints |= new
        locked.save(update_fields=["fingerprints"])
        control.fingerprints = locked.fingerprints
