"""Keeping the history of refreshes small: deleting old ones, folding equal failures."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta

from django.db.models import Exists, F, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Left

from ..conf import get_settings
from ..models import Alarm, PhaseRun, Refresh, RefreshSchedule
from ..redact import pattern
from ..states import RefreshState
from .transactions import now, short_transaction

__all__ = ["fold_failures", "trim_alarms", "trim_history"]

BATCH_SIZE = 200  # refreshes deleted in one transaction
MAX_DELETED = 2_000  # refreshes deleted in one call, of each kind
# Succeeded refreshes that a view on change keeps: at once, there may be some 20 in a second.
MAX_ON_CHANGE = 1_000
MAX_FOLDED = 1_000  # failures compared in one call, the newest
MAX_COMPARED = 200  # characters of an error that say what kind it is
# How long a failure is left alone, because a caller may be waiting to see how it ended.
SETTLED = timedelta(minutes=10)


def trim_history() -> int:
    """Delete refreshes that have outlived the settings' retention, in small transactions.

    Also the oldest succeeded ones of a view on change that has more than `MAX_ON_CHANGE`. The last
    ended refresh of a view stays, whatever its age.

    Returns:
        How many were deleted; there may be more.
    """
    settings = get_settings()
    succeeded = _outdated([RefreshState.SUCCEEDED], settings.KEEP_SUCCEEDED)
    failed = _outdated([RefreshState.FAILED, RefreshState.STOPPED], settings.KEEP_FAILED)
    followed = RefreshSchedule.objects.filter(on_change=True).order_by("view").distinct()
    excess = sum(_delete(_excess(view)) for view in followed.values_list("view", flat=True))
    return _delete(succeeded) + _delete(failed) + excess


def trim_alarms() -> None:
    """Delete alarms that ended as long ago as a failed refresh is kept."""
    with short_transaction():
        Alarm.objects.filter(ended_at__lt=now() - get_settings().KEEP_FAILED).delete()


def _outdated(states: list[RefreshState], kept: timedelta) -> QuerySet[Refresh]:
    later = Refresh.objects.filter(view=OuterRef("view"), pk__gt=OuterRef("pk"))
    return Refresh.objects.filter(
        Exists(later.filter(finished_at__isnull=False)),
        state__in=states,
        finished_at__lt=now() - kept,
    )


def _excess(view_id: int) -> QuerySet[Refresh]:
    """The succeeded refreshes of a view but the newest `MAX_ON_CHANGE`."""
    succeeded = Refresh.objects.filter(view=view_id, state=RefreshState.SUCCEEDED)
    keys = succeeded.order_by("-pk").values_list("pk", flat=True)
    newest_in_excess = next(iter(keys[MAX_ON_CHANGE : MAX_ON_CHANGE + 1]), 0)
    return succeeded.filter(pk__lte=newest_in_excess)


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


def fold_failures() -> int:
    """Replace failures of a view by the next one if that failed in the same way.

    The next one counts them. "In the same way" means the same phases with the same errors, apart
    from numbers and keys in them, without a success in between.

    Returns:
        How many were replaced; there may be more.
    """
    # One that was merged before it began has no runs, and goes with that which did its work.
    tried = Q(Exists(PhaseRun.objects.filter(refresh=OuterRef("pk"))), state=RefreshState.FAILED)
    later = Refresh.objects.filter(view=OuterRef("view"), pk__gt=OuterRef("pk")).order_by("pk")
    following = later.filter(tried | Q(state=RefreshState.SUCCEEDED))
    settled = Refresh.objects.filter(tried, finished_at__lt=now() - SETTLED)
    pairs = settled.order_by("-pk").annotate(next=Subquery(following.values("pk")[:1]))
    found = sorted(pairs.exclude(next=None).values_list("pk", "next")[:MAX_FOLDED])
    patterns = _patterns_of_failure({key for pair in found for key in pair})
    alike = (pair for pair in found if patterns.get(pair[0], 0) == patterns.get(pair[1]))
    return sum(_fold(*pair) for pair in alike)


def _patterns_of_failure(refreshes: Iterable[int]) -> dict[int, set[tuple[str, str]]]:
    """The phases of failed refreshes that failed, and the pattern of the error of each."""
    patterns: dict[int, set[tuple[str, str]]] = defaultdict(set)
    failed = Refresh.objects.filter(pk__in=refreshes, state=RefreshState.FAILED)
    runs = PhaseRun.objects.filter(refresh__in=failed).exclude(error="").order_by()
    errors = runs.values_list("refresh", "phase", Left("error", MAX_COMPARED))
    for refresh, phase, error in errors:
        patterns[refresh].add((phase, pattern(error)))
    return patterns


def _fold(refresh_id: int, next_id: int) -> bool:
    """Delete a failure and count it in the next one; False if either is gone."""
    with short_transaction():
        # A write comes first, as in `_delete`. It locks the next one, which stays until then.
        if not Refresh.objects.filter(pk=next_id).update(repeats=F("repeats")):
            return False
        merged = Refresh.objects.filter(merged_into=refresh_id)
        merged.filter(Exists(PhaseRun.objects.filter(refresh=OuterRef("pk")))).update(
            merged_into=None
        )
        merged.delete()
        old = Refresh.objects.filter(pk=refresh_id).select_for_update().order_by().first()
        if old is None:
            return False
        Refresh.objects.filter(pk=next_id).update(
            repeats=F("repeats") + old.repeats + 1,
            repeated_since=old.repeated_since or old.finished_at,
        )
        old.delete()
    return True
