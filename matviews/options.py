"""`MatviewMeta`: the options of a view, their defaults and what each may be."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from django.core.checks import CheckMessage
from django.db.models import Model, QuerySet

from .faults import fault_in
from .limits import (
    BATCH_SECONDS,
    BATCH_SIZE,
    FAILURE_COUNT,
    FRESHNESS_TARGET,
    PARKED_KEYS,
    REFRESH_DELAY,
    REFRESH_INTERVAL,
    RETENTION,
    SHARD_COUNT,
    DurationRange,
    queue_fault,
)
from .phases import Phase
from .quiet_hours import QuietHours, quiet_hours_fault, read_quiet_hours
from .states import RefreshStrategy

__all__ = ["META", "DependsOn", "ViewOptions", "read_options"]

META = "MatviewMeta"

DependsOn = tuple[str, ...] | Callable[[QuerySet[Any]], Iterable[Any]] | None
Fault = Callable[[object], str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewOptions:
    """The options of `MatviewMeta`."""

    #: The phases of the view; it needs no hooks for the others.
    phases: tuple[Phase, ...] = tuple(Phase)
    #: Names of the fields that identify a row in `source()`; None takes the only unique constraint.
    #: Only for views with a `source()`.
    key: tuple[str, ...] | None = None
    #: Rows per batch; None lets the pacer choose.
    batch_size: int | None = None
    #: Seconds per batch that the pacer aims at; None takes the setting.
    batch_target: float | None = None
    #: Seconds per statement of a batch; None takes the setting.
    statement_timeout: float | None = None
    #: Into how many shards the keys are split, to be processed in parallel; the initial value of
    #: the control.
    shards: int = 1
    #: Whether a refresh of all views includes this one; the initial value of the control.
    include_in_refresh_all: bool = True
    #: How old the rows may be before the view counts as behind, or the rows of each phase.
    freshness_target: timedelta | Mapping[Phase, timedelta] | None = None
    #: One interval, or one per phase; the initial value of the view's schedules, which operators
    #: own from then on.
    refresh_every: timedelta | Mapping[Phase, timedelta] | None = None
    #: How long after the first change the view is refreshed, 0 for at once: one delay, or one per
    #: phase; the initial value of the view's schedules. Without it and `refresh_every`, a view with
    #: a `freshness_target` is refreshed in time for that, if its changes are tracked.
    refresh_on_change: timedelta | Mapping[Phase, timedelta] | None = None
    #: How often the rows are compared with `source()` in the background; the initial value of a
    #: schedule, which operators own from then on.
    verify_every: timedelta | None = None
    #: Seconds that a failing view waits at most before its next try; None takes the setting.
    max_retry_delay: float | None = None
    #: After how many failures in a row, and not before how long, the view is suspended; None takes
    #: the setting.
    suspend_after_failures: int | None = None
    suspend_after: timedelta | None = None
    #: How many of its keys are parked at most; 0 parks none. None takes the setting.
    max_parked_keys: int | None = None
    #: The Celery queue of its refreshes, schedules and batches; None takes the setting.
    queue: str | None = None
    #: The hours of each day in which refreshes that nobody forces wait, and lateness is no fault.
    quiet_hours: QuietHours | None = None
    #: Whether triggers log the changes of the tables that `source()` reads, where that is possible;
    #: otherwise every refresh is a full one.
    tracking: bool = True
    #: How every refresh after a change is done; None leaves the choice to what refreshes cost. Only
    #: for views with a `source()`.
    strategy: RefreshStrategy | None = None
    #: Whether changes are added to sums and subtracted from them, instead of recomputing groups.
    #: Only for views whose `source()` counts and adds up rows of one table, perhaps with lookups in
    #: others. None leaves that to a rule, which decides when the view is first installed.
    additive: bool | None = None
    #: Dependencies that cannot be derived, by model or label: the names of those fields whose
    #: values are the key; or a callable from a queryset of changed rows to keys; or None if a
    #: change may affect any key. Required, if only as {}, for sources with raw SQL.
    depends_on: Mapping[type[Model] | str, DependsOn] | None = None

    @property
    def intervals(self) -> dict[tuple[Phase, ...], timedelta]:
        """The intervals of `refresh_every`, by the phases that share one; () means all phases."""
        return _by_phases(self.refresh_every)

    @property
    def delays(self) -> dict[tuple[Phase, ...], timedelta]:
        """The delays of `refresh_on_change`, by the phases that share one; () means all phases."""
        return _by_phases(self.refresh_on_change)

    @property
    def targets(self) -> dict[tuple[Phase, ...], timedelta]:
        """The targets of `freshness_target`, by the phases that share one; () means all phases."""
        return _by_phases(self.freshness_target)


def _by_phases(
    value: timedelta | Mapping[Phase, timedelta] | None,
) -> dict[tuple[Phase, ...], timedelta]:
    if isinstance(value, timedelta):
        return {(): value}
    by_phase = value or {}
    return {
        tuple(phase for phase in Phase if by_phase.get(phase) == duration): duration
        for duration in dict.fromkeys(by_phase.values())
    }


def read_options(model: type[Model], problems: list[CheckMessage]) -> ViewOptions:
    """The options of a view. An invalid one is added to the problems and keeps its default."""
    meta = _read_meta(model, problems)
    values: dict[str, Any] = {}
    for name in dir(meta) if meta else ():
        if name.startswith("_"):
            continue
        value = getattr(meta, name)
        if name not in FAULTS:
            problems.append(
                fault_in(model, "W101", f": {META} has no option {name!r}.", _near(name))
            )
        elif fault := FAULTS[name](value):
            sentence = f": {META}.{name} must be {fault}, not {value!r}."
            problems.append(fault_in(model, "W102", sentence))
        else:
            values[name] = CONVERTERS[name](value) if name in CONVERTERS else value
    options = ViewOptions(**values)
    problems.extend(_phase_problems(model, options))
    return options


def _read_meta(model: type[Model], problems: list[CheckMessage]) -> type | None:
    meta = getattr(model, META, None)
    if meta is None or isinstance(meta, type):
        return meta
    sentence = f": {META} must be a class, not {type(meta).__name__}."
    hint = f"Write class {META}: inside the view, with one option per line."
    problems.append(fault_in(model, "W102", sentence, hint))
    return None


def _near(name: str) -> str:
    near = get_close_matches(name, FAULTS, n=1)
    return f"Did you mean {near[0]}?" if near else f"The options are {', '.join(FAULTS)}."


def _phase_problems(model: type[Model], options: ViewOptions) -> Iterator[CheckMessage]:
    for name, durations in (
        ("refresh_every", options.intervals), ("freshness_target", options.targets),
        ("refresh_on_change", options.delays),
    ):  # fmt: skip
        named = [phase for phases in durations for phase in phases]
        if missing := [phase for phase in named if phase not in options.phases]:
            sentence = f": {META}.{name} names {', '.join(missing)}, but {META}.phases does not."
            yield fault_in(model, "W113", sentence, "Name phases that the view has.")


def _optional(fault: Fault) -> Fault:
    return lambda value: None if value is None else fault(value)


def _phases_fault(value: object) -> str | None:
    names = value if isinstance(value, (list, tuple, set, frozenset)) else ()
    known = all(name in list(Phase) for name in names)
    return None if names and known else f"a list from {Phase.values}"


def _names_fault(value: object) -> str | None:
    names = value if isinstance(value, (list, tuple)) else [value]
    valid = bool(names) and all(isinstance(name, str) and name for name in names)
    distinct = len(set(map(str, names))) == len(names)
    return None if valid and distinct else "a list of field names"


def _strategy_fault(value: object) -> str | None:
    names = RefreshStrategy.values
    return None if value in names else f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}"


def _bool_fault(value: object) -> str | None:
    return None if isinstance(value, bool) else "True or False"


def _by_phase(limits: DurationRange) -> Fault:
    def fault(value: object) -> str | None:
        durations = dict(value) if isinstance(value, Mapping) else {Phase.INSERT: value}
        known = bool(durations) and all(phase in list(Phase) for phase in durations)
        if known and all(duration in limits for duration in durations.values()):
            return None
        return f"{limits.fault(None)}, or a dict of these by phase"

    return fault


def _depends_on_fault(value: object) -> str | None:
    valid = (
        isinstance(value, Mapping)
        and all(isinstance(to, str) or _is_model(to) for to in value)
        and all(on is None or callable(on) or not _names_fault(on) for on in value.values())
    )
    return None if valid else "a dict of models, each with field names, a callable or None"


def _is_model(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Model)


def _as_names(value: Any) -> Any:
    """A name or a list of names as a tuple; anything else, a callable for example, as it is."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


