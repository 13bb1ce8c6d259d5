"""Comparing the sums of an additive view with its source, while the source changes.

In each snapshot, the sums plus the entries of the value logs equal the source, unless there is a
change that was logged without its values. The same snapshot shows that, too.
"""

import logging
from collections.abc import Callable

from django.db import DatabaseError, transaction

from ... import changes
from ...databases import errors_of
from ...definition import ViewDefinition
from ...logs import log
from ...models import ViewShard, ViewSums
from ...queryset import Plan, count_differing, lacks_values, plan_of
from ...redact import error_text
from ..batches.sums import distrust_sums
from ..transactions import alias, in_transaction, snapshot, statement_timeout

__all__ = ["count_differing_sums"]

logger = logging.getLogger(__name__)

CANNOT = "the sums of an additive view cannot be verified"


def count_differing_sums(
    definition: ViewDefinition,
    view_id: int,
    timeout: float | None = None,
    *,
    record: Callable[[int], None] = lambda _groups: None,
) -> int | None:
    """In how many groups the sums of a view differ from its source; the next batch recomputes them.

    Args:
        definition: the view.
        view_id: the primary key of its control.
        timeout: seconds for a statement; None takes that of the view's batches.
        record: stores how many differ, in the transaction that has them recomputed.

    Returns:
        None if it has no sums, if these cannot be right now, as after a TRUNCATE that no refresh
        has followed yet, if the role of this connection may not read them, or in a transaction of
        the caller, which may not be one snapshot.
    """
    plan = plan_of(definition, alias())
    if plan.additive is None or in_transaction():
        return None
    try:
        with snapshot(timeout or statement_timeout(definition)):
            groups = _count(plan, view_id)
        if groups:  # a TRUNCATE on PostgreSQL empties a table for older snapshots, too
            with snapshot(timeout or statement_timeout(definition)):
                groups = _count(plan, view_id)
    except DatabaseError as error:
        errors = errors_of(alias())
        if errors.is_external(error) and not errors.is_denied(error):
            raise
        log(logger, logging.ERROR, CANNOT, view=definition.label, reason=error_text(error))
        return None
    if groups:
        sentence = "sums of an additive view differ from its source, and are recomputed"
        log(logger, logging.ERROR, sentence, view=definition.label, groups=groups)
        with transaction.atomic(using=alias()):  # it may have to wait for a batch
            distrust_sums(view_id)
            record(groups)
    return groups


def _count(plan: Plan, view_id: int) -> int | None:
    sums, shard = plan.additive, ViewShard.objects.filter(view=view_id).first()
    kept = ViewSums.objects.filter(view=view_id, fingerprint=plan.fingerprint).first()
    if sums is None or kept is None or shard is None:
        return None
    if kept.drain_number < max(0, shard.full_refresh_after) or not _are_logged(plan, view_id):
        return None
    if not sums.fit():
        reason = "their tables are missing or out of date"
        log(logger, logging.ERROR, CANNOT, view=plan.source.definition.label, reason=reason)
        return None
    if lacks_values(sums, kept.log):
        return None
    return count_differing(sums, kept.log, kept.table)


def _are_logged(plan: Plan, view_id: int) -> bool:
    """Whether the value logs have all pending changes of all tables."""
    assert plan.additive is not None
    tracking = changes.tracking_of(plan)
    if not changes.are_valued(plan.additive.additive.logs):
        return False
    if changes.untracked_tables(view_id, tracking, alias()):
        return False
    waiting = changes.waiting_changes(view_id, tracking.tables)
    return all(change.table and isinstance(change.links, list) for change in waiting)
