"""What a view's class says about itself: its hooks, its options, and what is wrong with them."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from difflib import get_close_matches
from enum import Enum
from functools import partial
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Warning
from django.db import router
from django.db.models import Model, QuerySet

from . import near_misses
from .conf import LARGEST_SIZE, LONGEST_TIME, SHORTEST_TIME, is_count, is_seconds
from .contract import ViewMarker
from .phases import Phase

__all__ = [
    "DependsOn", "HookKind", "Hooks", "ViewDefinition", "ViewFault", "ViewOptions", "define",
    "unreadable",
]  # fmt: skip

if sys.version_info >= (3, 14):
    from annotationlib import Format

    # Elsewhere annotations of names that only type checkers import are strings.
    _signature = partial(inspect.signature, annotation_format=Format.FORWARDREF)
else:
    _signature = inspect.signature

LONGEST_INTERVAL = timedelta(days=3650)
META = "MatviewMeta"
SOURCE = "source"
MAX_SHARDS = 2**15 - 1  # what a small integer column holds
NEEDS_MAY_DECLARE = frozenset({"shard"})
DO_MAY_DECLARE = frozenset({"limit", "shard", "cursor"})
GIVEN_BY_NAME = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


class ViewFault(Warning):
    """What keeps one view from being refreshed until its definition is mended: W101 and up.

    To Django a warning, silenced or not: an error would keep `migrate` and `makemigrations` from running
    for the whole project, and so from mending it.
    """


DependsOn = tuple[str, ...] | Callable[[QuerySet[Any]], Iterable[Any]] | None


class HookKind(Enum):
    """How often a `do_*` hook is called in a phase run, read from its signature."""

    WHOLE = "once"
    LIMIT = "until needs_* is false"
    CURSOR = "until its cursor is None"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """What the two hooks of one phase declare; for those derived from `source()`, what they take."""

    needs: frozenset[str]
    do: frozenset[str]
    needs_derived: bool = False
    do_derived: bool = False

    @property
    def kind(self) -> HookKind:
        """How often the `do_*` hook is called."""
        if "cursor" in self.do:
            return HookKind.CURSOR
        return HookKind.LIMIT if "limit" in self.do else HookKind.WHOLE


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewOptions:
    """The options of `MatviewMeta`.

    Attributes:
        phases: the phases that the view has; the hooks of the others are not needed.
        key: names of the fields that identify a row in `source()`; None takes the only unique
            constraint. Only for a view with `source()`.
        batch_size: rows per batch; None lets the pacer choose.
        batch_target: seconds per batch that the pacer steers toward; None takes the setting.
        statement_timeout: seconds per statement of a batch; None takes the setting.
        shards: shares of the keys that are worked on side by side; first value of the control.
        include_in_refresh_all: whether a refresh of all views includes this one; first value of the
            control.
        freshness_target: how old the last success may be before the view counts as behind.
        refresh_every: one interval, or one per phase; the first value of the view's schedule, which
            operators own from then on.
        tracking: whether the changes of the tables that `source()` reads are logged by triggers, where
            that can be derived; if not, each refresh is a full pass.
        depends_on: what cannot be derived: by model, or its label, the names of those of its fields whose
            values are the key, or a callable from a queryset of changed rows to keys, or None for a
            model whose changes may concern any key. To be given, if only as {}, where there is raw SQL.
    """

    phases: tuple[Phase, ...] = tuple(Phase)
    key: tuple[str, ...] | None = None
    batch_size: int | None = None
    batch_target: float | None = None
    statement_timeout: float | None = None
    shards: int = 1
    include_in_refresh_all: bool = True
    freshness_target: timedelta | None = None
    refresh_every: timedelta | Mapping[Phase, timedelta] | None = None
    tracking: bool = True
    depends_on: Mapping[type[Model] | str, DependsOn] | None = None

    @property
    def intervals(self) -> dict[tuple[Phase, ...], timedelta]:
        """The intervals of `refresh_every`, by the phases that share one; () stands for all."""
        if isinstance(self.refresh_every, timedelta):
            return {(): self.refresh_every}
        by_phase = self.refresh_every or {}
        return {
            tuple(phase for phase in Phase if by_phase.get(phase) == interval): interval
            for interval in dict.fromkeys(by_phase.values())
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewDefinition:
    """A view as its class defines it.

    Attributes:
        label: `app_label.ModelName`.
        model: the class.
        options: its `MatviewMeta`.
        hooks: what the hooks of each usable phase declare.
        has_source: whether it has a `source()`, from which hooks are derived.
        problems: what is wrong with it, as messages for Django's system checks; a view with a
            `ViewFault` among them cannot be refreshed.
    """

    label: str
    model: type[Model]
    options: ViewOptions = field(default_factory=ViewOptions)
    hooks: Mapping[Phase, Hooks] = field(default_factory=dict)
    has_source: bool = False
    problems: tuple[CheckMessage, ...] = ()

    @property
    def is_shard_aware(self) -> bool:
        """Whether every hook keeps to the share of the keys that it is given."""
        return all("shard" in hooks.needs & hooks.do for hooks in self.hooks.values())

    @property
    def derived(self) -> frozenset[Phase]:
        """The phases whose batches are derived from `source()`."""
        return frozenset(phase for phase, hooks in self.hooks.items() if hooks.do_derived)

    @property
    def all_problems(self) -> tuple[CheckMessage, ...]:
        """Its problems, and where the settings put it into another database than the bookkeeping, that."""
        return (*self.problems, *_misplaced(self))

    @property
    def errors(self) -> tuple[CheckMessage, ...]:
        """The problems that forbid a refresh, whether or not SILENCED_SYSTEM_CHECKS has them."""
        return tuple(each for each in self.all_problems if isinstance(each, ViewFault))


def _misplaced(definition: ViewDefinition) -> Iterator[ViewFault]:
    ours = router.db_for_write(apps.get_app_config("matviews").get_model("ViewControl"))
    theirs = router.db_for_write(definition.model)
    if theirs != ours:
        yield ViewFault(
            f"{definition.label} is in the database {theirs!r}, the bookkeeping of matviews in "
            f"{ours!r}: a batch could not commit both at once.",
            hint=f"Route the view to {ours!r}, or the app matviews to {theirs!r}.",
            obj=definition.model,
            id="matviews.W108",
        )


def unreadable(model: type[Model], error: Exception) -> ViewDefinition:
    """A view whose class cannot be read."""
    fault = ViewFault(
        f"{model._meta.label}: its hooks and options cannot be read: {type(error).__name__}: {error}",
        hint="Look at its MatviewMeta, and at the class methods that matviews calls.",
        obj=model,
        id="matviews.W121",
    )
    return ViewDefinition(label=model._meta.label, model=model, problems=(fault,))


def define(model: type[Model]) -> ViewDefinition:
    """Read a view's class once: options, hooks and every problem that can be seen in them."""
    problems: list[CheckMessage] = list(_base_problems(model))
    options = _read_options(model, problems)
    has_source = _has_source(model, options, problems)
    if not has_source and (fault := _misspelt_source(model, options)):
        problems.append(fault)
        hooks = {}
    else:
        hooks = {
            phase: found
            for phase in options.phases
            if (found := _read_hooks(model, phase, has_source, problems)) is not None
        }
    if options.shards > 1:
        problems.extend(_shard_problems(model, hooks))
    return ViewDefinition(
        label=model._meta.label,
        model=model,
        options=options,
        hooks=hooks,
        has_source=has_source,
        problems=tuple(problems),
    )


