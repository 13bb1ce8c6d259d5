"""Which views are additive: what the code says, else what a rule decided once.

The rule decides when the triggers of a view are first installed, by the rows that its source has
then. The decision is recorded, and stays: no later `migrate` makes a view, or writers to its
tables, slower, unless somebody changes `MatviewMeta.additive`.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from django.db import DatabaseError, transaction

from .. import changes
from ..databases import catalog_of, errors_of
from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..logs import log
from ..models import TrackedTable, ViewControl, ViewSums
from ..presentation import pluralize
from ..queryset import GroupSums, Plan, additive_obstacles, count_groups, plan_of
from ..redact import error_text
from .transactions import alias, snapshot

__all__ = [
    "AdditiveChoice", "additive_choice", "additive_notes", "choose_additive",
    "count_pending_values", "forget_additive",
]  # fmt: skip

logger = logging.getLogger(__name__)

#: What a source must have, so that sums are worth what they cost writers.
MIN_ROWS = 100_000
MIN_ROWS_PER_GROUP = 1_000
#: With fewer, it is said of a view that was made additive.
FEW_ROWS_PER_GROUP = 100
MAX_LOGS = 2  # of a table: each is one more row for each row that is written
MAX_LOCKED = 2.0  # seconds that counting waits for a locked table
MAX_COUNTED = 100_000  # entries of a value log
MAX_REASON = 255  # characters
MAX_SECONDS = 30.0  # that counting groups may take: about as long as building the view


class AdditiveChoice(NamedTuple):
    """Whether a view is to be additive, and why; None if that is still to be decided."""

    is_additive: bool | None
    reason: str


def choose_additive() -> None:
    """Decide which views are additive where nothing is recorded yet. Run it before `install`.

    Views whose changes are already tracked stay as they are. If a view cannot be decided, because
    tables are missing or locked, it is left for the next time. So is a view for which the decision
    fails; that affects neither other views nor its triggers.
    """
    tracked = {pk for record in TrackedTable.objects.all() for pk in record.views}
    for control in ViewControl.objects.order_by("label"):
        try:
            _choose(control, is_tracked=control.pk in tracked)
        except Exception as error:  # noqa: BLE001 - of one view
            sentence = "cannot decide whether a view is additive"
            log(logger, logging.ERROR, sentence, view=control.label, error=error_text(error))


def _choose(control: ViewControl, *, is_tracked: bool) -> None:
    choice = _choice(control, is_tracked=is_tracked)
    if choice is None:
        return
    found = {"additive": choice.is_additive, "additive_reason": choice.reason[:MAX_REASON]}
    if found != {name: getattr(control, name) for name in found}:
        with transaction.atomic(using=alias()):  # may be part of a caller's transaction
            ViewControl.objects.filter(pk=control.pk).update(**found)


def _choice(control: ViewControl, *, is_tracked: bool) -> AdditiveChoice | None:
    """What to record for a view; None for nothing."""
    plan = _plan(control.definition)
    if plan is None:
        return None
    by_code = plan.source.definition.options.additive
    if by_code is not None:
        return AdditiveChoice(by_code, _by_code(by_code))
    sums = plan.additive
    return _by_rule(control, sums, is_tracked=is_tracked) if sums else None


def _by_rule(control: ViewControl, sums: GroupSums, *, is_tracked: bool) -> AdditiveChoice | None:
    """What the rule says of a view that can be additive; None if its decision stays."""
    if sums.columns.extremes:
        return AdditiveChoice(False, "Max and Min may need their groups recomputed anyway")
    if control.additive is not None:
        return None
    if control.shard_count > 1:
        return AdditiveChoice(False, "its keys are split among several shards")
    if is_tracked and not control.additive_reason:
        return AdditiveChoice(False, "its changes were tracked without value logs before")
    if table := _crowded(sums):
        return AdditiveChoice(False, f"{table} has {MAX_LOGS} value logs of other views already")
    return _measured(sums)


def _crowded(sums: GroupSums) -> str:
    """A table of the view that has enough value logs of other additive views; "" if none has."""
    logs: Counter[str] = Counter()
    for control in ViewControl.objects.filter(additive=True):
        plan = _plan(control.definition)
        if plan and plan.additive:
            logs.update([*plan.additive.additive.logs])
    return next((table for table in sums.additive.logs if logs[table] >= MAX_LOGS), "")


def _plan(definition: ViewDefinition | None) -> Plan | None:
    """The plan of a view; None if it has none, or cannot have one now."""
    if definition is None or not definition.has_source or definition.errors:
        return None
    try:
        return plan_of(definition, alias())
    except (InvalidView, DatabaseError):
        return None


def _by_code(value: object) -> str:
    return f"MatviewMeta.additive is {value}"


def _measured(sums: GroupSums) -> AdditiveChoice:
    """What the rule says of a source with its present rows."""
    try:
        with snapshot(MAX_SECONDS, durable=False, lock=MAX_LOCKED):
            rows, groups = count_groups(sums)
            misfit = sums.misfit()
    except DatabaseError as error:
        if not errors_of(alias()).is_statement_timeout(error):
            return AdditiveChoice(None, "its source could not be read when the rule had to decide")
        reason = f"its groups could not be counted within {MAX_SECONDS:.0f} seconds"
        return AdditiveChoice(False, reason)
    return AdditiveChoice(not misfit and _pays(rows, groups), misfit or _in_words(rows, groups))


def _pays(rows: int, groups: int) -> bool:
    """Whether groups are few and large enough for sums."""
    return rows >= MIN_ROWS and rows >= MIN_ROWS_PER_GROUP * groups


def _in_words(rows: int, groups: int) -> str:
    return f"its source had {_counted(rows, groups)} when the rule decided"


def _counted(rows: int, groups: int) -> str:
    return f"{pluralize(rows, 'row')} in {pluralize(groups, 'group')}"


def forget_additive() -> None:
    """Forget the decisions: `choose_additive` decides again for views that are not tracked."""
    known = ViewControl.objects.exclude(additive=None, additive_reason="")
    known.update(additive=None, additive_reason="")


def additive_choice(plan: Plan) -> AdditiveChoice:
    """Whether a view is to be additive, and why, for a person."""
    definition = plan.source.definition
    if reasons := additive_obstacles(plan):
        return AdditiveChoice(False, "; ".join(reasons))
    by_code = definition.options.additive
    if by_code is not None:
        return AdditiveChoice(by_code, _by_code(by_code))
    control = ViewControl.objects.filter(label=definition.label).first()
    if control is None or control.additive is None:
        why = control.additive_reason if control else ""
        return AdditiveChoice(False, why or "a rule decides when its triggers are installed")
    return AdditiveChoice(control.additive, control.additive_reason)


def count_pending_values(view_id: int) -> int | None:
    """How many entries wait in the value logs of a view, counting up to `MAX_COUNTED` in each.

    None if its sums are not used now: they are recomputed first, or cannot be.
    """
    try:
        with transaction.atomic(using=alias()):
            kept = ViewSums.objects.filter(view=view_id, drain_number__gte=0).first()
            if kept is None:
                return None
            return sum(changes.count_values(log, MAX_COUNTED) for log in kept.logs)
    except DatabaseError:  # a log is gone
        return None


def additive_notes() -> Iterator[tuple[ViewDefinition, str]]:
    """A sentence for a person about each view that the rule decides, if there is something to say.

    It names views that were made additive, and views that the rule would decide differently now,
    judging by the database's statistics.
    """
    estimates: dict[str, int] = {}
    for control in ViewControl.objects.exclude(additive=None).order_by("label"):
        plan = _plan(control.definition)
        if plan is None or plan.additive is None or control.options.additive is not None:
            continue
        estimates = estimates or catalog_of(alias()).estimated_rows()
        sums = plan.additive
        view, table = plan.source.model._meta.db_table, sums.additive.table
        rows, groups = estimates.get(table, -1), estimates.get(view, -1)
        # statistics are of all rows, and of the groups that the view shows
        is_left_out = bool(sums.columns.extremes) or any(plan.source.query.conditions)
        if note := _note(control, rows, groups, may_pay=not is_left_out):
            yield plan.source.definition, note


def _note(control: ViewControl, rows: int, groups: int, *, may_pay: bool) -> str:
    known = rows > 0 and groups > 0
    now = f"The source of {control.label} now has about {_counted(rows, groups)}"
    if not control.additive:
        if not known or not may_pay or not _pays(rows, groups):
            return ""
        return f"{now}: adding up its changes would take less time than recomputing groups."
    if known and rows < FEW_ROWS_PER_GROUP * groups:
        return f"{now}: recomputing groups would take little time, and cost writers nothing."
    return (
        f"{control.label} is additive, as a rule decided: {control.additive_reason}. Each write to "
        f"its source tables also writes to a value log."
    )
