"""Holding a view against its source, and mending what differs."""

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
from ..queryset import Difference, Kind, Plan, compare, plan_of, ranges
from ..registry import registry
from .controls import not_ready
from .derived import explained
from .locking import lock_available
from .transactions import alias, batch_transaction, check_no_transaction, now

__all__ = ["Verification", "verify"]

WINDOW = 5_000  # keys that are compared at once
EXAMPLES = 5  # differences of each kind that are told with their values
PATIENCE = 30.0  # seconds that mending waits for the batch of a worker to end
PAUSE = 0.05  # seconds between two tries
PHASES = {Kind.MISSING: Phase.INSERT, Kind.DIFFERING: Phase.UPDATE, Kind.SURPLUS: Phase.DELETE}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What holding a view against its source has found.

    Attributes:
        label: the view.
        view_id: the primary key of its control.
        rows_compared: rows of the source that were compared.
        missing, differing, surplus: keys that the view lacks, has with other values, has too much.
        examples: the first differences of each kind, with both values.
        repaired: rows written to mend them; None if that was not asked for.
        sample: how many keys were to be compared at least; None for all.
        null_keys: rows of the source that are left out because their key is NULL; None for a sample.
    """

    label: str
    view_id: int
    rows_compared: int
    missing: int
    differing: int
    surplus: int
    examples: tuple[Difference, ...]
    repaired: int | None
    sample: int | None
    null_keys: int | None = None

    @property
    def differences(self) -> int:
        """Keys that differ in any way."""
        return self.missing + self.differing + self.surplus

    @property
    def equal(self) -> bool:
        """Whether no key differed."""
        return not self.differences


def verify(view: str | type, *, repair: bool = False, sample: int | None = None) -> Verification:
    """Compare a view with what its `source()` yields now, range by range, and note the result.

    Each range is compared by one statement, so in one snapshot. What has changed in the source since
    the last refresh differs, of course. Phases that the view does not have are not looked at.

    Args:
        view: the view's class or label.
        repair: write what differs, and only that, while no batch of the view runs.
        sample: compare about so many keys, in ranges at random; None for all of them.

    Raises:
        UnknownView, InvalidView: there is no such view, or it has errors.
        InvalidRequest: it has no `source()`, cannot be sampled, or is to be mended within a transaction.
        ViewNotReady: it has no bookkeeping rows.
        ViewBusy: a batch kept the view from being mended for 30 seconds.
    """
    definition = registry.usable(view)
    control = ViewControl.objects.filter(label=definition.label).first()
    if control is None:
        raise not_ready(definition.label)
    if not definition.has_source:
        raise InvalidRequest(
            f"{definition.label} has no source() to be held against: its hooks alone know."
        )
    if sample is not None and sample < 1:
        raise InvalidRequest(f"A sample has at least 1 key, not {sample!r}.")
    counts = dict.fromkeys(Kind, 0)
    rows_compared, repaired = 0, 0
    examples: list[Difference] = []
    for within in _ranges(definition, sample):
        found = compare(plan_of(definition, alias()).checked(), within, EXAMPLES)
        rows_compared += found.rows_compared
        for kind, phase in PHASES.items():
            if phase in definition.options.phases:
                room = EXAMPLES - sum(each.kind is kind for each in examples)
                examples += [each for each in found.examples if each.kind is kind][:room]
                counts[kind] += found.counts[kind]
        if repair and any(found.counts.values()):
            repaired += _mend(definition, within)
    verification = Verification(
        label=definition.label,
        view_id=control.pk,
        rows_compared=rows_compared,
        missing=counts[Kind.MISSING],
        differing=counts[Kind.DIFFERING],
        surplus=counts[Kind.SURPLUS],
        examples=tuple(examples),
        repaired=repaired if repair else None,
        sample=sample,
        null_keys=None if sample else plan_of(definition, alias()).null_keys(),
    )
    _note(verification)
    return verification


def _ranges(definition: ViewDefinition, sample: int | None) -> Iterator[Range]:
    plan = plan_of(definition, alias()).checked()
    if sample is None:
        return ranges(plan, WINDOW)
    if plan.strategy.staged:
        raise InvalidRequest(
            f"{definition.label} cannot be sampled: {plan.strategy.reason}, so its source is computed "
            f"as a whole anyway. Verify it without a sample."
        )
    return _sampled(plan, sample)


def _sampled(plan: Plan, sample: int) -> Iterator[Range]:
    """Ranges of the view's own keys, that begin at random."""
    size = min(sample, WINDOW)
    total = plan.source.model._base_manager.using(alias()).count()
    for _range in range(math.ceil(sample / size)):
        skipped = random.randint(0, max(0, total - size))
        low = plan.statements().next_source_keys(None, skipped).high if skipped else None
        yield next(ranges(plan, size, low))


def _mend(definition: ViewDefinition, within: Range) -> int:
    """Write what differs in a range, in one transaction that no batch of the view shares."""
    check_no_transaction("verify(repair=True)")
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            with batch_transaction(get_settings().STATEMENT_TIMEOUT):
                of_view = Q(view__label=definition.label)
                if len(lock_available(of_view)) == ViewShard.objects.filter(of_view).count():
                    return _write(definition, within)
        except DatabaseError as error:
            raise explained(error, definition) from error.__cause__
        time.sleep(PAUSE)
    raise ViewBusy(
        f"Batches of {definition.label} are running, and it was not mended: pause it, or try again."
    )


def _write(definition: ViewDefinition, within: Range) -> int:
    statements = plan_of(definition, alias()).checked().statements()
    # Deleting first makes room for rows that are unique in more than their key.
    phases = (Phase.DELETE, Phase.UPDATE, Phase.INSERT)
    return sum(
        statements.do(phase, within) for phase in phases if phase in definition.options.phases
    )


def _note(found: Verification) -> None:
    """Keep the result for the admin."""
    ViewControl.objects.filter(pk=found.view_id).update(
        verification={
            "at": now().isoformat(),
            "rows_compared": found.rows_compared,
            "missing": found.missing,
            "differing": found.differing,
            "surplus": found.surplus,
            "repaired": found.repaired,
            "sample": found.sample,
        }
    )
