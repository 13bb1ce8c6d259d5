"""Comparing a view with its source, and repairing the differences."""

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from django.db import DatabaseError
from django.db.models import Q

from ..conf import get_settings
from ..databases.keys import Range
from ..definition import ViewDefinition
from ..exceptions import InvalidRequest, ViewBusy
from ..models import ViewControl, ViewShard
from ..phases import Phase
from ..queryset import Difference, Differences, Kind, Plan, compare, plan_of, ranges
from ..registry import registry
from .controls import not_ready
from .derived import explained
from .locking import lock_available
from .transactions import alias, batch_transaction, check_no_transaction, now

__all__ = ["Verification", "verify"]

KEYS_PER_RANGE = 5_000  # keys compared by one statement
MAX_EXAMPLES = 5  # differences of each kind that are reported with their values
REPAIR_TIMEOUT = 30.0  # seconds that a repair waits for running batches
REPAIR_RETRY_DELAY = 0.05  # seconds between two attempts
PHASE_OF_KIND = {
    Kind.MISSING: Phase.INSERT,
    Kind.DIFFERING: Phase.UPDATE,
    Kind.SURPLUS: Phase.DELETE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """The result of comparing a view with its source."""

    label: str
    #: The primary key of the view's control.
    view_id: int
    #: Rows of the source that were compared.
    rows_compared: int
    #: Keys of the source that the view does not have.
    missing: int
    #: Keys whose values differ between the source and the view.
    differing: int
    #: Keys of the view that the source does not have.
    surplus: int
    #: The first differences of each kind, with both values.
    examples: tuple[Difference, ...]
    #: Rows written to repair them; None if no repair was requested.
    repaired: int | None
    #: How many keys to compare were requested; None for all.
    sample: int | None
    #: Rows of the source that are left out because their key is NULL; None for a sample.
    null_keys: int | None = None

    @property
    def differences(self) -> int:
        """Missing, differing and surplus keys together."""
        return self.missing + self.differing + self.surplus

    @property
    def equal(self) -> bool:
        """Whether no key differed."""
        return not self.differences


def verify(view: str | type, *, repair: bool = False, sample: int | None = None) -> Verification:
    """Compare a view with the current rows of its `source()`, range by range; record the result.

    One statement compares a range, so it sees one snapshot. Changes of the source since the last
    refresh count as differences. Differences that belong to a phase that the view does not have are
    ignored.

    Args:
        view: the view's class or label.
        repair: write the rows that differ, and only those, while no batch of the view runs.
        sample: compare about this many keys, in random ranges; None for all of them.

    Raises:
        UnknownView, InvalidView: there is no such view, or it has errors.
        InvalidRequest: it has no `source()`, cannot be sampled, or a repair was requested inside
            a transaction.
        ViewNotReady: it has no bookkeeping rows.
        ViewBusy: batches of the view kept running for 30 seconds, so it was not repaired.
    """
    definition = registry.usable(view)
    control = ViewControl.objects.filter(label=definition.label).first()
    if control is None:
        raise not_ready(definition.label)
    if not definition.has_source:
        raise InvalidRequest(
            f"{definition.label} has no source() to compare it with: only its hooks know its rows."
        )
    if sample is not None and sample < 1:
        raise InvalidRequest(f"A sample must have at least 1 key, not {sample!r}.")
    total, repaired = _Total(definition), 0
    for within in _ranges(definition, sample):
        differences = compare(plan_of(definition, alias()).checked(), within, MAX_EXAMPLES)
        total.add(differences)
        if repair and any(differences.counts.values()):
            repaired += _repair(definition, within)
    verification = Verification(
        label=definition.label,
        view_id=control.pk,
        rows_compared=total.rows_compared,
        missing=total.counts[Kind.MISSING],
        differing=total.counts[Kind.DIFFERING],
        surplus=total.counts[Kind.SURPLUS],
        examples=tuple(total.examples),
        repaired=repaired if repair else None,
        sample=sample,
        null_keys=None if sample else plan_of(definition, alias()).null_keys(),
    )
    _save(verification)
    return verification


class _Total:
    """The sum of the differences in all ranges, for the phases that the view has."""

    def __init__(self, definition: ViewDefinition) -> None:
        phases = definition.options.phases
        self.kinds = [kind for kind, phase in PHASE_OF_KIND.items() if phase in phases]
        self.counts = dict.fromkeys(Kind, 0)
        self.rows_compared = 0
        self.examples: list[Difference] = []

    def add(self, differences: Differences) -> None:
        """Add the differences of one range, with the first examples of each kind."""
        self.rows_compared += differences.rows_compared
        for kind in self.kinds:
            room = MAX_EXAMPLES - sum(example.kind is kind for example in self.examples)
            self.examples += [each for each in differences.examples if each.kind is kind][:room]
            self.counts[kind] += differences.counts[kind]


def _ranges(definition: ViewDefinition, sample: int | None) -> Iterator[Range]:
    plan = plan_of(definition, alias()).checked()
    if sample is None:
        return ranges(plan, KEYS_PER_RANGE)
    if plan.strategy.staged:
        raise InvalidRequest(
            f"{definition.label} cannot be sampled: {plan.strategy.reason}, so its source is "
            f"computed as a whole anyway. Verify it without a sample."
        )
    return _sampled(plan, sample)


def _sampled(plan: Plan, sample: int) -> Iterator[Range]:
    """Ranges of keys that begin at random keys of the view."""
    size = min(sample, KEYS_PER_RANGE)
    total = plan.source.model._base_manager.using(alias()).count()
    for _range in range(math.ceil(sample / size)):
        skipped = random.randint(0, max(0, total - size))
        low = plan.statements().next_source_keys(None, skipped).high if skipped else None
        yield next(ranges(plan, size, low))


def _repair(definition: ViewDefinition, within: Range) -> int:
    """Write the rows of a range that differ, in one transaction, while no batch of the view runs.

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
                    return _write(definition, within)
        except DatabaseError as error:
            raise explained(error, definition) from error.__cause__
        time.sleep(REPAIR_RETRY_DELAY)
    raise ViewBusy(
        f"{definition.label} was not repaired: its batches are running. Pause it, or try again."
    )


def _write(definition: ViewDefinition, within: Range) -> int:
    statements = plan_of(definition, alias()).checked().statements()
    # Deletes come first, because a new row may need the value of another unique constraint that an
    # old row has.
    phases = (Phase.DELETE, Phase.UPDATE, Phase.INSERT)
    return sum(
        statements.do(phase, within) for phase in phases if phase in definition.options.phases
    )


def _save(verification: Verification) -> None:
    """Save the result for the admin."""
    ViewControl.objects.filter(pk=verification.view_id).update(
        verification={
            "at": now().isoformat(),
            "rows_compared": verification.rows_compared,
            "missing": verification.missing,
            "differing": verification.differing,
            "surplus": verification.surplus,
            "repaired": verification.repaired,
            "sample": verification.sample,
        }
    )