def _base_problems(model: type[Model]) -> Iterator[CheckMessage]:
    if model._meta.proxy:
        concrete = model._meta.concrete_model
        yield ViewFault(
            f"{model._meta.label} is a proxy: it has no table of its own to keep up to date.",
            hint=f"Mix MaterializedView into a model with a table, not into a proxy of "
            f"{concrete._meta.label if concrete else 'another model'}.",
            obj=model,
            id="matviews.W106",
        )
    for name in near_misses.unread_classes(model, META):
        yield Warning(
            f"{model._meta.label}: the class {name} in it is not read.",
            hint=f"Did you mean {META}?",
            obj=model,
            id="matviews.W004",
        )
    for parent in model._meta.parents:
        if issubclass(parent, ViewMarker) and not model._meta.proxy:
            yield Warning(
                f"{model._meta.label} inherits from the view {parent._meta.label}: a row of the "
                f"one is a row of the other, and both refreshes write it.",
                hint=f"Make {parent._meta.label} abstract, or override every hook.",
                obj=model,
                id="matviews.W001",
            )


def _read_options(model: type[Model], problems: list[CheckMessage]) -> ViewOptions:
    meta = _read_meta(model, problems)
    given = {name: getattr(meta, name) for name in dir(meta) if not name.startswith("_")}
    known = [option.name for option in fields(ViewOptions)]
    values: dict[str, Any] = {}
    for name, value in given.items() if meta is not None else ():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Options are {', '.join(known)}."
            problems.append(
                ViewFault(
                    f"{model._meta.label}: MatviewMeta has no option {name!r}.",
                    hint=hint,
                    obj=model,
                    id="matviews.W101",
                )
            )
        elif (fault := _OPTION_FAULTS[name](value)) is not None:
            problems.append(
                ViewFault(
                    f"{model._meta.label}: MatviewMeta.{name} must be {fault}, not {value!r}.",
                    obj=model,
                    id="matviews.W102",
                )
            )
        else:
            values[name] = value
    if "phases" in values:
        values["phases"] = tuple(phase for phase in Phase if phase in values["phases"])
    if isinstance(values.get("key"), str):
        values["key"] = (values["key"],)
    elif values.get("key"):
        values["key"] = tuple(values["key"])
    if values.get("depends_on"):
        values["depends_on"] = {
            to: (on,) if isinstance(on, str) else tuple(on) if isinstance(on, list) else on
            for to, on in values["depends_on"].items()
        }
    options = ViewOptions(**values)
    problems.extend(_interval_problems(model, options))
    return options


