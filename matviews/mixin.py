"""The mixin that makes a model a view."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import api
from .contract import ViewMarker
from .current import Current
from .phases import Phase

if TYPE_CHECKING:
    from .engine import DataStatus, Parked, Verification
    from .models import Refresh

__all__ = ["MaterializedView"]


class MaterializedView(ViewMarker):
    """Mixin that makes a concrete Django model a view. The bases may stand in either order.

    Either the model defines the class method `source`, which returns a queryset whose columns are
    named like fields of the view (`.values(...).annotate(...)`). All hooks that the model does not
    define are derived from it.

    Or the model defines the hooks `needs_insert`, `do_insert`, `needs_update`, `do_update`,
    `needs_delete` and `do_delete` as class methods, or those of the phases in `MatviewMeta.phases`.

    `needs_*` returns whether there is work: a bool, or an int that estimates the rows, for
    progress. It may declare `shard`.

    `do_*` writes at most one batch and returns the number of rows written. It may declare

    * `limit`: the largest number of rows to write; the hook is called until `needs_*` is false;
    * `cursor`: the cursor of the `Batch` that the last call returned, None at first; the hook
      returns a `Batch` and is called until its cursor is None;
    * `shard`: the `Shard` whose keys it processes.

    A hook that declares neither `limit` nor `cursor` does the whole phase and is called once.
    """

    @classmethod
    def refresh(
        cls,
        phases: Iterable[Phase | str] | None = None,
        *,
        force: bool = False,
        upstream: bool = False,
        downstream: bool = False,
    ) -> "Refresh":
        """Request a refresh: `matviews.refresh` for this view."""
        return api.refresh(
            cls, phases=phases, force=force, upstream=upstream, downstream=downstream
        )

    @classmethod
    def is_fresh(cls, phases: Iterable[Phase | str] | None = None) -> bool:
        """Whether no phase has pending work: `matviews.is_fresh` for this view."""
        return api.is_fresh(cls, phases=phases)

    @classmethod
    def mark_dirty(cls, keys: Iterable[Any] | None = None) -> list[Any]:
        """Make the next refresh compare rows again: `matviews.mark_dirty` for this view."""
        return api.mark_dirty(cls, keys)

    @classmethod
    def verify(
        cls, *, repair: bool = False, sample: int | None = None, leave_out_pending: bool = False
    ) -> "Verification":
        """Compare the view with its `source()`: `matviews.verify` for this view."""
        return api.verify(cls, repair=repair, sample=sample, leave_out_pending=leave_out_pending)

    @classmethod
    def parked(cls) -> "list[Parked]":
        """The keys that refreshes leave out: `matviews.parked` for this view."""
        return api.parked(cls)

    if TYPE_CHECKING:
        # A field of this name takes its place; `matviews.status` returns the same.
        status: Any
        # Nor is it there if a field has this name.
        current: Any
    else:
        current = Current()

        @classmethod
        def status(cls) -> "DataStatus":
            """As of when the rows are: `matviews.status` for this view."""
            return api.status(cls)
