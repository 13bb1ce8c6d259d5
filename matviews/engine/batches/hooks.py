"""Calling a view's hooks, and checking their results against the contract."""

import json
import logging
import signal
import threading
from collections.abc import Collection
from numbers import Integral
from traceback import walk_tb
from typing import Any

from ...conf import get_settings
from ...contract import Batch, Shard
from ...definition import HookKind, ViewDefinition
from ...exceptions import HookError
from ...logs import log
from ...phases import Phase
from ...project_locale import project_locale
from ...queryset import plan_of
from ...redact import brief, error_text
from ..transactions import alias

__all__ = ["call_do", "call_needs", "raised_by_hook"]

logger = logging.getLogger(__name__)

MAX_CURSOR_LENGTH = 100_000  # characters of JSON; every batch writes its cursor


def call_needs(
    definition: ViewDefinition, phase: Phase, *, shard: Shard, parked: Collection[Any]
) -> bool | int:
    """Call the hook that says whether a phase has work in a shard of the view's keys.

    Args:
        definition: the view.
        phase: the phase.
        shard: the shard.
        parked: the keys to leave out.

    Returns:
        A bool, or an estimate of the rows.

    Raises:
        HookError: the hook returned neither a bool nor a non-negative integer.
    """
    if definition.hooks[phase].needs_derived:
        return plan_of(definition, alias()).needs(phase)
    offered = {"shard": shard, "parked": parked}
    declared = definition.hooks[phase].needs
    arguments = {name: value for name, value in offered.items() if name in declared}
    answer = _call(definition, phase.needs_hook, arguments)
    if isinstance(answer, bool):
        return answer
    return _count(answer, definition, phase.needs_hook, "True, False or an estimate of the rows")


def call_do(
    definition: ViewDefinition,
    phase: Phase,
    *,
    limit: int,
    shard: Shard,
    cursor: Any,
    parked: Collection[Any],
) -> Batch:
    """Call the hook that runs one batch of a phase. A hook that returns None counts as 0 rows.

    Raises:
        HookError: the hook returned something that its contract does not allow.
    """
    hooks = definition.hooks[phase]
    offered = {"limit": limit, "shard": shard, "cursor": cursor, "parked": parked}
    arguments = {name: value for name, value in offered.items() if name in hooks.do}
    result = _call(definition, phase.do_hook, arguments)
    if hooks.kind is HookKind.CURSOR:
        return _checked_batch(result, definition, phase)
    if result is None:
        return Batch(0)
    return Batch(_count(result, definition, phase.do_hook, "the number of rows written, or None"))


def raised_by_hook(error: BaseException) -> bool:
    """Whether an exception was raised inside a hook that the view's class defines."""
    return any(frame.f_code is _call.__code__ for frame, _line in walk_tb(error.__traceback__))


def _call(definition: ViewDefinition, hook: str, arguments: dict[str, Any]) -> Any:
    try:
        with project_locale():
            return getattr(definition.model, hook)(**arguments)
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and _ctrl_c_may_interrupt():
            raise
        if isinstance(error, SystemExit) or type(error).__name__ == "GreenletExit":
            # It may be the worker that ends. If it is the hook, this counts as a killed worker.
            log(
                logger, logging.WARNING, "hook ended its process", exception=error,
                view=definition.label, phase=hook.partition("_")[2],
            )  # fmt: skip
            raise
        raise HookError(f"{definition.label}.{hook} raised {error_text(error)}") from error


def _ctrl_c_may_interrupt() -> bool:
    """Whether a KeyboardInterrupt may be a person's. Celery's child processes ignore SIGINT."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    return in_main_thread and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def _checked_batch(result: Any, definition: ViewDefinition, phase: Phase) -> Batch:
    name = f"{definition.label}.{phase.do_hook}"
    if not isinstance(result, Batch):
        raise HookError(f"{name} declares cursor, so it must return a Batch, not {_shown(result)}.")
    rows = _count(result.rows, definition, phase.do_hook, "a Batch with the number of rows written")
    try:
        length = len(json.dumps(result.cursor, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise HookError(
            f"{name} returned a cursor that JSON cannot hold ({brief(str(error))}): "
            f"{_shown(result.cursor)}. Use strings, numbers, lists and dicts."
        ) from error
    if length > MAX_CURSOR_LENGTH:
        raise HookError(
            f"{name} returned a cursor of {length:,} characters as JSON, the limit is "
            f"{MAX_CURSOR_LENGTH:,}: return the key at which the next batch begins."
        )
    return Batch(rows, result.cursor)


def _count(value: Any, definition: ViewDefinition, hook: str, expected: str) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
        raise HookError(f"{definition.label}.{hook} must return {expected}, not {_shown(value)}.")
    return int(value)


def _shown(value: object) -> str:
    """A hook's result for an error message; it may hold row values, which the settings can hide."""
    hidden = get_settings().VALUES_IN_ERRORS == "none"
    return f"a {type(value).__name__}" if hidden else brief(value)
