"""Comparing a view with its source, and repairing the differences."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...definition import ViewDefinition
from ...exceptions import InvalidRequest
from ...limits import SAMPLE_SIZE
from ...models import Origin, ViewControl
from ...presentation import pluralize
from ...queryset import Difference, Kind, plan_of
from ...redact import brief
from ...registry import registry
from ..requests.controls import not_ready
from ..transactions import alias, in_transaction, now
from .comparison import PartResult, compare_all, compare_without_pending
from .halves import Halves
from .key_parts import Part, keys_left_out, parts, repair_part
from .sums import count_differing_sums

__all__ = ["MAX_EXAMPLES", "Verification", "check_verifiable", "failed_text", "stored_result",
    "verify"]  # fmt: skip

MAX_EXAMPLES = 5  # differences of each kind that are reported with their values
INTERACTIVE_TIMEOUT = (
    86_400.0  # seconds that a statement may take while a person waits, who can interrupt it
)


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
    #: How many keys are left out because they are parked.
    parked: int = 0
    #: How many keys are left out because they differ and have, or may have, a pending change.
    pending: int = 0
    #: Why a difference may be a change since the last refresh, if pending changes were to be left
    #: out; "" if it cannot, or if they were not.
    untracked: str = ""
    #: Of an additive view, in how many groups its sums differ from the source; the next batch
    #: recomputes them. None if they were not compared.
    sums: int | None = None
    #: How many keys could not be compared, because the source cannot compute their rows.
    failed: int = 0
    #: That there are such keys, and the first of them with its error; "" if there is none.
    error: str = ""

    @property
    def differences(self) -> int:
        """Missing, differing and surplus keys together."""
        return self.missing + self.differing + self.surplus

    @property
    def equal(self) -> bool:
        """Whether every key could be compared, and no key and no sum differed."""
        return not (self.differences or self.sums or self.failed)


def verify(
    view: str | type,
    *,
    repair: bool = False,
    sample: int | None = None,
    leave_out_pending: bool = False,
) -> Verification:
    """Compare a view with the current rows of its `source()`, range by range; record the result.

    One statement compares a range, so it sees one snapshot. Differences that belong to a phase that
    the view does not have are ignored.

    Args:
        view: the view's class or label.
        repair: write the rows that differ, and only those, while no batch of the view runs.
        sample: compare about this many keys, in random ranges; None for all of them.
        leave_out_pending: do not count keys with a pending change; in a transaction, they count.

    Raises:
        UnknownView, InvalidView: there is no such view, or it has errors.
        InvalidRequest: it has no `source()`, cannot be sampled, or repaired in a transaction.
        ViewNotReady: it has no bookkeeping rows.
        ViewBusy: batches of the view kept running for 30 seconds, so it was not repaired.
    """
    definition = check_verifiable(view, sample)
    control = ViewControl.objects.filter(label=definition.label).first()
    if control is None:
        raise not_ready(definition.label)
    # A transaction of the caller has no snapshot of its own.
    leave_out_pending = leave_out_pending and not in_transaction()
    total, left_out = _Total(definition, control.pk), keys_left_out(control.pk)
    total.compare_sums(sample)
    total.compare(
        parts(definition, sample, left_out), leave_out_pending=leave_out_pending, repair=repair
    )
    verification = Verification(
        label=definition.label,
        view_id=control.pk,
        repaired=total.repaired if repair else None,
        sample=sample,
        null_keys=None if sample or left_out else plan_of(definition, alias()).null_keys(),
        parked=len(left_out),
        **total.found,
    )
    _save(verification)
    return verification


def check_verifiable(view: str | type, sample: object) -> ViewDefinition:
    """The definition of a view that can be verified.

    Raises:
        UnknownView, InvalidView: there is no such view, or it has errors.
        InvalidRequest: it has no `source()`, or the sample is invalid.
    """
    definition = registry.usable(view)
    if not definition.has_source:
        raise InvalidRequest(
            f"{definition.label} has no source() to compare it with: only its hooks know its rows."
        )
    if sample is not None and sample not in SAMPLE_SIZE:
        raise InvalidRequest(f"A sample must have at least 1 key, not {brief(sample)}.")
    return definition


class _Total:
    """The sum of what all parts have shown."""

    def __init__(self, definition: ViewDefinition, view_id: int) -> None:
        self._definition, self._view_id = definition, view_id
        self.counts = dict.fromkeys(Kind, 0)
        self.rows_compared = self.pending = self.repaired = 0
        self.failed, self.error = 0, ""
        self.untracked = ""
        self.examples: list[Difference] = []
        self.sums: int | None = None

    @property
    def found(self) -> dict[str, Any]:
        """The values of `Verification`."""
        return {
            **{kind.value: count for kind, count in self.counts.items()},
            "rows_compared": self.rows_compared,
            "examples": tuple(self.examples),
            "pending": self.pending,
            "untracked": self.untracked,
            "sums": self.sums,
            "failed": self.failed,
            "error": failed_text(self.failed, self.error),
        }

    def compare_sums(self, sample: int | None) -> None:
        """Compare those of an additive view: before a repair, which has them recomputed anyway."""
        if sample is None:
            self.sums = count_differing_sums(self._definition, self._view_id, INTERACTIVE_TIMEOUT)

    def compare(self, parts: Iterable[Part], *, leave_out_pending: bool, repair: bool) -> None:
        """Compare parts, and add what they show."""
        compare = self._compare_without_pending if leave_out_pending else self._compare_all
        halves = Halves(
            self._definition, self._view_id, compare, leave_out_pending=leave_out_pending
        )
        for part in parts:
            for piece, found in halves.compare(part):
                self._add(found)
                if repair and found.counts:
                    self.repaired += repair_part(self._definition, piece)

    def _compare_all(self, part: Part) -> PartResult:
        return compare_all(self._definition, part, MAX_EXAMPLES)

    def _compare_without_pending(self, part: Part) -> PartResult:
        return compare_without_pending(self._definition, self._view_id, part, INTERACTIVE_TIMEOUT)

    def _add(self, found: PartResult) -> None:
        """Add what a part has shown, with the first examples of each kind."""
        self.failed += found.failed
        self.error = self.error or found.error
        self.rows_compared += found.rows_compared
        self.pending += found.pending_count
        self.untracked = self.untracked or found.untracked
        for kind, count in found.counts.items():
            room = MAX_EXAMPLES - sum(example.kind is kind for example in self.examples)
            self.examples += [each for each in found.found if each.kind is kind][:room]
            self.counts[kind] += count


def _save(verification: Verification) -> None:
    """Save the result for the admin."""
    saved: dict[str, Any] = {
        "verification": stored_result(
            rows_compared=verification.rows_compared,
            missing=verification.missing,
            differing=verification.differing,
            surplus=verification.surplus,
            repaired=verification.repaired,
            sample=verification.sample,
            parked=verification.parked,
            pending=verification.pending,
            untracked=verification.untracked,
            sums=verification.sums,
            error=verification.error,
        )
    }
    if not verification.sample and (verification.equal or verification.repaired is not None):
        saved["differing"] = None
    ViewControl.objects.filter(pk=verification.view_id).update(**saved)


def failed_text(keys: int, error: str) -> str:
    """That the source cannot compute the rows of some keys, and the error of the first."""
    return f"{pluralize(keys, 'key')} could not be computed: {error}" if keys else ""


def stored_result(**values: Any) -> dict[str, Any]:
    """The value of `ViewControl.verification`; what is not given is as of a `verify()` in code."""
    defaults: dict[str, Any] = {
        "at": now().isoformat(),
        "examples": [],
        "seconds": None,
        "origin": Origin.API.value,
        "requested_by": "",
        "error": "",
    }
    return {**defaults, **values}
