"""Comparing a part of which some rows cannot be computed: in halves, down to the keys at fault.

As in batches (`parking.splitting`), one bad row must not hide the state of all others.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from django.db import DatabaseError

from ...databases import errors_of
from ...databases.keys import Keys, shown
from ...definition import ViewDefinition
from ...queryset import Kind, plan_of
from ...redact import error_text, may_show_keys
from ..parking.splitting import splitting_obstacle
from ..transactions import alias, in_transaction
from .comparison import PartResult, has_pending_change
from .key_parts import Part, listed_parts

__all__ = ["Halves"]

MAX_FAILED = 100  # keys; if more fail, the fault is not in single rows


class Halves:
    """Compares parts, and splits those that fail because of their data into halves.

    Args:
        definition: the view.
        view_id: the primary key of its control.
        compare: compares a part.
        leave_out_pending: whether a key that fails does not count while it has a pending change.
    """

    def __init__(
        self,
        definition: ViewDefinition,
        view_id: int,
        compare: Callable[[Part], PartResult],
        *,
        leave_out_pending: bool,
    ) -> None:
        self._definition, self._view_id, self._compare = definition, view_id, compare
        self._leave_out_pending = leave_out_pending
        self._failed: Counter[tuple[Kind, ...]] = Counter()

    def compare(self, part: Part) -> Iterator[tuple[Part, PartResult]]:
        """The part and what differs in it; if it cannot be compared as a whole, its pieces.

        Raises:
            DatabaseError: the data is not at fault, too many keys fail, or `source()` cannot be
                computed for some keys alone.
        """
        try:
            result = self._compare(part)
        except DatabaseError as error:
            if not self._may_split(error):
                raise
            if isinstance(part.within, Keys) and len(part.within.keys) == 1:
                yield part, self._failure(part, error)
                return
        else:
            yield part, result
            return
        for piece in self._pieces(part):
            yield from self.compare(piece)

    def _may_split(self, error: DatabaseError) -> bool:
        if in_transaction() or not errors_of(alias()).may_be_data_error(error):
            return False
        plan = plan_of(self._definition, alias())
        return not splitting_obstacle(plan) and bool(plan.key_batch_runner().statements.exact)

    def _pieces(self, part: Part) -> Iterator[Part]:
        if not isinstance(part.within, Keys):
            yield from listed_parts(self._definition, part)
            return
        keys = part.within.keys
        middle = len(keys) // 2
        for half in (keys[:middle], keys[middle:]):
            yield replace(part, within=replace(part.within, keys=half))

    def _failure(self, part: Part, error: DatabaseError) -> PartResult:
        """The result for a single key that fails; it counts only where rows of the source do."""
        assert isinstance(part.within, Keys)
        (key,) = part.within.keys
        self._failed[part.kinds] += 1
        if self._failed[part.kinds] > MAX_FAILED:
            raise error
        if Kind.MISSING not in part.kinds:
            return PartResult()
        if self._leave_out_pending and has_pending_change(self._definition, self._view_id, key):
            return PartResult(pending=(key,), pending_count=1)
        which = f"{shown(key)}: " if may_show_keys() else ""
        return PartResult(failed=1, error=f"{which}{error_text(error)}")
