"""The parked keys of a shard: those that its phases leave out until their rows can be written.

Only a batch parks or unparks a key, in the transaction that processes it. A key may arrive in
another spelling than the one in which it is parked; the database recognizes it.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta

from django.db import DatabaseError, transaction

from ... import changes
from ...changes import QueuedChange
from ...conf import get_settings
from ...databases import ConstraintKind, errors_of
from ...databases.keys import Key, from_json, to_json
from ...definition import ViewDefinition
from ...logs import log
from ...models import ParkedKey, PhaseRun, ViewShard
from ...phases import Phase
from ...queryset import Statements, equal_keys, key_columns, refused
from ...redact import error_text
from ..tracking.dirty_keys import all_dirty, load_keys
from ..transactions import alias, now
from ..work.shard_work import Work

__all__ = [
    "due_changes",
    "due_for_retry",
    "find_parked",
    "has_unfit",
    "involves_others",
    "load_parked",
    "log_parked",
    "make_due",
    "max_parked",
    "may_be_data_error",
    "park",
    "parked_by",
    "too_many_parked",
    "try_soon",
    "unpark",
    "unpark_new",
]

logger = logging.getLogger(__name__)

FIRST_RETRY = 60.0  # seconds; the interval doubles with each try
LAST_RETRY = 86_400.0
LAST_RETRY_OF_OTHERS = 900.0  # no change of the key shows that another row is right
#: What to do about a row that the database cannot compute.
NOT_COMPUTED = ". Fix the row, or have source() avoid the error, for example with NullIf()."


def max_parked(definition: ViewDefinition | None) -> int:
    """How many keys of a view may be parked, counted once for each phase; 0: none ever is."""
    limit = definition.options.max_parked_keys if definition else None
    return get_settings().MAX_PARKED_KEYS if limit is None else limit


def load_parked(work: Work, phase: str) -> dict[Key, ParkedKey]:
    """Read the parked keys, once per batch, and delete outdated ones; return those of a phase."""
    if work.parked is None:
        rows = ParkedKey.objects.filter(shard=work.shard) if work.shard.parked_count else ()
        work.parked = list(rows)
        _delete_outdated(work)
    return {from_json(row.key): row for row in work.parked if row.phase == phase}


def find_parked(
    work: Work, phase: str, keys: Sequence[Key], statements: Statements
) -> dict[Key, ParkedKey]:
    """Which of some keys are parked in a phase, however they are spelled, and as which row."""
    known = load_parked(work, phase)
    found = equal_keys(statements, keys, list(known)) if known else {}
    return {key: known[other] for key, other in found.items()}


def parked_by(work: Work, run: PhaseRun) -> list[ParkedKey]:
    """The keys that earlier batches of a run have parked, and that were not parked before it."""
    rows, begun = load_parked(work, run.phase).values(), run.started_at
    return [row for row in rows if begun and row.first_seen >= begun]


def unpark_new(work: Work, run: PhaseRun) -> None:
    """Unpark the keys that a run parked before it failed because too many keys did.

    Otherwise the next run would leave them out, and so fail later, or succeed without them. Must
    run in the transaction that records the failure. No key is lost: the phase has not succeeded.
    """
    unpark(work, parked_by(work, run))
    run.parked = len(load_parked(work, run.phase))
    ViewShard.objects.filter(pk=work.shard.pk).update(parked_count=work.shard.parked_count)


def _delete_outdated(work: Work) -> None:
    """Delete keys of another definition, which may have another shape; all if none may be parked.

    The full refresh that follows a change of the definition tries all keys.
    """
    definition = work.definition
    parking = definition.parking if definition and max_parked(definition) else frozenset()
    gone = [
        row
        for row in work.parked or ()
        if row.phase not in parking or row.fingerprint != _fingerprint(work, row.phase)
    ]
    if gone:
        changes.delete_rows(ParkedKey, [row.pk for row in gone])
        _remove(work, gone)
        # Not even a worker that still has that definition may take their rows for right.
        lost = {row.phase for row in gone}
        work.shard.checkpoints = {
            phase: old._replace(fingerprint=None) if phase in lost else old
            for phase, old in work.shard.checkpoints.items()
        }


def _fingerprint(work: Work, phase: str) -> str:
    """The fingerprint that is stored with a parked key; a hook's code has none."""
    assert work.definition is not None
    return work.plan.fingerprint if phase in work.definition.derived else ""


