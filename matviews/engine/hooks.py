"""Calling a view's hooks, and holding what they return against their contract."""

import json
from numbers import Integral
from typing import Any

from ..definition import HookKind, ViewDefinition
from ..exceptions import HookError
from ..mixin import Batch, Share
from ..phases import Phase
from ..queryset import plan_of
from .databases import alias

__all__ = ["call_do", "call_needs"]


def call_needs(definition: ViewDefinition, phase: Phase, share: Share) -> bool | int:
    """Ask a view whether a phase has work in a share of its keys.

    Returns:
        A bool, or an estimate of the rows.

    Raises:
        HookError: the hook returned neither a bool nor a whole number from 0.
    """
    if definition.hooks[phase].needs_derived:
        return plan_of(definition, alias()).needs(phase)
    given = {"stripe": share} if "stripe" in definition.hooks[phase].needs else {}
    answer = getattr(definition.model, phase.needs_hook)(**given)
    if isinstance(answer, bool):
        return answer
    return _count(answer, definition, phase.needs_hook, "True, False or an estimate of the rows")


def call_do(
    definition: ViewDefinition, phase: Phase, *, limit: int, share: Share, cursor: Any
) -> Batch:
    """Let a view do one batch of a phase. Rows are 0 where the hook returned None.

    Raises:
        HookError: the hook returned something else than its contract says.
    """
    hooks = definition.hooks[phase]
    offered = {"limit": limit, "stripe": share, "cursor": cursor}
    given = {name: value for name, value in offered.items() if name in hooks.do}
    done = getattr(definition.model, phase.do_hook)(**given)
    if hooks.kind is HookKind.CURSOR:
        return _checked_batch(done, definition, phase)
    if done is None:
        return Batch(0)
    return Batch(_count(done, definition, phase.do_hook, "the number of rows written, or None"))


def _checked_batch(done: Any, definition: ViewDefinition, phase: Phase) -> Batch:
    name = f"{definition.label}.{phase.do_hook}"
    if not isinstance(done, Batch):
        raise HookError(f"{name} declares cursor, so it must return a Batch, not {done!r}.")
    rows = _count(done.rows, definition, phase.do_hook, "a Batch with the number of rows written")
    try:
        json.dumps(done.cursor, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise HookError(
            f"{name} returned a cursor that JSON cannot hold ({error}): {done.cursor!r}. "
            f"Make it of strings, numbers, lists and dicts."
        ) from error
    return Batch(rows, done.cursor)


def _count(value: Any, definition: ViewDefinition, hook: str, wanted: str) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
        raise HookError(f"{definition.label}.{hook} must return {wanted}, not {value!r}.")
    return int(value)
