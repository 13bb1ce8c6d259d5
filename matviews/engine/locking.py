"""Locking and updating bookkeeping rows without waiting for transactions that hold them."""

from collections.abc import Collection, Iterable
from datetime import timedelta
from functools import lru_cache
from typing import Any

from django.db import OperationalError, connections, transaction
from django.db.models import F, Q, QuerySet

from ..conf import get_settings
from ..databases import Compiled, errors_of, sessions_of
from ..databases.compiled import PK_PLACEHOLDER, TOKEN_PLACEHOLDER
from ..models import Refresh, ViewShard
from ..states import RefreshState
from .transactions import alias, short_transaction

__all__ = [
    "join_unlocked",
    "lock_available",
    "running",
    "update_if_current",
    "update_unlocked",
]


def lock_available(condition: Q) -> list[ViewShard]:
    """Lock and return the matching shards that no transaction holds, without waiting.

    Must be the first statement of a transaction. SQLite has no row locks: a write locks the whole
    database, and a transaction that begins with a read cannot always write later.
    """
    # The default order would join the view's control, and lock that too.
    shards = ViewShard.objects.filter(condition).order_by()
    if connections[alias()].features.has_select_for_update:
        return list(shards.select_for_update(skip_locked=True))
    shards.update(token=F("token"))
    return list(shards)


def are_locked(shard_ids: Collection[int]) -> set[int]:
    """Which of these shards a transaction holds, as a batch does until it ends; without waiting."""
    if not shard_ids:
        return set()
    try:
        with short_transaction():
            free = lock_available(Q(pk__in=shard_ids))
    except OperationalError as error:
        if not errors_of(alias()).is_locked(error):
            raise
        free = []  # of SQLite, where a writer locks them all
    return {*shard_ids} - {shard.pk for shard in free}


def running(shards: Iterable[Any]) -> set[int]:
    """The shards whose batches run, or whose workers were killed less than a lease ago.

    Args:
        shards: annotated with the time `now`.
    """
    lease = timedelta(seconds=get_settings().LEASE)
    claimed = [each for each in shards if each.is_claimed and each.claimed_at]
    lately = {each.pk for each in claimed if each.claimed_at > each.now - lease}
    return lately | are_locked({each.pk for each in claimed} - lately)


def update_if_current(shard_id: int, token: int, fits: Q | None = None, /, **changes: Any) -> bool:
    """Update a shard's row if its token is still `token`; False if it is not or the row is locked.

    Must be the first statement of a transaction, or outside of any. Outside, it commits by itself
    in READ COMMITTED, so that a frozen process cannot keep the row locked.
    """
    fits = Q(pk=PK_PLACEHOLDER, token=TOKEN_PLACEHOLDER) & (fits or Q())
    return _change_unlocked(ViewShard, fits, tuple(changes.items()), shard_id, token)


def join_unlocked(refresh_id: int) -> bool:
    """Count one more request for a refresh; False if it has ended, is to stop, or is locked.

    Call it like `update_if_current`.
    """
    return _change_unlocked(Refresh, _JOINABLE, (("requests", F("requests") + 1),), refresh_id)


_JOINABLE = Q(pk=PK_PLACEHOLDER, state=RefreshState.OPEN, stop_requested=False)


def _change_unlocked(
    model: type[ViewShard | Refresh],
    fits: Q,
    changes: tuple[tuple[str, Any], ...],
    key: int,
    token: int = 0,
) -> bool:
    alone = connections[alias()].get_autocommit()
    if alone and not sessions_of(alias()).commits_one_statement():
        with short_transaction():
            return _change_unlocked(model, fits, changes, key, token)
    statements = _statements_for(alias(), model, fits, changes, alone)
    try:
        return all(statement.run(key, token) for statement in statements)
    except OperationalError as error:
        if not errors_of(alias()).is_locked(error):
            raise
        return False


@lru_cache(maxsize=64)
def _statements_for(
    using: str, model: type[Any], fits: Q, changes: tuple[tuple[str, Any], ...], alone: bool
) -> Compiled:
    row = model.objects.using(using).filter(fits).order_by()
    locked = row.select_for_update(skip_locked=True).values_list("pk")
    with transaction.atomic(using=using):  # Django compiles FOR UPDATE only inside a transaction
        return sessions_of(using).updates(row, dict(changes), locked, alone=alone)


def update_unlocked(rows: QuerySet[Any], **changes: Any) -> bool:
    """Update the unlocked ones of these rows in one statement; whether there were any.

    Call it in a transaction.
    """
    return bool(sessions_of(alias()).update_unlocked(rows, changes))
