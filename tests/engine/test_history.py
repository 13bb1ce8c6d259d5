"""The history of refreshes is kept bounded, and nothing that is needed goes."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from benchmarks.statements import statements
from matviews import engine
from matviews.engine import history, trim_history
from matviews.models import PhaseRun, Refresh, RefreshSchedule, ViewControl
from matviews.states import RefreshState
from matviews.tasks import inline
from tests.helpers.engine import due, items, request_apart, travel
from tests.helpers.ledger import fault
from tests.helpers.view_classes import run
from tests.sample.models import Ledger, Limited, Walked

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def _controls(settings: Any) -> None:
    settings.MATVIEWS = {"KEEP_SUCCEEDED": timedelta(days=7), "KEEP_FAILED": timedelta(days=30)}
    engine.sync_controls()


def ended(view: type[Any], state: str, days_ago: float) -> Refresh:
    """A refresh that ended so, so long ago."""
    then = timezone.now() - timedelta(days=days_ago)
    control = ViewControl.objects.get(label=view._meta.label)
    return Refresh.objects.create(
        view=control, phases=["insert"], origin="api", state=state, requested_at=then,
        finished_at=then,
    )  # fmt: skip


def left() -> set[int]:
    return set(Refresh.objects.values_list("pk", flat=True))


@pytest.mark.parametrize(
    ("state", "days_ago", "stays"),
    [
        ("succeeded", 6.9, True), ("succeeded", 7.1, False), ("failed", 29.9, True),
        ("failed", 30.1, False), ("stopped", 29.9, True), ("stopped", 30.1, False),
    ],
)  # fmt: skip
def test_each_kind_stays_as_long_as_its_setting_says(
    state: str, days_ago: float, stays: bool
) -> None:
    refresh = ended(Limited, state, days_ago)
    last = ended(Limited, "succeeded", 0)

    assert trim_history() == (0 if stays else 1)

    assert left() == ({refresh.pk, last.pk} if stays else {last.pk})


def test_the_last_ended_refresh_of_each_view_stays() -> None:
    ended(Limited, "failed", 90)
    kept = {ended(Limited, "succeeded", 80).pk, ended(Ledger, "failed", 70).pk}
    engine.request(Walked)
    ended(Walked, "failed", 60)
    kept |= {ended(Walked, "stopped", 50).pk, request_apart(Walked).pk}

    assert trim_history() == 2

    assert left() >= kept
    assert Refresh.objects.filter(state=RefreshState.OPEN).count() == 2


def test_an_open_refresh_stays_and_so_do_its_runs() -> None:
    # given a refresh that was left open long ago, though another has ended since
    items(4)
    refresh = engine.request(Ledger, batch_size=2)
    engine.run_batch(due(Ledger))
    Refresh.objects.update(
        requested_at=timezone.now() - timedelta(days=90),
        started_at=timezone.now() - timedelta(days=90),
    )
    ended(Ledger, "succeeded", 1)

    assert trim_history() == 0

    assert inline.run_to_end(refresh).runs.get().rows == 4


def test_followers_outlive_the_refresh_that_did_their_work() -> None:
    # given a refresh whose insert was merged into one that has ended long ago
    items(4)
    leader = engine.request(Limited, phases=["insert"])
    follower = engine.request(Limited)
    engine.run_batch(due(Limited))
    engine.close_finished_in_view(leader.view_id)
    Refresh.objects.filter(pk=leader.pk).update(finished_at=timezone.now() - timedelta(days=9))
    assert PhaseRun.objects.get(refresh=follower, phase="insert").merged_into is not None
    ended(Limited, "succeeded", 1)
    # when
    assert trim_history() == 1
    # then the follower goes on, and is told to have done it
    assert inline.run_to_end(follower).state == RefreshState.SUCCEEDED
    assert set(PhaseRun.objects.values_list("refresh", flat=True)) == {follower.pk}
    assert set(follower.runs.values_list("state", "merged_into")) == {("succeeded", None)}


def test_a_merged_refresh_forgets_the_one_that_did_its_work() -> None:
    items(4)
    first, second = request_apart(Limited), request_apart(Limited)
    inline.run_to_end(second)
    Refresh.objects.filter(pk=first.pk).update(finished_at=timezone.now() - timedelta(days=9))

    assert trim_history() == 1

    second.refresh_from_db()
    assert (second.merged_into, second.state) == (None, RefreshState.SUCCEEDED)


def test_the_next_refresh_knows_nothing_of_it() -> None:
    items(3)
    run(Limited)
    run(Limited)
    Refresh.objects.update(finished_at=timezone.now() - timedelta(days=90))
    trim_history()
    items(3)

    assert run(Limited).state == RefreshState.SUCCEEDED
    assert Limited.objects.count() == 6


def test_a_long_history_goes_in_small_transactions_and_not_all_in_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history, "BATCH_SIZE", 3)
    monkeypatch.setattr(history, "MAX_DELETED", 8)
    for _ in range(21):
        ended(Limited, "succeeded", 10)

    with statements() as found:
        assert [trim_history() for _ in range(4)] == [8, 8, 4, 0]

    deleted = [sql for sql in found if sql.startswith("DELETE") and "matviews_refresh" in sql]
    assert len(deleted) == 8
    assert len(left()) == 1


@pytest.mark.parametrize("on_change", [True, False])
def test_a_view_on_change_keeps_so_many_successes(
    monkeypatch: pytest.MonkeyPatch, on_change: bool
) -> None:
    monkeypatch.setattr(history, "MAX_ON_CHANGE", 2)
    RefreshSchedule.objects.create(
        view=ViewControl.objects.get(label="sample.Limited"), on_change=on_change, every=1
    )
    old = [ended(Limited, "succeeded", 1).pk, ended(Limited, "succeeded", 1).pk]
    kept = {ended(view, state, 1).pk for view, state in [
        (Limited, "failed"), (Limited, "succeeded"), (Limited, "succeeded"), (Limited, "stopped"),
        (Ledger, "succeeded"), (Ledger, "succeeded"), (Ledger, "succeeded"),
    ]}  # fmt: skip

    assert trim_history() == (2 if on_change else 0)

    assert left() == (kept if on_change else {*old, *kept})


def test_it_costs_three_statements_when_all_is_recent() -> None:
    ended(Limited, "succeeded", 1)
    ended(Limited, "failed", 1)

    with statements() as found:
        assert trim_history() == 0

    assert len(found) == 3


class TestFolding:
    """Failures in a row that are alike become one, which counts them."""

    def fail(self, action: str = "raise", hook: str = "do_insert") -> int:
        with fault(Ledger, hook, action):
            refresh = run(Ledger)
        assert refresh.state == RefreshState.FAILED
        travel(timedelta(minutes=11))
        return refresh.pk

    def test_the_last_stays_and_counts_the_others(self) -> None:
        items(1)
        keys = [self.fail() for _ in range(5)]
        first = Refresh.objects.get(pk=keys[0]).finished_at

        assert engine.fold_failures() == 4
        kept = Refresh.objects.get()
        assert (kept.pk, kept.repeats, kept.repeated_since) == (keys[-1], 4, first)
        assert "was told to fail" in kept.runs.get().traceback
        # and later ones are folded as well
        last = self.fail()
        assert (engine.fold_failures(), engine.fold_failures()) == (1, 0)
        kept = Refresh.objects.get()
        assert (kept.pk, kept.repeats) == (last, 5)
        assert kept.repeated_since is not None

    def test_others_stay(self) -> None:
        items(1)
        keys = [self.fail(), self.fail("misspelt")]  # another class of error
        assert engine.fold_failures() == 0
        keys.append(run(Ledger).pk)  # a success
        items(1)
        keys.append(self.fail("misspelt"))
        keys.append(run(Ledger).pk)
        assert engine.fold_failures() == 0
        assert left() == set(keys)

    def test_another_error_of_the_same_class_stays(self) -> None:
        items(1)
        keys = [self.fail() for _ in range(2)]
        runs = PhaseRun.objects.filter(state="failed").order_by("pk")
        for key, error in zip(keys, ("first", "second"), strict=True):
            runs.filter(refresh=key).update(error=f"RuntimeError: {error} cause")
        assert engine.fold_failures() == 0
        for key in keys:
            runs.filter(refresh=key).update(error=f"RuntimeError: no rate of day {key}")
        assert engine.fold_failures() == 1

    def test_a_failure_of_a_moment_ago_stays(self) -> None:
        items(1)
        keys = {self.fail(), self.fail()}
        travel(timedelta(minutes=-15))

        assert engine.fold_failures() == 0
        assert left() == keys

    def test_two_maintenance_tasks_count_each_once(self) -> None:
        items(1)
        keys = [self.fail() for _ in range(3)]

        assert [history._fold(keys[0], keys[1]) for _ in range(2)] == [True, False]
        assert engine.fold_failures() == 1
        assert Refresh.objects.get().repeats == 2

    def test_one_whose_next_has_been_deleted_meanwhile_stays(self) -> None:
        items(1)
        old, next_one = self.fail(), self.fail()
        Refresh.objects.filter(pk=next_one).delete()

        assert history._fold(old, next_one) is False
        assert left() == {old}

    def test_what_was_merged_into_it_goes_on_to_the_next(self) -> None:
        items(1)
        with fault(Ledger, "do_insert", "raise"):
            for _ in range(3):
                request_apart(Ledger, force=True)
            shard = due(Ledger).shard_id
            inline.run_until_idle([shard])
        travel(timedelta(minutes=11))
        last = self.fail()

        while engine.fold_failures():
            pass

        assert left() == {last}
