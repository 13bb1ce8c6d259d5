"""`MatviewMeta`: the options of a view, their defaults and what each may be."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from django.core.checks import CheckMessage
from django.db.models import Model, QuerySet

from .faults import fault_in
from .limits import BATCH_SECONDS, BATCH_SIZE, FRESHNESS_TARGET, REFRESH_INTERVAL, SHARD_COUNT
from .phases import Phase

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
    #: How old the last success may be before the view counts as behind.
    freshness_target: timedelta | None = None
    #: One interval, or one per phase; the initial value of the view's schedules, which operators
    #: own from then on.
    refresh_every: timedelta | Mapping[Phase, timedelta] | None = None
    #: Whether triggers log the changes of the tables that `source()` reads, where that is possible;
    #: otherwise every refresh is a full one.
    tracking: bool = True
    #: Dependencies that cannot be derived, by model or label: the names of those fields whose
    #: values are the key; or a callable from a queryset of changed rows to keys; or None if a
    #: change may affect any key. Required, if only as {}, for sources with raw SQL.
    depends_on: Mapping[type[Model] | str, DependsOn] | None = None

    @property
    def intervals(self) -> dict[tuple[Phase, ...], timedelta]:
        """The intervals of `refresh_every`, by the phases that share one; () means all phases."""
        if isinstance(self.refresh_every, timedelta):
            return {(): self.refresh_every}
        by_phase = self.refresh_every or {}
        return {
            tuple(phase for phase in Phase if by_phase.get(phase) == interval): interval
            for interval in dict.fromkeys(by_phase.values())
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
    problems.extend(_interval_problems(model, options))
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


def _interval_problems(model: type[Model], options: ViewOptions) -> Iterator[CheckMessage]:
    scheduled = [phase for phases in options.intervals for phase in phases]
    if missing := [phase for phase in scheduled if phase not in options.phases]:
        sentence = f": {META}.refresh_every names {', '.join(missing)}, but {META}.phases does not."
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


def _bool_fault(value: object) -> str | None:
    return None if isinstance(value, bool) else "True or False"


def _intervals_fault(value: object) -> str | None:
    intervals = dict(value) if isinstance(value, Mapping) else {Phase.INSERT: value}
    known = bool(intervals) and all(phase in list(Phase) for phase in intervals)
    if known and all(interval in REFRESH_INTERVAL for interval in intervals.values()):
        return None
    return f"{REFRESH_INTERVAL.fault(None)}, or a dict of these by phase"


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
    "freshness_target": _optional(FRESHNESS_TARGET.fault),
    "refresh_every": _optional(_intervals_fault),
    "tracking": _bool_fault,
    "depends_on": _optional(_depends_on_fault),
}
CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "phases": lambda value: tuple(phase for phase in Phase if phase in value),
    "key": _as_names,
    "depends_on": lambda value: value and {to: _as_names(on) for to, on in value.items()},
}
