"""Claiming a batch: which worker runs it, and the token that lets one batch commit per message."""

import os
import socket
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache
from typing import Any

from django.db import DatabaseError, InterfaceError
from django.db.models import Case, F, Q, When

from ...conf import get_settings
from ...databases.clock import UtcNow
from ...models import ViewShard
from ...redact import bounded
from ..locking import update_if_current
from ..messages import BatchReport, Message, Outcome
from ..transactions import short_transaction

__all__ = ["advance_token", "claim", "is_claimed", "refused", "withdraw", "worker_name"]


MAX_NAME_LENGTH = 200  # characters of a worker's name


def is_claimed(message: Message) -> bool:
    """Whether a worker has claimed the batch and not committed it yet."""
    shard = ViewShard.objects.filter(pk=message.shard_id, token=message.token)
    return shard.filter(claimed_token=message.token).exists()


def claim(message: Message) -> bool:
    """Record, in its own transaction, who is about to run the batch, so that a kill is counted.

    Returns:
        False if the token has advanced, another worker has claimed the batch, or the row is locked.
    """
    unclaimed, changes = _claim_changes(_lease())
    return update_if_current(
        message.shard_id, message.token, unclaimed, worker=worker_name(), **changes
    )


# Cached, because hashing an expression takes longer than running the statement compiled from it.
@lru_cache(maxsize=4)
def _claim_changes(lease: timedelta) -> tuple[Q, dict[str, Any]]:
    unclaimed = ~Q(claimed_token=F("token")) | Q(claimed_at__lt=UtcNow() - lease)
    # MySQL assigns from left to right: the count must come before the columns that it reads.
    return unclaimed, {
        "attempts": Case(When(claimed_token=F("token"), then=F("attempts") + 1), default=1),
        "claimed_token": F("token"),
        "claimed_at": UtcNow(),
        "resend_after": UtcNow() + lease,
        "resends": 0,
        "claims": F("claims") + 1,
    }


def refused(message: Message) -> BatchReport:
    """The report on a message whose batch does not run."""
    token = ViewShard.objects.filter(pk=message.shard_id).values_list("token", flat=True).first()
    if token is None:
        outcome = Outcome.UNKNOWN
    else:
        outcome = Outcome.BUSY if token == message.token else Outcome.STALE
    return BatchReport(message=message, outcome=outcome)


def advance_token(message: Message, **changes: Any) -> bool:
    """Lock the shard for this transaction; False if the token has advanced since the claim."""
    changes = _next_token(_lease()) | changes
    return update_if_current(message.shard_id, message.token, **changes)


@lru_cache(maxsize=4)
def _next_token(lease: timedelta) -> dict[str, Any]:
    return {"token": F("token") + 1, "resend_after": UtcNow() + lease}


def worker_name() -> str:
    """The name in this process's claims: `host:pid`."""
    return bounded(f"{socket.gethostname()}:{os.getpid()}", MAX_NAME_LENGTH)


def _lease() -> timedelta:
    return timedelta(seconds=get_settings().LEASE)


def withdraw(message: Message) -> None:
    """Withdraw this process's claim: no worker died, and the batch may run again at once."""
    shard = ViewShard.objects.filter(pk=message.shard_id, worker=worker_name())
    with suppress(DatabaseError, InterfaceError), short_transaction():
        shard.filter(token=message.token, claimed_token=message.token).update(
            claimed_token=0, resend_after=None
        )