def _read_meta(model: type[Model], problems: list[CheckMessage]) -> type | None:
    meta = getattr(model, META, None)
    if meta is not None and not isinstance(meta, type):
        problems.append(
            ViewFault(
                f"{model._meta.label}: {META} must be a class, not {type(meta).__name__}.",
                hint=f"Write class {META}: within the view, with an option a line.",
                obj=model,
                id="matviews.W102",
            )
        )
        return None
    return meta


def _interval_problems(model: type[Model], options: ViewOptions) -> Iterator[CheckMessage]:
    scheduled = [phase for phases in options.intervals for phase in phases]
    if lacking := [phase for phase in scheduled if phase not in options.phases]:
        yield ViewFault(
            f"{model._meta.label}: MatviewMeta.refresh_every names {', '.join(lacking)}, "
            f"which MatviewMeta.phases lacks.",
            hint="Name phases that the view has.",
            obj=model,
            id="matviews.W113",
        )


def _phases_fault(value: object) -> str | None:
    named = value if isinstance(value, (list, tuple, set, frozenset)) else ()
    known = all(phase in list(Phase) for phase in named)
    return None if named and known else f"a list from {Phase.values}"


def _key_fault(value: object) -> str | None:
    names = value if isinstance(value, (list, tuple)) else [value]
    named = bool(names) and all(isinstance(name, str) and name for name in names)
    unlike = len(set(map(str, names))) == len(names)
    return None if value is None or (named and unlike) else "a list of names of fields"


def _size_fault(value: object) -> str | None:
    valid = value is None or is_count(value)
    return None if valid else f"a whole number from 1 to {LARGEST_SIZE}"


def _shards_fault(value: object) -> str | None:
    valid = is_count(value, MAX_SHARDS)
    return None if valid else f"a whole number from 1 to {MAX_SHARDS}"