FAULTS: dict[str, Fault] = {
    "phases": _phases_fault,
    "key": _optional(_names_fault),
    "batch_size": _optional(BATCH_SIZE.fault),
    "batch_target": _optional(BATCH_SECONDS.fault),
    "statement_timeout": _optional(BATCH_SECONDS.fault),
    "shards": SHARD_COUNT.fault,
    "include_in_refresh_all": _bool_fault,
    "freshness_target": _optional(_by_phase(FRESHNESS_TARGET)),
    "refresh_every": _optional(_by_phase(REFRESH_INTERVAL)),
    "refresh_on_change": _optional(_by_phase(REFRESH_DELAY)),
    "verify_every": _optional(REFRESH_INTERVAL.fault),
    "max_retry_delay": _optional(BATCH_SECONDS.fault),
    "suspend_after_failures": _optional(FAILURE_COUNT.fault),
    "suspend_after": _optional(RETENTION.fault),
    "max_parked_keys": _optional(PARKED_KEYS.fault),
    "queue": _optional(queue_fault),
    "quiet_hours": _optional(quiet_hours_fault),
    "tracking": _bool_fault,
    "strategy": _optional(_strategy_fault),
    "additive": _optional(_bool_fault),
    "depends_on": _optional(_depends_on_fault),
}
CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "phases": lambda value: tuple(phase for phase in Phase if phase in value),
    "key": _as_names,
    "quiet_hours": lambda value: value and read_quiet_hours(value),
    "strategy": lambda value: value and RefreshStrategy(value),
    "depends_on": lambda value: value and {to: _as_names(on) for to, on in value.items()},
}
