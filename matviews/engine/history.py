"""Keeping the history of refreshes bounded."""

from datetime import timedelta

from django.db.models import Exists, OuterRef, QuerySet

from ..conf import get_settings
from ..models import Refresh
from ..states import RefreshState
from .transactions import now, short_transaction

__all__ = ["trim_history"]

AT_ONCE = 200  # refreshes in a transaction
MOST = 2_000  # refreshes in a call, of each kind


def trim_history() -> int:
    """Delete refreshes that ended longer ago than the settings keep them, in small transactions.

    The last ended refresh of a view stays, whatever its age.

    Returns:
        How many were deleted; there may be more.
    """
    settings = get_settings()
    succeeded = _outdated([RefreshState.SUCCEEDED], settings.KEEP_SUCCEEDED)
    failed = _outdated([RefreshState.FAILED, RefreshState.STOPPED], settings.KEEP_FAILED)
    return _delete(succeeded) + _delete(failed)


def _outdated(states: list[RefreshState], kept: timedelta) -> QuerySet[Refresh]:
    later = Refresh.objects.filter(view=OuterRef("view"), pk__gt=OuterRef("pk"))
    return Refresh.objects.filter(
        Exists(later.filter(finished_at__isnull=False)),
        state__in=states,
        finished_at__lt=now() - kept,
    )


def _delete(refreshes: QuerySet[Refresh]) -> int:
    keys = list(refreshes.order_by().values_list("pk", flat=True)[:MOST])
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        with short_transaction():
            # Before delete() reads: on SQLite a transaction that begins with a read cannot always write.
            Refresh.objects.filter(merged_into__in=some).update(merged_into=None)
            Refresh.objects.filter(pk__in=some).delete()
    return len(keys)
