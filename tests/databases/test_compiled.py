"""Rows that are inserted without compiling a query for them."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from matviews import engine
from matviews.databases.compiled import insert_rows
from matviews.json_fields import Checkpoint
from matviews.models import PhaseRun, Refresh, ViewShard
from matviews.phases import Phase
from matviews.states import RefreshState
from tests.sample.models import Limited

pytestmark = [pytest.mark.database, pytest.mark.django_db]

MOMENT = datetime(2026, 11, 30, 20, 5, 1, 123456, tzinfo=UTC)


def refresh_of_a_view() -> Refresh:
    """A refresh with a value of each kind that the model has, not saved yet."""
    shard = ViewShard.objects.get(view__label=Limited._meta.label)
    return Refresh(
        view_id=shard.view_id, phases=["insert", "update"], origin="api", batch_size=None,
        requested_by="O'Brien, 100 % \\ \"x\"", state=RefreshState.OPEN, requested_at=MOMENT,
        stop_requested=False, forced=True, upstream_refreshes=[1, 2], claims_at_request=2**40,
    )  # fmt: skip


def run_of(refresh: Refresh, phase: Phase) -> PhaseRun:
    """A phase run with a value of each kind that the model has, not saved yet."""
    shard = ViewShard.objects.get(view=refresh.view_id)
    return PhaseRun(
        refresh=refresh, shard=shard, phase=phase, cursor=[phase, None, "50 %s", 2**60],
        pace={"size": 3, "flat": False}, samples=[[1, None, 2, 0.25]], rows=-1, seconds=0.1,
        caught_up=True, as_of=MOMENT, checkpoint=Checkpoint(7, "f" * 64), dirty_after=0,
        expected_seconds={"full": 0.5},
    )  # fmt: skip


def values(row: Any) -> dict[str, Any]:
    """What the database has of a row, without its primary key."""
    found: dict[str, Any] = type(row).objects.filter(pk=row.pk).values().get()
    return {name: value for name, value in found.items() if name not in ("id", "refresh_id")}


def test_is_what_django_would_insert() -> None:
    # given rows that Django saves
    saved = refresh_of_a_view()
    saved.save()
    saved_runs = [run_of(saved, phase) for phase in Phase]
    for run in saved_runs:
        run.save()
    # when equal ones are inserted
    refresh = refresh_of_a_view()
    insert_rows([refresh], using=engine.alias())
    runs = [run_of(refresh, phase) for phase in Phase]
    insert_rows(runs, using=engine.alias())
    # then the database has the same, each under the key of its instance
    assert values(refresh) == values(saved)
    assert [values(run) for run in runs] == [values(run) for run in saved_runs]
    assert {run.refresh_id for run in runs} == {refresh.pk}
    # and the instances can be saved
    assert not any(row._state.adding for row in (refresh, *runs))
    runs[0].rows = 5
    runs[0].save(force_update=True)
    assert PhaseRun.objects.get(pk=runs[0].pk).rows == 5


def test_of_none_does_nothing() -> None:
    insert_rows([], using=engine.alias())
    assert not PhaseRun.objects.exists()


def test_an_error_leaves_no_row_and_a_transaction_that_rolls_back() -> None:
    refresh = refresh_of_a_view()
    insert_rows([refresh], using=engine.alias())
    alike = [run_of(refresh, Phase.INSERT), run_of(refresh, Phase.INSERT)]
    with pytest.raises(IntegrityError), transaction.atomic(using=engine.alias()):
        insert_rows(alike, using=engine.alias())
    assert not PhaseRun.objects.exists()
