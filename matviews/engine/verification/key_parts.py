"""The parts into which the keys of a view are split to be verified, and how a part is repaired."""

import math
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, transaction
from django.db.models import Q

from ...conf import get_settings
from ...databases.keys import Key, Keys, KeySelection, Range, from_json, to_json
from ...definition import ViewDefinition
from ...exceptions import InvalidRequest, ViewBusy
from ...models import ParkedKey, ViewShard
from ...phases import Phase
from ...queryset import (
    BatchRunner,
    Kind,
    Plan,
    Statements,
    WindowProgress,
    equal_keys,
    may_differ_in_spelling,
    plan_of,
    ranges,
    spellings,
)
from ..batches.derived import explained
from ..batches.sums import distrust_sums, recompute_groups
from ..locking import lock_available
from ..parking.splitting import splitting_obstacle
from ..transactions import alias, batch_transaction, check_no_transaction

__all__ = ["PHASE_OF_KIND", "Part", "as_spelled", "keys_left_out", "keys_part", "listed_parts",
    "parts", "repair_part", "statements_of"]  # fmt: skip

KEYS_PER_RANGE = 5_000  # keys compared by one statement
REPAIR_TIMEOUT = 30.0  # seconds that a repair waits for running batches
REPAIR_RETRY_DELAY = 0.05  # seconds between two attempts
PHASE_OF_KIND = {
    Kind.MISSING: Phase.INSERT,
    Kind.DIFFERING: Phase.UPDATE,
    Kind.SURPLUS: Phase.DELETE,
}
#: Lists of keys: those of the view, then those of the source. Rows are deleted first when they are
#: repaired.
PASSES = ((Phase.DELETE, (Kind.SURPLUS,)), (Phase.INSERT, (Kind.MISSING, Kind.DIFFERING)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of the keys, which one statement compares."""

    within: KeySelection
    #: The kinds of differences that it finds.
    kinds: tuple[Kind, ...] = tuple(Kind)
    #: As JSON, where `parts` continues after it.
    cursor: Any = None


def keys_left_out(view_id: int) -> set[Key]:
    """The keys of a view that some phase leaves out, because they are parked."""
    rows = ParkedKey.objects.filter(shard__view=view_id)
    return {from_json(key) for key in rows.values_list("key", flat=True)}


def as_spelled(plan: Plan, keys: set[Key]) -> set[Key]:
    """Some keys, also as the view and the source spell them, where that may differ.

    As they are given, if a key cannot be read because its row cannot be computed.
    """
    statements = plan.key_batch_runner().statements
    if not (keys and may_differ_in_spelling(statements)):
        return keys
    given, found = list(keys), set(keys)
    for start in range(0, len(given), plan.dialect.max_keys):
        some = given[start : start + plan.dialect.max_keys]
        with suppress(DatabaseError), transaction.atomic(using=alias()):
            found |= spellings(statements, some)
    return found


def parts(
    definition: ViewDefinition, sample: int | None, left_out: set[Key], cursor: Any = None
) -> Iterator[Part]:
    """The parts to compare: ranges, or lists of keys where some are left out.

    Args:
        definition: the view.
        sample: about how many keys, in random ranges; None for all.
        left_out: the keys to leave out, whose rows the source cannot compute.
        cursor: that of the last part that was compared.

    Raises:
        InvalidRequest: the view cannot be sampled.
    """
    plan = plan_of(definition, alias()).checked()
    if sample is not None:
        return _sampled(plan, sample, left_out, cursor)
    at = cursor or {}
    by_lists = left_out and _runner(plan).statements.exact
    if by_lists or "pass" in at:
        return _lists(plan, left_out, at)
    return _ranges(plan, at)


def _ranges(plan: Plan, at: dict[str, Any]) -> Iterator[Part]:
    """The ranges of keys after `low`."""
    low = at.get("low")
    if at.get("done"):
        return
    for within in ranges(plan, KEYS_PER_RANGE, low and from_json(low)):
        high = within[1]
        yield Part(within=within, cursor={"low": to_json(high)} if high else {"done": True})


def _lists(plan: Plan, left_out: set[Key], at: dict[str, Any]) -> Iterator[Part]:
    """The keys after `low`, without those to leave out, in each of the remaining passes."""
    low, first = at.get("low"), at.get("pass", len(PASSES) if at.get("done") else 0)
    start = at.get("at", low)
    for number, (phase, kinds) in enumerate(PASSES):
        if number < first:
            continue
        cursor = start if number == first else low
        for some, after in _all_listed(plan, phase, cursor, left_out):
            begun = (number, after) if after is not None else (number + 1, low)
            for keys in some:
                state = dict(zip(("low", "pass", "at"), (low, *begun), strict=True))
                yield Part(within=keys, kinds=kinds, cursor=state)


def listed_parts(definition: ViewDefinition, part: Part) -> Iterator[Part]:
    """Lists of the keys in the range of a part; only of a source that is computed by keys."""
    assert isinstance(part.within, tuple)
    plan = plan_of(definition, alias())
    for phase, kinds in PASSES:
        for some, _after in _all_listed(plan, phase, None, set(), part.within):
            for keys in some:
                yield Part(within=keys, kinds=kinds)


def _all_listed(
    plan: Plan, phase: Phase, cursor: Any, left_out: set[Key], within: Range = (None, None)
) -> Iterator[tuple[list[Keys], Any]]:
    """As `_listed`, until a cursor of None says that no keys are left."""
    size = min(KEYS_PER_RANGE, plan.dialect.max_keys)
    while True:
        some, cursor = _listed(plan, phase, cursor, size, left_out, within)
        yield some, cursor
        if cursor is None:
            return


def _listed(
    plan: Plan,
    phase: Phase,
    cursor: Any,
    count: int,
    left_out: set[Key],
    within: Range = (None, None),
) -> tuple[list[Keys], Any]:
    """The next `count` keys of a phase, as many together as a statement takes, and their cursor."""
    runner = _runner(plan, within)
    keys, after = runner.next_keys(phase, WindowProgress(cursor=cursor), count)
    known = equal_keys(runner.statements, keys, list(left_out))
    wanted, most = tuple(key for key in keys if key not in known), plan.dialect.max_keys
    some = [wanted[start : start + most] for start in range(0, len(wanted), most)]
    return [Keys(each, tuple(runner.statements.kinds)) for each in some], after


def _sampled(plan: Plan, sample: int, left_out: set[Key], cursor: Any) -> Iterator[Part]:
    """Ranges of keys that begin at random keys, of the source or of the view."""
    if plan.strategy.staged:
        raise InvalidRequest(
            f"{plan.source.definition.label} cannot be sampled: {plan.strategy.reason}, so its "
            f"source is computed as a whole anyway. Verify it without a sample."
        )
    size = min(sample, KEYS_PER_RANGE)
    left = cursor["left"] if cursor else math.ceil(sample / size)
    begins = _random_keys(plan, size)
    for number in range(left, 0, -1):
        low, after = next(begins), {"left": number - 1}
        if not left_out or not _runner(plan).statements.exact:
            yield Part(within=next(ranges(plan, size, low)), cursor=after)
            continue
        for phase, kinds in PASSES:
            for keys in _listed(plan, phase, low and to_json(low), size, left_out)[0]:
                yield Part(within=keys, kinds=kinds, cursor=after)


def _random_keys(plan: Plan, size: int) -> Iterator[Key | None]:
    """Keys after which a range of `size` keys begins; None is the first range.

    One of the view would never be among missing keys, nor one of the source among surplus keys.
    """
    statements = plan.statements()
    sides = (
        (statements.next_source_keys, statements.count_source_keys()),
        (statements.next_view_keys, plan.source.model._base_manager.using(alias()).count()),
    )
    while True:
        next_keys, total = random.choice(sides)
        skipped = random.randint(0, max(0, total - size))
        yield next_keys(None, skipped).high if skipped else None


def keys_part(definition: ViewDefinition, keys: Iterable[Key]) -> Part:
    """A part with some keys; only of a view whose changes lead to keys."""
    kinds = plan_of(definition, alias()).checked().key_batch_runner().statements.kinds
    return Part(within=Keys(tuple(keys), tuple(kinds)))


def _runner(plan: Plan, within: Range = (None, None)) -> BatchRunner:
    if splitting_obstacle(plan):
        return plan.batch_runner(within=within)
    return plan.key_batch_runner(within)


def statements_of(plan: Plan, part: Part) -> Statements:
    """The statements that read the source for a part."""
    return _runner(plan).statements if isinstance(part.within, Keys) else plan.statements()


def repair_part(definition: ViewDefinition, part: Part) -> int:
    """Write the rows of a part that differ, in one transaction, while no batch of the view runs.

    It needs no token: it locks the rows of all shards, which a batch must update before anything
    else. It advances no cursor or checkpoint, so later batches write the same rows again where
    changes are pending.
    """
    check_no_transaction("verify(repair=True)")
    deadline = time.monotonic() + REPAIR_TIMEOUT
    while time.monotonic() < deadline:
        try:
            with batch_transaction(get_settings().STATEMENT_TIMEOUT):
                of_view = Q(view__label=definition.label)
                if len(lock_available(of_view)) == ViewShard.objects.filter(of_view).count():
                    return _write(definition, part)
        except DatabaseError as error:
            raise explained(error, definition) from error.__cause__
        time.sleep(REPAIR_RETRY_DELAY)
    raise ViewBusy(
        f"{definition.label} was not repaired: its batches are running. Pause it, or try again."
    )


def _write(definition: ViewDefinition, part: Part) -> int:
    plan = plan_of(definition, alias())
    for shard in ViewShard.objects.filter(view__label=definition.label)[:1]:
        if isinstance(part.within, Keys):
            recompute_groups(plan, shard, part.within.keys)
        else:
            distrust_sums(shard.view_id)
    statements = statements_of(plan.checked(), part)
    # Deletes come first, because a new row may need the value of another unique constraint that an
    # old row has.
    kinds = (Kind.SURPLUS, Kind.DIFFERING, Kind.MISSING)
    phases = [PHASE_OF_KIND[kind] for kind in kinds if kind in part.kinds]
    return sum(
        statements.do(phase, part.within) for phase in phases if phase in definition.options.phases
    )
