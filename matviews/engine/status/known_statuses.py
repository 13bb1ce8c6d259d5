"""The statuses of quiet views, in which only the age changes from one reading to the next."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from ...conf import get_settings
from ...definition import ViewDefinition
from ...queryset import fingerprint_of
from ...states import RefreshState, ViewState
from ..graph.upstream import NO_PROBLEM, Upstream
from ..transactions import alias
from .timeliness import Sources
from .view_status import ViewStatus

__all__ = ["known_status", "remember"]


class _Known(NamedTuple):
    """A status, and what it follows from."""

    #: The same objects mean the same status; they are kept, so that no other gets their ids.
    basis: Sequence[object]
    status: ViewStatus


_STATUSES: dict[str, _Known] = {}


def known_status(
    definition: ViewDefinition | None, control: Any, sources: Sources, upstream: Upstream
) -> ViewStatus | None:
    """The status of a view if this process has found it before, and only time has passed since.

    Args:
        definition: the view in the code.
        control: its control, as of `load_records`.
        sources: what is known about its source tables.
        upstream: the problems of the views that it reads.
    """
    known = _STATUSES.get(control.label)
    if known is None or not _is_quiet(control, sources, upstream):
        return None
    basis = _basis(definition, control, sources)
    if len(basis) != len(known.basis) or any(map(_is_other, basis, known.basis)):
        return None
    last = known.status
    age = sources.now - last.last_success if last.last_success else None
    staleness = timedelta() if age is not None and sources.logs_all(control) else age
    is_behind = bool(staleness and last.target and staleness > last.target)
    if is_behind != (ViewState.BEHIND in last.faults):
        return None
    return last.later(age=age, staleness=staleness)


def remember(
    definition: ViewDefinition | None,
    control: Any,
    sources: Sources,
    upstream: Upstream,
    status: ViewStatus,
) -> None:
    """Keep a status for `known_status`, if nothing but time can change it."""
    if definition is None or not _is_quiet(control, sources, upstream):
        return
    basis = _basis(definition, control, sources)
    if basis[-1] or not definition.derived:  # otherwise it may be compiled later
        _STATUSES[control.label] = _Known(basis, status)


def _basis(definition: ViewDefinition | None, control: Any, sources: Sources) -> list[object]:
    derived = definition is not None and definition.derived
    return [
        definition, get_settings(), sources.trackings.get(control.pk), control.known,
        control.last_state, control.intervals, *control.all_shards,
        fingerprint_of(definition, alias()) if definition and derived else "",
    ]  # fmt: skip


def _is_other(one: object, other: object) -> bool:
    """Whether two things are not the same; texts may be equal."""
    return one is not other and not (isinstance(one, str) and one == other)


def _is_quiet(control: Any, sources: Sources, upstream: Upstream) -> bool:
    """Whether nothing happens to a view, and nothing is wrong that passes by itself."""
    tracking = sources.trackings.get(control.pk)
    return not (
        control.open_refreshes
        or control.verifying
        or control.retry_at
        or control.suspended_at
        or control.failures
        or control.echoes
        or control.last_state == RefreshState.FAILED
        or upstream is not NO_PROBLEM
        or control.pk in sources.waiting
        or sources.unlogged.get(control.pk)
        or (tracking and tracking.has_dates)
        or any(control.options.targets)  # phases have targets of their own
        or control.quiet_hours
        or any(shard.pending_drains for shard in control.all_shards)
    )