def due_changes(work: Work) -> list[QueuedChange]:
    """Parked keys that are to be tried again now, as changes of the view's queue.

    Only those of phases whose runs have yet to start: no other run would try them, and each refresh
    of other phases would find them due again.
    """
    if not work.shard.parked_count or work.definition is None:
        return []
    moment, starting = now(), {run.phase for run in work.leaders() if not run.batches}
    due = [
        row
        for phase in work.definition.derived & starting
        for row in load_parked(work, phase).values()
        if row.retry_at <= moment
    ]
    keys = {from_json(row.key) for row in due}
    return [QueuedChange("", [], list(map(to_json, keys)), moment)] if due else []


def due_for_retry(work: Work, run: PhaseRun) -> list[Key]:
    """The parked keys that a full refresh tries again at its end, the longest untried first.

    Among them those that a logged change since the phase's last success may concern.
    """
    moment, known = now(), load_parked(work, run.phase)
    if not known:
        return []
    keys = _changed(work, run)
    changed = known.values() if keys is None else _rows_of(work, run.phase, keys)
    pks = {row.pk for row in changed}
    due = [key for key, row in known.items() if row.retry_at <= moment or row.pk in pks]
    return sorted(due, key=lambda key: known[key].last_seen)


def _rows_of(work: Work, phase: str, keys: Iterable[Key]) -> Collection[ParkedKey]:
    """The parked ones among some keys of a view's queue."""
    return find_parked(work, phase, list(keys), work.key_runner.statements).values()


def _changed(work: Work, run: PhaseRun) -> set[Key] | None:
    """The keys that changes since a phase's last success lead to; None for any key."""
    if run.checkpoint is None:
        return set()
    shard = work.shard
    reached = shard.checkpoints[run.phase].drain_number if run.phase in shard.checkpoints else -1
    if reached < shard.full_refresh_after:
        return None
    dirty = [part for part in all_dirty(work) if part.drain_number > reached]
    load_keys(dirty)
    return {key for part in dirty for key in part.keys or ()}


def make_due(work: Work, marked: Iterable[QueuedChange]) -> None:
    """Make parked keys of an untracked view due if they were marked as dirty."""
    if not work.shard.parked_count:
        return
    links, moment = [change.links for change in marked], now()
    named = {from_json(key) for keys in links if isinstance(keys, list) for key in keys}
    all_named = all(isinstance(keys, list) for keys in links)
    rows = {
        row.pk: row
        for phase in Phase
        for row in (
            _rows_of(work, phase, named) if all_named else load_parked(work, phase).values()
        )
    }
    for row in rows.values():
        row.retry_at = moment
    if rows:
        ParkedKey.objects.filter(pk__in=rows).update(retry_at=moment)


def try_soon(work: Work, phase: str, keys: Iterable[Key]) -> None:
    """Have parked keys tried by the next refresh, because this one had no room for them."""
    known = load_parked(work, phase)
    if late := [known[key].pk for key in keys]:
        ParkedKey.objects.filter(pk__in=late).update(retry_at=now())


def may_be_data_error(work: Work, error: Exception) -> bool:
    """Whether some rows of `source()` may be at fault.

    They are not if the view's table has a NOT NULL column that `source()` does not have.
    """
    errors = errors_of(alias())
    if not errors.may_be_data_error(error):
        return False
    violation = errors.violation(error) if isinstance(error, DatabaseError) else None
    if violation is None or violation.kind is not ConstraintKind.NOT_NULL:
        return True
    return {column.field.column for column in work.plan.source.columns} >= set(violation.columns)