def _seconds_fault(value: object) -> str | None:
    valid = value is None or is_seconds(value)
    return None if valid else f"a number of seconds from {SHORTEST_TIME} to {LONGEST_TIME}"


def _bool_fault(value: object) -> str | None:
    return None if isinstance(value, bool) else "True or False"


def _duration_fault(value: object) -> str | None:
    positive = isinstance(value, timedelta) and value > timedelta()
    return None if positive or value is None else "a positive timedelta"


def _intervals_fault(value: object) -> str | None:
    intervals = dict(value) if isinstance(value, Mapping) else {Phase.INSERT: value}
    known = all(phase in list(Phase) for phase in intervals)
    if value is None or (known and intervals and all(map(_is_interval, intervals.values()))):
        return None
    return (
        f"a timedelta of whole seconds, from 1 second to {LONGEST_INTERVAL.days} days, or a dict of "
        f"these by phase"
    )


def _is_interval(value: object) -> bool:
    if not isinstance(value, timedelta):
        return False
    return timedelta(seconds=1) <= value <= LONGEST_INTERVAL and not value.microseconds


def _depends_on_fault(value: object) -> str | None:
    known = value is None or (
        isinstance(value, Mapping)
        and all(isinstance(to, str) or _is_model(to) for to in value)
        and all(on is None or callable(on) or _key_fault(on) is None for on in value.values())
    )
    return None if known else "a dict of models, with names of fields, a callable or None for each"


def _is_model(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Model)


_OPTION_FAULTS: dict[str, Callable[[object], str | None]] = {
    "phases": _phases_fault,
    "key": _key_fault,
    "batch_size": _size_fault,
    "batch_target": _seconds_fault,
    "statement_timeout": _seconds_fault,
    "shards": _shards_fault,
    "include_in_refresh_all": _bool_fault,
    "freshness_target": _duration_fault,
    "refresh_every": _intervals_fault,
    "tracking": _bool_fault,
    "depends_on": _depends_on_fault,
}


def _has_source(model: type[Model], options: ViewOptions, problems: list[CheckMessage]) -> bool:
    """Whether hooks can be derived from `source()`; a field of that name is only a field."""
    static = inspect.getattr_static(model, SOURCE, None)
    if isinstance(static, (classmethod, staticmethod)):
        return True
    is_field = static is None or hasattr(static, "field")
    if not is_field and _lacks_hooks(model, options):
        problems.append(
            ViewFault(
                f"{model._meta.label}.{SOURCE} is not a class method.",
                hint="Put @classmethod above it."
                if inspect.isfunction(static)
                else "Define it as a class method that returns the queryset.",
                obj=model,
                id="matviews.W104",
            )
        )
        return True
    if options.key and not near_misses.like_source(model):
        problems.append(
            ViewFault(
                f"{model._meta.label}: MatviewMeta.key is for views with {SOURCE}().",
                hint=f"Define {SOURCE}(), or take the option out.",
                obj=model,
                id="matviews.W115",
            )
        )
    return False


def _misspelt_source(model: type[Model], options: ViewOptions) -> ViewFault | None:
    """One fault instead of one for each hook that is missing: a method seems to be meant as `source`."""
    near = near_misses.like_source(model)
    if not near or any(_has_hooks(model, options)):
        return None
    return ViewFault(
        f"{model._meta.label} has neither {SOURCE}() nor hooks: {near}() is not called.",
        hint=f"Did you mean {SOURCE}()? It is a class method.",
        obj=model,
        id="matviews.W103",
    )


def _has_hooks(model: type[Model], options: ViewOptions) -> Iterator[bool]:
    for phase in options.phases:
        for name in (phase.needs_hook, phase.do_hook):
            yield bool(
                inspect.getattr_static(model, name, None) or near_misses.like_hook(model, name)
            )


def _lacks_hooks(model: type[Model], options: ViewOptions) -> bool:
    names = (name for phase in options.phases for name in (phase.needs_hook, phase.do_hook))
    return any(inspect.getattr_static(model, name, None) is None for name in names)


