"""Which problems are one alarm: views that are late for the same cause are listed under it."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from .. import engine
from ..models import RefreshSchedule
from ..states import ViewState
from .problems import NO_POLLING, OF_SOME_ROWS, HealthState, Problem

__all__ = ["STATE", "Cause", "causes_of"]

STATE = "state"  # the slot of the alarm about the state of a view as a whole
LATE = (
    ViewState.BEHIND, ViewState.NEVER_BUILT, ViewState.CHANGED, ViewState.UPSTREAM_FAILED,
    ViewState.UPSTREAM_PAUSED,
)  # fmt: skip
# A view in these states makes those late that read it; its other states delay none.
MAKES_LATE = (
    ViewState.INVALID, ViewState.SUSPENDED, ViewState.FAILED, ViewState.NOT_MIGRATED,
    ViewState.BEHIND, ViewState.UPSTREAM_FAILED, ViewState.UPSTREAM_PAUSED,
)  # fmt: skip
# What makes every view late, if it is broken.
FOR_ALL = ("maintenance", "beat", "broker", "no worker")
# It only repeats what each view says, and its alarm would end with the first one that recovers.
SUMMARY = "all views"


@dataclass(kw_only=True, slots=True)
class Cause:
    """A problem that has an alarm of its own, and the views that are late because of it."""

    problem: Problem
    #: Labels of the views.
    views: list[str] = field(default_factory=list)

    @property
    def slot(self) -> str:
        """What distinguishes the alarms of one view."""
        kind = self.problem.kind
        return STATE if kind in ViewState.values and kind not in OF_SOME_ROWS else kind

    @property
    def key(self) -> tuple[str, str]:
        """What distinguishes the alarm from others that are open."""
        return self.problem.view, self.slot


def causes_of(problems: Iterable[Problem]) -> list[Cause]:
    """The problems that have an alarm of their own, each with the views that it makes late."""
    causes = [Cause(problem=each) for each in problems if each.kind != SUMMARY]
    late = {each.problem.view: each for each in causes if each.problem.kind in LATE}
    if not late:
        return causes
    for_all = next(filter(_makes_all_late, causes), None)
    roots: dict[str, Cause | None] = (
        dict.fromkeys(late, for_all) if for_all else _upstream(late, causes)
    )
    for cause in () if for_all else causes:
        delayed = _delayed_by(cause)
        # They delay those that read them.
        roots |= {
            label: cause
            for label, root in roots.items()
            if (root or late[label]).problem.view in delayed
        }
    for label, cause in late.items():
        if root := roots.get(label):
            root.views.append(label)
            causes.remove(cause)
    _join_held(causes)
    return causes


def _makes_all_late(cause: Cause) -> bool:
    return _is_broken(cause) and not cause.problem.views


def _is_broken(cause: Cause) -> bool:
    return cause.problem.state is HealthState.BROKEN and cause.problem.kind in FOR_ALL


def _delayed_by(cause: Cause) -> Collection[str]:
    """The views that a cause makes late, by label, if it makes only some late."""
    if cause.problem.kind == NO_POLLING:
        schedules = RefreshSchedule.objects.filter(on_change=True, enabled=True)
        return set(schedules.values_list("view__label", flat=True))
    return cause.problem.views if _is_broken(cause) else ()


def _join_held(causes: list[Cause]) -> None:
    """One alarm for all views that wait only for views which a person has paused or disabled.

    The first one by label carries the alarm, and the others are listed under it.
    """
    held = [each for each in causes if each.problem.kind == ViewState.UPSTREAM_PAUSED]
    waiting = sorted(held, key=_label)
    for cause in waiting[1:]:
        waiting[0].views += [cause.problem.view, *cause.views]
        causes.remove(cause)


def _label(cause: Cause) -> str:
    return cause.problem.view


def _upstream(late: Mapping[str, Cause], causes: Iterable[Cause]) -> dict[str, Cause | None]:
    """By view that is late, the first cause among the views that it reads, if there is one."""
    reads = engine.views_read()
    by_view = {each.problem.view: each for each in causes if each.problem.kind in MAKES_LATE}
    roots: dict[str, Cause | None] = {}
    for label in late:
        root = _root(label, late, by_view.keys(), reads)
        roots[label] = by_view[root] if root != label else None
    return roots


def _root(
    label: str,
    late: Collection[str],
    troubled: Collection[str],
    reads: Mapping[str, Collection[str]],
) -> str:
    """The view at the root of a delay: what makes this view late, what makes that one late, etc.

    In a cycle of late views, the first by label is the root.
    """
    seen = {label}
    while label in late:
        above = sorted(each for each in reads.get(label, ()) if each in troubled)
        if not above:
            return label
        if above[0] in seen:
            return min(seen)
        label = above[0]
        seen.add(label)
    return label
