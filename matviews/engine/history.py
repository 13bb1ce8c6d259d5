"""Deleting old refreshes from the history."""

from datetime import timedelta

from django.db.models import Exists, OuterRef, QuerySet

from ..conf import get_settings
from ..models import Refresh
from ..states import RefreshState
from .transactions import now, short_transaction

__all__ = ["trim_history"]

BATCH_SIZE = 200  # refreshes deleted in one transaction
MAX_DELETED = 2_000  # refreshes deleted in one call, of each kind


def trim_history() -> int:
    """Delete refreshes that have outlived the settings' retention, in small transactions.

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
    keys = list(refreshes.order_by().values_list("pk", flat=True)[:MAX_DELETED])
    for start in range(0, len(keys), BATCH_SIZE):
        batch = keys[start : start + BATCH_SIZE]
        with short_transaction():
            # A write before delete() reads: on SQLite a transaction that begins with a read cannot
            # always write.
            Refresh.objects.filter(merged_into__in=batch).update(merged_into=None)
            Refresh.objects.filter(pk__in=batch).delete()
    return len(keys)
