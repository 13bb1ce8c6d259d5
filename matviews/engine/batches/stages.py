"""Dropping the staging tables of refreshes that have ended."""

import logging
from collections.abc import Iterable
from contextlib import nullcontext

from django.db import connections

from ...logs import log
from ...models import PhaseRun, Refresh
from ...queryset import drop_stage, stages
from ...states import RefreshState
from ..transactions import alias, short_transaction

__all__ = ["drop_orphaned_stages", "drop_stages", "sweep_stages"]

logger = logging.getLogger(__name__)


def drop_stages(runs: Iterable[PhaseRun]) -> None:
    """Drop the staging tables of the runs of a closed refresh."""
    for name in {run.stage for run in runs if run.stage}:
        _drop_stage(name)


def sweep_stages() -> None:
    """Drop staging tables of refreshes that are not open: killed processes left them behind."""
    names = stages(alias())
    still_open = Refresh.objects.filter(pk__in=names, state=RefreshState.OPEN)
    for refresh in names.keys() - set(still_open.values_list("pk", flat=True)):
        sentence = "staging table of a closed refresh dropped"
        log(logger, logging.WARNING, sentence, stage=names[refresh])
        _drop_stage(names[refresh])


def _drop_stage(name: str) -> None:
    """Drop a staging table within a timeout, because a dump may be reading it.

    MariaDB and MySQL drop it in a session of its own, which sets the timeout.
    """
    in_transaction = connections[alias()].features.can_rollback_ddl
    with short_transaction() if in_transaction else nullcontext():
        drop_stage(name, alias())


def drop_orphaned_stages() -> None:
    """Drop the staging tables of refreshes without a row.

    On MariaDB and MySQL they outlive a test's rollback.
    """
    names = stages(alias())
    known = set(Refresh.objects.filter(pk__in=names).values_list("pk", flat=True))
    for refresh in names.keys() - known:
        drop_stage(names[refresh], alias(), unread=True)
