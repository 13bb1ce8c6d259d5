"""Engines that are broken on purpose, to see that chaos finds it."""

import os
from collections.abc import Callable
from datetime import timedelta
from types import ModuleType
from typing import Any

from .variables import BROKEN

__all__ = ["KINDS", "install"]


def _admit_every_message() -> None:
    """No token is compared and no shard locked: what comes twice is done twice."""
    from django.db import connection
    from django.db.models import F

    from matviews.engine import Message
    from matviews.engine.batches import batch
    from matviews.models import ViewShard

    def claim(message: Message) -> bool:
        shard = ViewShard.objects.filter(pk=message.shard_id)
        return bool(shard.update(claims=F("claims") + 1, attempts=1))

    def advance_token(message: Message, **_changes: object) -> bool:
        table = connection.ops.quote_name(ViewShard._meta.db_table)
        other = connection.copy()
        try:
            with other.cursor() as cursor:  # commits at once, so the row is not locked
                cursor.execute(
                    f"UPDATE {table} SET token = token + 1 WHERE id = %s", [message.shard_id]
                )
        finally:
            other.close()
        return True

    _replace(batch, claim=claim, advance_token=advance_token)


def _lose_changes() -> None:
    """Three of four batches with changes forget them."""
    from matviews import changes

    drain, count = changes.drain_queue, 0

    def lossy(view_id: int) -> list[changes.QueuedChange]:
        nonlocal count
        found = drain(view_id)
        count += bool(found)
        return found if count % 4 == 0 else []

    _replace(changes, drain_queue=lossy)


def _keep_claims() -> None:
    """The claim of a worker that was killed holds for ever."""
    from django.db.models import F, Q

    from matviews.engine.batches import claim

    changes_of = claim._claim_changes

    def for_ever(lease: timedelta) -> tuple[Q, dict[str, Any]]:
        return ~Q(claimed_token=F("token")), changes_of(lease)[1]

    _replace(claim, _claim_changes=for_ever)


def _replace(module: ModuleType, **functions: Callable[..., object]) -> None:
    for name, function in functions.items():
        assert hasattr(module, name), name
        setattr(module, name, function)


#: What is broken, by the name that the command takes.
KINDS: dict[str, Callable[[], None]] = {
    "token": _admit_every_message,
    "changes": _lose_changes,
    "claims": _keep_claims,
}


def install() -> None:
    """Break the engine in this process, if its environment says so."""
    if kind := os.environ.get(BROKEN):
        KINDS[kind]()
