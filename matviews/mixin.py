"""The mixin that makes a model a view."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import api
from .contract import ViewMarker
from .phases import Phase

if TYPE_CHECKING:
    from .engine import Verification
    from .models import Refresh

__all__ = ["MaterializedView"]


class MaterializedView(ViewMarker):
    """Mixin that makes a concrete Django model a view, in either order of the bases.

    The model defines the class method `source`, which returns a queryset of columns that name fields
    of the view (`.values(...).annotate(...)`); all that follows is derived from it then, but for
    hooks that the model defines itself. Or it defines, as class methods, the hooks `needs_insert`, `do_insert`, `needs_update`,
    `do_update`, `needs_delete` and `do_delete`, or those of the phases in `MatviewMeta.phases`.

    `needs_*` may declare `shard`. It returns whether work is waiting, as a bool, or as an int that
    estimates the rows and feeds progress.

    `do_*` writes at most one batch and returns the rows written. It may declare any of

    * `limit`: at most this many rows; the hook is called until `needs_*` is false;
    * `cursor`: the cursor of the `Batch` that the last call returned, None at the start; the hook
      returns a `Batch` and is called until its cursor is None;
    * `shard`: the `Shard` of the keys to work on.

    One that declares neither `limit` nor `cursor` does the whole phase and is called once.
    """

    @classmethod
    def refresh(cls, phases: Iterable[Phase | str] | None = None) -> "Refresh":
        """Ask for a refresh, as `matviews.refresh` does for a label."""
        return api.refresh(cls, phases=phases)

    @classmethod
    def is_fresh(cls, phases: Iterable[Phase | str] | None = None) -> bool:
        """Tell whether no phase has work, as `matviews.is_fresh` does for a label."""
        return api.is_fresh(cls, phases=phases)

    @classmethod
    def mark_dirty(cls, keys: Iterable[Any] | None = None) -> list[Any]:
        """Have the next refresh look at rows again, as `matviews.mark_dirty` does for a label."""
        return api.mark_dirty(cls, keys)

    @classmethod
    def verify(cls, *, repair: bool = False, sample: int | None = None) -> "Verification":
        """Hold the view against its `source()`, as `matviews.verify` does for a label."""
        return api.verify(cls, repair=repair, sample=sample)
