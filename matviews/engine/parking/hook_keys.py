"""Parked keys of hooks: a hook names a key that it cannot write, and then leaves it out."""

from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError

from ...databases import errors_of
from ...databases.keys import Key
from ...exceptions import HookError, KeyFailed
from ...models import PhaseRun
from ...phases import Phase
from ...redact import error_text
from ...states import RunState
from ..transactions import alias, now
from ..work.shard_work import Work
from .parked_keys import load_parked, log_parked, max_parked, park, too_many_parked, unpark

__all__ = ["left_out", "park_failed", "unpark_written"]


def left_out(work: Work, phase: Phase) -> list[Any]:
    """The keys that a hook is to leave out, as it gave them: those that are not due for a retry."""
    if work.definition is None or phase in work.definition.derived:
        return []
    moment, known = now(), load_parked(work, phase)
    return [_as_given(key) for key, row in known.items() if row.retry_at > moment]


def park_failed(work: Work, run: PhaseRun, error: Exception) -> Exception | None:
    """Park the key of the row that a hook could not write.

    Call it in the transaction that records the rolled back batch, and `save_changes` after it.

    Args:
        work: the work of the shard, loaded after the batch was rolled back.
        run: the phase run.
        error: the error of the batch.

    Returns:
        None if the key is parked; otherwise the error with which the batch fails.
    """
    definition, phase = work.definition, Phase(run.phase)
    if not isinstance(error, KeyFailed) or definition is None:
        return error
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if not _is_of_a_row(cause):
        return cause
    if "parked" not in definition.hooks[phase].do or not max_parked(definition):
        return error
    name, key = f"{definition.label}.{phase.do_hook}", _as_stored(error.key)
    if key is None:
        return HookError(
            f"{name} raised KeyFailed with a {type(error.key).__name__}: use a string, an integer "
            f"or a tuple of these."
        )
    row = load_parked(work, phase).get(key)
    if row and row.retry_at > now():
        return HookError(f"{name} did not leave out {error.key!r}, which is in parked.")
    if not row and (note := too_many_parked(work, 1)):
        work.too_many_failed = True
        error.add_note(note)
        return error
    _begin_again(work, run)
    park(work, phase, key, cause)
    run.parked = len(load_parked(work, phase))
    if not row:
        log_parked(work, phase, 1, error_text(cause))
    return None


def unpark_written(work: Work, run: PhaseRun) -> None:
    """Unpark the keys that were due when a run succeeded: it has written their rows."""
    if work.shard.parked_count:
        moment = now()
        known = load_parked(work, run.phase).values()
        unpark(work, [row for row in known if row.retry_at <= moment])
        run.parked = len(load_parked(work, run.phase))


def _begin_again(work: Work, run: PhaseRun) -> None:
    """Record that the run goes on with its next batch."""
    run.last_batch_at = now()
    run.started_at = run.started_at or run.last_batch_at
    run.failures, run.error, run.traceback = 0, "", ""
    run.move_to(RunState.RUNNING)
    work.touch(run)


def _is_of_a_row(error: Exception) -> bool:
    if isinstance(error, DatabaseError):
        return errors_of(alias()).may_be_data_error(error)
    return not isinstance(error, MemoryError)


def _as_stored(key: object) -> Key | None:
    """A key as a tuple; None if JSON could not hold it as it is."""
    parts: Sequence[object] = key if isinstance(key, tuple) else (key,)
    allowed = all(isinstance(part, str | int) and not isinstance(part, bool) for part in parts)
    return tuple(parts) if parts and allowed else None


def _as_given(key: Key) -> Any:
    return key[0] if len(key) == 1 else key
