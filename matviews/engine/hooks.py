"""Calling a view's hooks, and holding what they return against their contract."""

import json
from numbers import Integral
from traceback import walk_tb
from typing import Any

from ..conf import get_settings
from ..contract import Batch, Shard
from ..definition import HookKind, ViewDefinition
from ..exceptions import HookError
from ..phases import Phase
from ..project_locale import project_locale
from ..queryset import plan_of
from ..redact import brief
from .transactions import alias

__all__ = ["call_do", "call_needs", "raised_by_hook"]

LONGEST_CURSOR = 100_000  # characters of JSON; it is written with each batch


def call_needs(definition: ViewDefinition, phase: Phase, shard: Shard) -> bool | int:
    """Ask a view whether a phase has work in a shard of its keys.

    Returns:
        A bool, or an estimate of the rows.

    Raises:
        HookError: the hook returned neither a bool nor a whole number from 0.
    """
    if definition.hooks[phase].needs_derived:
        return plan_of(definition, alias()).needs(phase)
    given = {"shard": shard} if "shard" in definition.hooks[phase].needs else {}
    answer = _call(definition, phase.needs_hook, given)
    if isinstance(answer, bool):
        return answer
    return _count(answer, definition, phase.needs_hook, "True, False or an estimate of the rows")


def call_do(
    definition: ViewDefinition, phase: Phase, *, limit: int, shard: Shard, cursor: Any
) -> Batch:
    """Let a view do one batch of a phase. Rows are 0 where the hook returned None.

    Raises:
        HookError: the hook returned something else than its contract says.
    """
    hooks = definition.hooks[phase]
    offered = {"limit": limit, "shard": shard, "cursor": cursor}
    given = {name: value for name, value in offered.items() if name in hooks.do}
    done = _call(definition, phase.do_hook, given)
    if hooks.kind is HookKind.CURSOR:
        return _checked_batch(done, definition, phase)
    if done is None:
        return Batch(0)
    return Batch(_count(done, definition, phase.do_hook, "the number of rows written, or None"))


def raised_by_hook(error: BaseException) -> bool:
    """Whether an exception came out of a hook that the view's class has written itself."""
    return any(frame.f_code is _call.__code__ for frame, _line in walk_tb(error.__traceback__))


def _call(definition: ViewDefinition, hook: str, given: dict[str, Any]) -> Any:
    with project_locale():
        return getattr(definition.model, hook)(**given)


def _checked_batch(done: Any, definition: ViewDefinition, phase: Phase) -> Batch:
    name = f"{definition.label}.{phase.do_hook}"
    if not isinstance(done, Batch):
        raise HookError(f"{name} declares cursor, so it must return a Batch, not {_shown(done)}.")
    rows = _count(done.rows, definition, phase.do_hook, "a Batch with the number of rows written")
    try:
        length = len(json.dumps(done.cursor, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise HookError(
            f"{name} returned a cursor that JSON cannot hold ({brief(str(error))}): {_shown(done.cursor)}. "
            f"Make it of strings, numbers, lists and dicts."
        ) from error
    if length > LONGEST_CURSOR:
        raise HookError(
            f"{name} returned a cursor of {length:,} characters as JSON, the limit is {LONGEST_CURSOR:,}: "
            f"return the key at which the next batch begins."
        )
    return Batch(rows, done.cursor)


def _count(value: Any, definition: ViewDefinition, hook: str, wanted: str) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
        raise HookError(f"{definition.label}.{hook} must return {wanted}, not {_shown(value)}.")
    return int(value)


def _shown(value: object) -> str:
    """What a hook has returned: the user's own, which may hold values of rows all the same."""
    hidden = get_settings().VALUES_IN_ERRORS == "none"
    return f"a {type(value).__name__}" if hidden else brief(value)