def has_unfit(work: Work) -> bool:
    """Whether a key of the view is parked because a value may not have fit its column."""
    load_parked(work, "")  # reads them
    does_not_fit = errors_of(alias()).does_not_fit
    return any(does_not_fit(row.code) for row in work.parked or ())


def too_many_parked(work: Work, new: int) -> str:
    """A note that says that so many more keys are too many; "" if they may be parked."""
    limit = max_parked(work.definition)
    if work.shard.parked_count + new <= limit:
        return ""
    return f"More than {limit:,} keys failed, so they are not parked."


def log_parked(work: Work, phase: str, keys: int, error: str) -> None:
    """Log how many keys have just been parked, and the error of the last one."""
    log(
        logger, logging.WARNING, "keys parked", view=work.shard.view.label, phase=phase, keys=keys,
        parked=work.shard.parked_count, error=error,
    )  # fmt: skip


def involves_others(error: Exception) -> bool:
    """Whether an error may be the fault of another row, so that it may pass once that is right."""
    violation = errors_of(alias()).violation(error) if isinstance(error, DatabaseError) else None
    return violation is not None and violation.kind in (
        ConstraintKind.UNIQUE,
        ConstraintKind.FOREIGN_KEY,
        ConstraintKind.EXCLUSION,
    )


def park(work: Work, phase: str, key: Key, error: Exception) -> None:
    """Park a key, or record that it has failed again; if parked, it keeps its spelling."""
    moment, row = now(), load_parked(work, phase).get(key)
    tries = row.tries + 1 if row else 1
    values = {
        **_described(work, phase, error),
        "last_seen": moment,
        "tries": tries,
        "retry_at": moment + _interval(tries, error),
    }
    if row:
        ParkedKey.objects.filter(pk=row.pk).update(**values)
        return
    assert work.parked is not None
    new = {"shard": work.shard, "phase": phase, "key": to_json(key), "first_seen": moment}
    work.parked.append(ParkedKey.objects.create(**new, **values))
    _count(work)


def _interval(tries: int, error: Exception) -> timedelta:
    longest = LAST_RETRY_OF_OTHERS if involves_others(error) else LAST_RETRY
    return timedelta(seconds=min(FIRST_RETRY * 2.0 ** min(tries - 1, 32), longest))


def _described(work: Work, phase: str, error: Exception) -> dict[str, object]:
    """What is known about an error, as columns of a row."""
    assert work.definition is not None
    errors, explained = errors_of(alias()), error
    violation = errors.violation(error) if isinstance(error, DatabaseError) else None
    with suppress(DatabaseError), transaction.atomic(using=alias()):
        if isinstance(error, DatabaseError) and phase in work.definition.derived:
            explained = refused(error, work.plan.source, alias())
    message = error_text(explained, key=key_columns(work.definition))
    if phase in work.definition.derived and errors.is_data_error(error) and not violation:
        message += NOT_COMPUTED
    return {
        "fingerprint": _fingerprint(work, phase),
        "error_class": type(error).__name__[:100],
        "code": errors.code(error)[:64],
        "constraint": (violation.name if violation else "")[:255],
        "columns": list(violation.columns) if violation else [],
        "message": message,
        "involves_others": involves_others(error),
    }


def unpark(work: Work, rows: Iterable[ParkedKey]) -> None:
    """Remove keys from the parked ones."""
    if gone := {row.pk: row for row in rows}:
        changes.delete_rows(ParkedKey, list(gone))
        _remove(work, gone.values())


def _remove(work: Work, gone: Collection[ParkedKey]) -> None:
    removed = {row.pk for row in gone}
    work.parked = [row for row in work.parked or () if row.pk not in removed]
    _count(work)


def _count(work: Work) -> None:
    work.shard.parked_count = len(work.parked or ())
    work.shard_changed = True