def _read_hooks(
    model: type[Model], phase: Phase, has_source: bool, problems: list[CheckMessage]
) -> Hooks | None:
    lacks_needs, lacks_do = (
        has_source and inspect.getattr_static(model, name, None) is None
        for name in (phase.needs_hook, phase.do_hook)
    )
    needs = (
        frozenset()
        if lacks_needs
        else _read_hook(model, phase.needs_hook, NEEDS_MAY_DECLARE, problems)
    )
    do = (
        frozenset({"limit", "cursor"})
        if lacks_do
        else _read_hook(model, phase.do_hook, DO_MAY_DECLARE, problems)
    )
    for name, lacks in ((phase.needs_hook, lacks_needs), (phase.do_hook, lacks_do)):
        if lacks and (near := near_misses.like_hook(model, name, very=True)):
            problems.append(
                Warning(
                    f"{model._meta.label}: {near}() is not called; {name}() is derived from {SOURCE}().",
                    hint=f"Did you mean {name}()? Else name it less like a hook.",
                    obj=model,
                    id="matviews.W027",
                )
            )
    if needs is None or do is None:
        return None
    return Hooks(needs=needs, do=do, needs_derived=lacks_needs, do_derived=lacks_do)


def _read_hook(
    model: type[Model], name: str, may_declare: frozenset[str], problems: list[CheckMessage]
) -> frozenset[str] | None:
    """The names that a hook declares, or None and a problem when it cannot be called."""
    static = inspect.getattr_static(model, name, None)
    phase = name.partition("_")[2]
    if static is None:
        fault = "is missing"
        number = "W103"
        near = near_misses.like_hook(model, name)
        hint = (
            f"Did you mean {name}() by {near}()?"
            if near
            else f"Define it as a class method, or leave {phase!r} out of MatviewMeta.phases; or define "
            f"{SOURCE}(), from which all hooks are derived."
        )
    elif not isinstance(static, (classmethod, staticmethod)):
        fault, hint, number = "is not a class method", "Put @classmethod above it.", "W104"
    elif inspect.iscoroutinefunction(static.__func__):
        fault, hint, number = "is a coroutine", "Define it with def: batches run in sync.", "W105"
    else:
        parameters = _signature(getattr(model, name)).parameters.values()
        wanted = [p for p in parameters if not _can_be_left_out(p, may_declare)]
        if not wanted:
            return may_declare & {p.name for p in parameters if p.kind in GIVEN_BY_NAME}
        fault = f"wants {', '.join(str(p) for p in wanted)}, which nobody gives it"
        hint = (
            f"It may declare {', '.join(sorted(may_declare))}, which are given by name; anything "
            f"else needs a default."
        )
        number = "W105"
    problems.append(
        ViewFault(
            f"{model._meta.label}.{name} {fault}.", hint=hint, obj=model, id=f"matviews.{number}"
        )
    )
    return None


def _can_be_left_out(parameter: inspect.Parameter, given: frozenset[str]) -> bool:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return True
    if parameter.default is not parameter.empty:
        return True
    return parameter.name in given and parameter.kind in GIVEN_BY_NAME


def _shard_problems(model: type[Model], hooks: Mapping[Phase, Hooks]) -> Iterator[CheckMessage]:
    if any(declared.do_derived for declared in hooks.values()):
        yield ViewFault(
            f"{model._meta.label}: MatviewMeta.shards is more than 1, but phases that are derived "
            f"from {SOURCE}() work in one shard.",
            hint="Take shards out, or write the hooks of every phase, each for its share.",
            obj=model,
            id="matviews.W107",
        )
        return
    for phase, declared in hooks.items():
        for name, names in ((phase.needs_hook, declared.needs), (phase.do_hook, declared.do)):
            if "shard" not in names:
                yield ViewFault(
                    f"{model._meta.label}.{name} does not declare shard, "
                    f"but MatviewMeta.shards is more than 1.",
                    hint="Declare shard and work on that share of the keys only.",
                    obj=model,
                    id="matviews.W107",
                )
