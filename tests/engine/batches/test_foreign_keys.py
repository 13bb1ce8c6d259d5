"""Foreign keys of a view that the database enforces: blamed on the right phase, and tried again."""

# ruff: noqa: N806 - variables that are models

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from django.db import models
from django.db.models import F

from matviews import changes, engine
from matviews.engine import BatchReport, Outcome
from matviews.engine.batches import batch
from matviews.models import ParkedKey, PhaseRun, Refresh
from matviews.states import RefreshState, RunState
from matviews.tasks import inline
from tests.helpers import tables

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

MISSING = 77
PHASES = ["insert", "update", "delete"]
TRIES = 4


only_at_the_commit = pytest.mark.only_on(
    "sqlite", reason="it can check foreign keys before the commit"
)
not_at_the_commit = pytest.mark.only_on(
    "postgres", "mariadb", reason="it checks foreign keys at the commit"
)


class Shop(NamedTuple):
    """A tracked view with a foreign key, and a table with a foreign key to it."""

    Rows: type[Any]
    Target: type[Any]
    Referrer: type[Any]
    view: type[Any]


@pytest.fixture
def shop(alone: None) -> Iterator[Shop]:
    """All phases have something to do, and few keys: one batch does them together."""
    Rows = tables.model("Rows", n=models.IntegerField(db_index=True))
    Target = tables.model("Target")
    view = tables.derived_view(
        lambda cls: Rows.objects.values(ref=F("pk"), target=F("n")),
        ref=tables.key(),
        target=models.ForeignKey(Target, models.DO_NOTHING),
    )
    Referrer = tables.model("Referrer", of=models.ForeignKey(view, models.DO_NOTHING))
    with tables.made(Rows, Target, view, Referrer):
        changes.install(engine.alias())
        try:
            Target.objects.bulk_create([Target(pk=pk) for pk in (1, 2)])
            Rows.objects.bulk_create([Rows(pk=pk, n=1) for pk in (1, 2, 3)])
            tables.refreshed(view)
            Rows.objects.create(pk=4, n=1)
            Rows.objects.filter(pk=1).update(n=2)
            Rows.objects.filter(pk=2).delete()
            yield Shop(Rows, Target, Referrer, view)
        finally:
            changes.remove(engine.alias())


def break_foreign_key(shop: Shop, phase: str) -> None:
    if phase == "insert":
        shop.Rows.objects.create(pk=5, n=MISSING)
    elif phase == "update":
        shop.Rows.objects.filter(pk=3).update(n=MISSING)
    else:
        shop.Referrer.objects.create(of=shop.view.objects.get(ref=2))


def mend(shop: Shop) -> None:
    shop.Target.objects.create(pk=MISSING)
    shop.Referrer.objects.all().delete()


def in_source(shop: Shop) -> set[tuple[int, int]]:
    return set(shop.Rows.objects.values_list("pk", "n"))


def in_view(shop: Shop) -> set[tuple[int, int]]:
    return set(shop.view.objects.values_list("ref", "target_id"))


def test_without_a_violation_one_batch_does_all_phases(shop: Shop) -> None:
    reports: list[BatchReport] = []
    inline.run_to_end(engine.request(shop.view), on_report=reports.append)
    assert [each.outcome for each in reports] == [Outcome.DONE]
    assert in_view(shop) == in_source(shop)


@only_at_the_commit
@pytest.mark.parametrize("phase", PHASES)
def test_the_phase_that_breaks_it_is_blamed_after_four_tries(shop: Shop, phase: str) -> None:
    break_foreign_key(shop, phase)
    reports: list[BatchReport] = []
    refresh = inline.run_to_end(engine.request(shop.view), on_report=reports.append)
    assert refresh.state == RefreshState.FAILED
    assert refresh.error.startswith(f"{phase}: ")
    assert "matviews.W009" in refresh.error
    failed = [each for each in reports if each.outcome is Outcome.FAILED]
    assert len(failed) == TRIES
    states = {run.phase: run.state for run in refresh.runs.all()}
    assert states == dict.fromkeys(PHASES, RunState.SUCCEEDED) | {phase: RunState.FAILED}
    # And what the other phases had to do is done
    rows = in_view(shop)
    assert ((4, 1) in rows, (1, 2) in rows, (2, 1) in rows) == (
        phase != "insert",
        phase != "update",
        phase == "delete",
    )


@not_at_the_commit
@pytest.mark.parametrize("phase", PHASES)
def test_the_key_that_breaks_it_is_parked_after_four_tries(shop: Shop, phase: str) -> None:
    break_foreign_key(shop, phase)
    reports: list[BatchReport] = []
    refresh = inline.run_to_end(engine.request(shop.view), on_report=reports.append)
    assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    assert [each.outcome for each in reports].count(Outcome.FAILED) == TRIES - 1
    parked = ParkedKey.objects.get()
    assert (parked.phase, parked.involves_others) == (phase, True)
    assert "matviews.W009" in parked.message
    # And everything else is done, in the same phase too
    rows = in_view(shop)
    assert {(4, 1), (1, 2)} <= rows
    assert ((2, 1) in rows) == (phase == "delete")


@pytest.mark.parametrize("phase", PHASES)
def test_one_that_is_mended_meanwhile_fails_nothing(shop: Shop, phase: str) -> None:
    break_foreign_key(shop, phase)
    outcomes: list[Outcome] = []

    def mend_after_two(report: BatchReport) -> None:
        if report.outcome is Outcome.FAILED:
            outcomes.append(report.outcome)
            if len(outcomes) == 2:
                mend(shop)

    refresh = inline.run_to_end(engine.request(shop.view), on_report=mend_after_two)
    assert outcomes == [Outcome.FAILED] * 2
    assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    assert in_view(shop) == in_source(shop)


@pytest.mark.only_on("sqlite", "postgres", reason="MariaDB checks each statement")
def test_one_that_is_mended_before_the_second_try_of_a_batch_is_no_failure(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A COMMIT of several phases that fails is tried again at once, one phase at a time."""
    break_foreign_key(shop, "update")
    run = batch._Attempt.run

    def mend_first(attempt: Any) -> BatchReport:
        if attempt.one_phase_only and not shop.Target.objects.filter(pk=MISSING).exists():
            mend(shop)
        return run(attempt)

    monkeypatch.setattr(batch._Attempt, "run", mend_first)
    reports: list[BatchReport] = []
    refresh: Refresh = inline.run_to_end(engine.request(shop.view), on_report=reports.append)
    assert refresh.state == RefreshState.SUCCEEDED
    assert {each.outcome for each in reports} == {Outcome.DONE}
    assert not PhaseRun.objects.filter(failures__gt=0).exists()
    assert in_view(shop) == in_source(shop)
