"""Comparing a view with its source while the source changes, so that only real differences count.

One snapshot shows the rows of both and every change that has yet to be processed: a trigger logs a
change in the transaction that makes it, and a batch that takes a change commits it as dirty keys or
together with the rows. So where a key differs and no change of it is pending, no refresh will ever
write it, unless it is a full one.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from django.db import DatabaseError, transaction

from ... import changes
from ...databases import errors_of
from ...databases.keys import Key, Keys, from_json
from ...definition import ViewDefinition
from ...models import DirtyKeys, ViewShard
from ...phases import Phase
from ...queryset import Difference, Differences, Kind, Plan, compare, plan_of
from ..tracking.resolve import resolve
from ..transactions import alias, snapshot, statement_timeout
from .key_parts import PHASE_OF_KIND, Part, as_spelled, keys_left_out, statements_of

__all__ = ["PartResult", "compare_all", "compare_without_pending", "has_pending_change"]

MAX_FOUND = 10_000  # differences of a kind that are read; of more, some are only counted
MAX_PENDING = 10_000  # keys that changes may lead to; if there are more, any may be pending


@dataclass(frozen=True, kw_only=True, slots=True)
class PartResult:
    """What differs in a part, and what may differ only because changes are pending."""

    #: Rows of the source that were compared.
    rows_compared: int = 0
    #: How many keys differ and have no pending change; a lower bound if more than `MAX_FOUND`
    #: differ.
    counts: dict[Kind, int] = field(default_factory=dict)
    #: These differences; of many, the first.
    found: tuple[Difference, ...] = ()
    #: The keys that differ and have a pending change. Empty if any key may have one.
    pending: tuple[Key, ...] = ()
    #: How many keys differ and may have a pending change.
    pending_count: int = 0
    #: Why a difference may be a change that is not logged; "" if all are.
    untracked: str = ""
    #: How many keys could not be compared, because the source cannot compute their rows.
    failed: int = 0
    #: The first of them with its error, as far as the settings allow to show it.
    error: str = ""


def compare_all(definition: ViewDefinition, part: Part, examples: int) -> PartResult:
    """Compare a part of a view with its source. All differences count; some become examples."""
    plan = plan_of(definition, alias()).checked()
    differences = compare(plan, part.within, examples, statements_of(plan, part))
    return _all_of(differences, _kinds(definition, differences, part), part, "")


def compare_without_pending(
    definition: ViewDefinition, view_id: int, part: Part, timeout: float | None = None
) -> PartResult:
    """Compare a part of a view with its source in one snapshot, without keys with pending changes.

    Of an untracked view, all differences count. `timeout` is that of a statement, in seconds; by
    default that of the view's batches.
    """
    with snapshot(timeout or statement_timeout(definition)):
        plan = plan_of(definition, alias()).checked()
        differences = compare(plan, part.within, MAX_FOUND, statements_of(plan, part))
        kinds = _kinds(definition, differences, part)
        untracked = _untracked_reason(plan, view_id)
        if not kinds or untracked:
            return _all_of(differences, kinds, part, untracked)
        return _PendingKeys(plan, view_id).leave_out(differences, kinds, part)


def has_pending_change(definition: ViewDefinition, view_id: int, key: Key) -> bool:
    """Whether a key of a tracked view has, or may have, a pending change."""
    with snapshot(statement_timeout(definition)):
        plan = plan_of(definition, alias()).checked()
        if _untracked_reason(plan, view_id):
            return False
        return _PendingKeys(plan, view_id).may_have(key, definition.options.phases)


def _kinds(definition: ViewDefinition, differences: Differences, part: Part) -> list[Kind]:
    """The kinds of differences that occur and that a phase of the view would fix."""
    return [
        kind
        for kind in part.kinds
        if differences.counts[kind] and PHASE_OF_KIND[kind] in definition.options.phases
    ]


def _untracked_reason(plan: Plan, view_id: int) -> str:
    """Why a difference may be a change that is not logged; "" if all are."""
    tracking = changes.tracking_of(plan)
    if tracking.reason:
        return tracking.reason
    missing = changes.untracked_tables(view_id, tracking, alias())
    return f"no triggers log all changes of {', '.join(sorted(missing))}" if missing else ""


def _all_of(
    differences: Differences, kinds: Collection[Kind], part: Part, untracked: str
) -> PartResult:
    return PartResult(
        rows_compared=_compared(differences, part),
        counts={kind: differences.counts[kind] for kind in kinds},
        found=tuple(each for each in differences.examples if each.kind in kinds),
        untracked=untracked,
    )


def _compared(differences: Differences, part: Part) -> int:
    return differences.rows_compared if Kind.MISSING in part.kinds else 0


class _PendingKeys:
    """Tells which differences have a pending change, in the snapshot that found them."""

    def __init__(self, plan: Plan, view_id: int) -> None:
        self._plan, self._parked = plan, as_spelled(plan, keys_left_out(view_id))
        tables = changes.tracking_of(plan).tables
        self._shards = list(ViewShard.objects.filter(view=view_id).order_by("pk"))
        waiting = changes.waiting_changes(view_id, tables)
        #: The keys to which changes lead that have not been drained; None for any key.
        self._waiting = resolve(plan, waiting, MAX_PENDING).keys
        self._differing: dict[frozenset[Key], dict[Kind, set[Key]]] = {}

    def leave_out(self, differences: Differences, kinds: Iterable[Kind], part: Part) -> PartResult:
        """The differences of a part without those that have a pending change."""
        counts, found, pending, pending_count = dict[Kind, int](), [], list[Key](), 0
        for kind in kinds:
            total = differences.counts[kind]
            of_kind = [each for each in differences.examples if each.kind is kind]
            excluded = self._excluded(kind)
            if excluded is None:
                pending_count += total
                continue
            real = [each for each in of_kind if each.exact not in excluded]
            left_out = [each.exact for each in of_kind if each.exact in excluded]
            complete = len(of_kind) == total
            counts[kind] = len(real) if complete else max(len(real), total - len(excluded))
            pending_count += total - counts[kind]
            found += real
            pending += left_out
        return PartResult(
            rows_compared=_compared(differences, part),
            counts={kind: count for kind, count in counts.items() if count},
            found=tuple(found),
            pending=tuple(pending),
            pending_count=pending_count,
        )

    def may_have(self, key: Key, phases: Iterable[Phase]) -> bool:
        """Whether a phase has yet to process a key, or may have."""
        return any(pending is None or key in pending for pending in map(self._pending, phases))

    def _excluded(self, kind: Kind) -> set[Key] | None:
        """The keys of a kind that are parked or have a pending change; None if any may have one.

        The database finds them, so that it does not matter how a logged key is spelled.
        """
        pending = self._pending(PHASE_OF_KIND[kind])
        if pending is None:
            return None
        known = frozenset(pending - self._parked)
        if known and not self._plan.key_batch_runner().statements.exact:
            return None
        if known not in self._differing:
            self._differing[known] = self._compare(known)
        return self._differing[known][kind] | self._parked

    def _pending(self, phase: Phase) -> set[Key] | None:
        """The keys that a phase has yet to process; None for any key."""
        of_shards = [self._dirty(shard, phase) for shard in self._shards]
        if self._waiting is None or None in of_shards:
            return None
        return self._waiting.union(*filter(None, of_shards))

    def _dirty(self, shard: ViewShard, phase: Phase) -> set[Key] | None:
        """The keys of a shard that have been drained; None for any key."""
        reached = shard.checkpoints.get(phase)
        if (
            reached is None
            or reached.drain_number < max(0, shard.full_refresh_after)
            or reached.fingerprint != self._plan.exact_fingerprint
        ):
            return None
        rows = DirtyKeys.objects.filter(shard=shard, drain_number__gt=reached.drain_number)
        return {from_json(key) for keys in rows.values_list("keys", flat=True) for key in keys}

    def _compare(self, keys: Collection[Key]) -> dict[Kind, set[Key]]:
        differing: dict[Kind, set[Key]] = {kind: set() for kind in Kind}
        if not keys:
            return differing
        statements = self._plan.key_batch_runner().statements
        for some in _chunks(list(keys), self._plan.dialect.max_keys):
            within = Keys(tuple(some), tuple(statements.kinds))
            try:
                with transaction.atomic(using=alias()):
                    found = compare(self._plan, within, len(some), statements).examples
            except DatabaseError as error:
                if not errors_of(alias()).may_be_data_error(error):
                    raise
                # The source cannot compute some of these rows, so none of the keys counts.
                spelled = as_spelled(self._plan, set(some))
                for of_kind in differing.values():
                    of_kind.update(spelled)
                continue
            for each in found:
                differing[each.kind].add(each.exact)
        return differing


def _chunks(keys: list[Key], size: int) -> Iterator[list[Key]]:
    return (keys[at : at + size] for at in range(0, len(keys), size))
