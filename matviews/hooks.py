"""The hooks of a view's class, read once: which it has, and what each declares."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial

from django.core.checks import CheckMessage, Warning
from django.db.models import Model

from . import near_misses
from .faults import ViewFault, fault_in
from .near_misses import SOURCE
from .options import META, ViewOptions
from .phases import Phase

if sys.version_info >= (3, 14):
    from annotationlib import Format

    # Elsewhere annotations of names that only type checkers import are strings.
    _signature = partial(inspect.signature, annotation_format=Format.FORWARDREF)
else:
    _signature = inspect.signature

__all__ = ["DO_MAY_DECLARE", "NEEDS_MAY_DECLARE", "HookKind", "Hooks", "has_source", "read_hooks"]

NEEDS_MAY_DECLARE = frozenset({"shard", "parked"})
DO_MAY_DECLARE = frozenset({"limit", "shard", "cursor", "parked"})
PASSED_BY_NAME = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


class HookKind(Enum):
    """How often a `do_*` hook is called in a phase run, read from its signature."""

    WHOLE = "once"
    LIMIT = "until needs_* is false"
    CURSOR = "until its cursor is None"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """The two hooks of one phase."""

    #: The parameters that `needs_*` declares, of those that the engine passes.
    needs: frozenset[str]
    #: The parameters that `do_*` declares, or that the engine passes to a derived one.
    do: frozenset[str]
    #: Whether `needs_*` is derived from `source()`.
    needs_derived: bool = False
    #: Whether `do_*` is derived from `source()`.
    do_derived: bool = False

    @property
    def is_derived(self) -> bool:
        """Whether both hooks are derived from `source()`."""
        return self.needs_derived and self.do_derived

    @property
    def kind(self) -> HookKind:
        """How often the `do_*` hook is called."""
        if "cursor" in self.do:
            return HookKind.CURSOR
        return HookKind.LIMIT if "limit" in self.do else HookKind.WHOLE

    @property
    def can_park(self) -> bool:
        """Whether a row that fails can be left out: by its key if derived, or as the hook says."""
        return self.do_derived or "parked" in self.do


def has_source(model: type[Model], options: ViewOptions, problems: list[CheckMessage]) -> bool:
    """Whether hooks can be derived from `source()`; a field of that name is only a field."""
    static = inspect.getattr_static(model, SOURCE, None)
    if isinstance(static, (classmethod, staticmethod)):
        return True
    is_field = static is None or hasattr(static, "field")
    if not is_field and not all(_defines(model, name) for name in _hook_names(options)):
        hint = (
            "Put @classmethod above it."
            if inspect.isfunction(static)
            else "Define it as a class method that returns the queryset."
        )
        problems.append(fault_in(model, "W104", f".{SOURCE} is not a class method.", hint))
        return True
    if options.key and not near_misses.like_source(model):
        sentence = f": {META}.key is for views with {SOURCE}()."
        problems.append(
            fault_in(model, "W115", sentence, f"Define {SOURCE}() or remove the option.")
        )
    return False


def read_hooks(
    model: type[Model], options: ViewOptions, from_source: bool, problems: list[CheckMessage]
) -> dict[Phase, Hooks]:
    """The hooks of every phase whose two hooks can be called.

    Args:
        model: the view.
        options: its options.
        from_source: whether a missing hook is derived from `source()`.
        problems: extended by what is wrong.
    """
    if not from_source and (fault := _misspelt_source(model, options)):
        problems.append(fault)
        return {}
    hooks = {}
    for phase in options.phases:
        if found := _read_phase(model, phase, from_source, problems):
            hooks[phase] = found
    if options.shards > 1:
        problems.extend(_shard_problems(model, hooks))
    return hooks


def _hook_names(options: ViewOptions) -> Iterator[str]:
    for phase in options.phases:
        yield from (phase.needs_hook, phase.do_hook)


def _defines(model: type[Model], name: str) -> bool:
    return inspect.getattr_static(model, name, None) is not None


def _misspelt_source(model: type[Model], options: ViewOptions) -> ViewFault | None:
    """One fault, instead of one per missing hook, where a method seems to be meant as `source`."""
    near = near_misses.like_source(model)
    if not near or any(
        _defines(model, name) or near_misses.like_hook(model, name) for name in _hook_names(options)
    ):
        return None
    sentence = f" has neither {SOURCE}() nor hooks: {near}() is not called."
    return fault_in(model, "W103", sentence, f"Did you mean {SOURCE}()? It is a class method.")


def _read_phase(
    model: type[Model], phase: Phase, from_source: bool, problems: list[CheckMessage]
) -> Hooks | None:
    needs_derived = from_source and not _defines(model, phase.needs_hook)
    do_derived = from_source and not _defines(model, phase.do_hook)
    needs: frozenset[str] | None = frozenset()
    do: frozenset[str] | None = frozenset({"limit", "cursor"})
    if needs_derived:
        problems.extend(_nearly_a_hook(model, phase.needs_hook))
    else:
        needs = _read_hook(model, phase.needs_hook, NEEDS_MAY_DECLARE, problems)
    if do_derived:
        problems.extend(_nearly_a_hook(model, phase.do_hook))
    else:
        do = _read_hook(model, phase.do_hook, DO_MAY_DECLARE, problems)
    if needs is None or do is None:
        return None
    if "parked" in do - needs:
        problems.append(
            fault_in(
                model, "W105",
                f".{phase.do_hook} declares parked, but {phase.needs_hook} does not, so it would "
                f"report work for as long as a key is parked.",
                f"Declare parked in {phase.needs_hook} too, and leave these keys out there.",
            )
        )  # fmt: skip
        return None
    return Hooks(needs=needs, do=do, needs_derived=needs_derived, do_derived=do_derived)


def _nearly_a_hook(model: type[Model], name: str) -> Iterator[CheckMessage]:
    if near := near_misses.like_hook(model, name, very=True):
        yield Warning(
            f"{model._meta.label}: {near}() is not called; {name}() is derived from {SOURCE}().",
            hint=f"Did you mean {name}()? Otherwise give it a name less like a hook's.",
            obj=model,
            id="matviews.W027",
        )


def _read_hook(
    model: type[Model], name: str, may_declare: frozenset[str], problems: list[CheckMessage]
) -> frozenset[str] | None:
    """The parameters that a hook declares, or None and a problem if it cannot be called."""
    static = inspect.getattr_static(model, name, None)
    if static is None:
        problem = ("W103", "is missing", _missing_hint(model, name))
    elif not isinstance(static, (classmethod, staticmethod)):
        problem = ("W104", "is not a class method", "Put @classmethod above it.")
    elif inspect.iscoroutinefunction(static.__func__):
        problem = ("W105", "is a coroutine", "Define it with def: batches are synchronous.")
    else:
        parameters = _signature(getattr(model, name)).parameters.values()
        required = [str(p) for p in parameters if not _can_be_omitted(p, may_declare)]
        if not required:
            return may_declare & {p.name for p in parameters if p.kind in PASSED_BY_NAME}
        hint = (
            f"The engine passes {', '.join(sorted(may_declare))}, by name. Every other parameter "
            f"needs a default."
        )
        noun = "parameter" if len(required) == 1 else "parameters"
        fault = f"has the {noun} {', '.join(required)}, which the engine does not pass"
        problem = ("W105", fault, hint)
    number, fault, hint = problem
    problems.append(fault_in(model, number, f".{name} {fault}.", hint))
    return None


def _missing_hint(model: type[Model], name: str) -> str:
    if near := near_misses.like_hook(model, name):
        return f"Did you mean {name}() by {near}()?"
    phase = name.partition("_")[2]
    return (
        f"Define it as a class method, or leave {phase!r} out of {META}.phases; or define "
        f"{SOURCE}(), from which all hooks are derived."
    )


def _can_be_omitted(parameter: inspect.Parameter, passed: frozenset[str]) -> bool:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return True
    if parameter.default is not parameter.empty:
        return True
    return parameter.name in passed and parameter.kind in PASSED_BY_NAME


def _shard_problems(model: type[Model], hooks: Mapping[Phase, Hooks]) -> Iterator[CheckMessage]:
    derived = [declared.is_derived for declared in hooks.values()]
    if all(derived):  # `check_source` says whether its keys can be split
        return
    if any(declared.do_derived for declared in hooks.values()):
        sentence = (
            f": {META}.shards is more than 1, but it has both hooks and phases derived from "
            f"{SOURCE}()."
        )
        hint = (
            f"Remove shards, or derive all phases from {SOURCE}(), or write the hooks of every "
            f"phase so that each processes only its shard."
        )
        yield fault_in(model, "W107", sentence, hint)
        return
    for phase, declared in hooks.items():
        for name, names in ((phase.needs_hook, declared.needs), (phase.do_hook, declared.do)):
            if "shard" not in names:
                sentence = f".{name} does not declare shard, but {META}.shards is more than 1."
                yield fault_in(model, "W107", sentence, "Declare shard and process only its keys.")
