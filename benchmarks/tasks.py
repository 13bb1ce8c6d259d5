"""The peer: the least that any design of chained tasks must do."""

from celery import shared_task
from django.db import transaction
from django.db.models import F

from .clock import tick
from .spent import keep_time

keep_time()


@shared_task(name="bench.hop", ignore_result=True, serializer="json")  # type: ignore[untyped-decorator]
def hop(left: int) -> None:
    """Commit one UPDATE, then send the same task again, `left` times."""
    tick()
    write()
    if left:
        hop.apply_async((left - 1,))


def write() -> None:
    """Commit one UPDATE of one row."""
    from .models import Hop

    with transaction.atomic():
        Hop._base_manager.update(count=F("count") + 1)
