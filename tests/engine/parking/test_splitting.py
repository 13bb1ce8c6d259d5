"""One bad row: it is found, parked and tried again, and everything else goes on."""

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any
from unittest import mock

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, models
from django.db.models import F, Q, Sum
from django.test import override_settings

from benchmarks.statements import statements
from matviews import engine
from matviews.databases import dialect_of
from matviews.engine.batches import full_refreshes
from matviews.engine.parking import bisection
from matviews.engine.parking.bisection import Bisection
from matviews.engine.parking.splitting import walk_keys
from matviews.models import ParkedKey, ViewShard
from matviews.phases import Phase
from matviews.queryset import BatchRunner, fill_stage
from matviews.states import RefreshState, ViewState
from matviews.tasks import inline
from tests.helpers import view_classes
from tests.helpers.engine import due
from tests.helpers.poison import KINDS, Poisoned
from tests.helpers.tables import derived_view, made, model, refreshed
from tests.management.test_command import command

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

COUNT = 60
#: What a message says, by the kind of poison.
WRONG = {
    "division": "division by (zero|0)",
    "overflow": "integer overflow|value out of range|does not fit",
    "too long": "too long",
    "null": "Column needed .* is NULL",
    "unique": "violates the constraint .*single",
    "cast": "malformed JSON|invalid text representation|incorrect value",
    "check": "violates the constraint made_positive",
}
EVERYTHING = set(range(1, COUNT + 1))


@pytest.fixture(params=["windowed", "staged"])
def source(request: pytest.FixtureRequest) -> Iterator[Poisoned]:
    """A source of 60 rows, with triggers, and its view, which is not built yet."""
    poisoned = Poisoned(staged=request.param == "staged")
    with poisoned.ready():
        poisoned.fill(COUNT)
        yield poisoned


def explain(source: Poisoned) -> Any:
    """What `--explain` says of the view."""
    out = StringIO()
    label = source.View._meta.label
    call_command(
        "update_materialized_views", "--explain", models=[label], format="json", stdout=out
    )
    return json.loads(out.getvalue())["views"]


def make_due() -> None:
    """Let the time pass after which parked keys are tried again."""
    ParkedKey.objects.update(retry_at=F("first_seen"))


@pytest.mark.parametrize("kind", KINDS)
class TestPoison:
    def test_at_the_first_build_until_the_data_is_healed(self, kind: str, source: Poisoned) -> None:
        # given rows of which one fails, then it alone is left out
        source.poison(kind, 40)
        refresh = source.refresh()
        assert source.right() == EVERYTHING - {40}
        assert source.parked() == {40}
        assert refresh.runs.get(phase="insert").parked == 1
        # when others change, then it is left out of the next full refresh
        source.change(1, 2, 3)
        source.View.mark_dirty()
        refresh = source.refresh()
        assert {run.full_refresh_reason for run in refresh.runs.all()} != {""}
        assert source.right() == EVERYTHING - {40}
        assert source.parked() == {40}
        # when the data is healed, then the view is
        source.heal(40)
        source.refresh()
        assert source.right() == EVERYTHING
        assert not source.parked()
        assert not ViewShard.objects.filter(parked_count__gt=0).exists()

    def test_by_key_until_the_row_is_gone(self, kind: str, source: Poisoned) -> None:
        # given a row that fails among those that have changed, then it alone is left as it was
        source.refresh()
        source.change(*range(1, 20))
        source.poison(kind, 10)
        source.refresh()
        assert source.right() == EVERYTHING - {10}
        assert source.parked() == {10}
        assert source.View.objects.filter(ref=10).exists()
        # when it is gone, then it is parked no longer
        source.Row.objects.filter(k=10).delete()
        source.refresh()
        assert not source.parked()
        assert source.right() == EVERYTHING - {10}
        assert not source.View.objects.filter(ref=10).exists()


class TestWhatAnswers:
    def test_no_view_is_fresh_while_keys_are_parked(self, source: Poisoned) -> None:
        source.poison("null", 10)
        source.refresh()

        assert not source.View.is_fresh()
        [status] = engine.view_statuses([source.View._meta.label])
        assert (status.state, status.on_time) == (ViewState.PARKED, False)
        assert status.parked == ViewShard.objects.get(view__label=status.label).parked_count > 0

        source.heal(10)
        source.refresh()
        assert source.View.is_fresh()
        [status] = engine.view_statuses([source.View._meta.label])
        assert status.on_time

    def test_the_log_says_how_many_keys_were_parked_and_why(
        self, source: Poisoned, caplog: pytest.LogCaptureFixture
    ) -> None:
        source.poison("null", 10, 40)
        source.refresh()

        record: Any = next(each for each in caplog.records if each.msg.startswith("keys parked "))
        assert (record.levelname, record.phase, record.keys, record.parked) == (
            "WARNING", "insert", 2, 2,
        )  # fmt: skip
        assert record.view == source.View._meta.label
        assert record.error.startswith("IntegrityError")

    def test_each_parked_key_is_named_with_its_error(self, source: Poisoned) -> None:
        source.poison("null", 10)
        source.refresh()

        found = [each for each in source.View.parked() if each.phase is Phase.INSERT]

        assert [each.key for each in found] == [(10,)]
        assert (found[0].error_class, found[0].tries) == ("IntegrityError", 1)
        assert found[0].columns == ("needed",)
        assert "Column needed of shapes.Made is NULL" in found[0].message
        assert found[0].code

    @pytest.mark.parametrize("kind", KINDS)
    def test_each_message_says_what_is_wrong_and_what_helps(
        self, kind: str, source: Poisoned
    ) -> None:
        source.poison(kind, 10)
        source.refresh()

        message = source.View.parked()[0].message
        assert re.search(WRONG[kind], message, re.IGNORECASE), message
        assert re.search(r"source\(\)|drop the constraint", message)  # what may be done

    def test_the_command_shows_them_and_has_them_tried_again(self, source: Poisoned) -> None:
        label = source.View._meta.label
        source.poison("null", 10)
        source.refresh()
        out = StringIO()
        with pytest.raises(CommandError, match="are parked"):
            call_command("update_materialized_views", "--parked", models=[label], stdout=out)
        assert "insert 10: RowRefused: Column needed" in out.getvalue()
        tries = ParkedKey.objects.get(phase="insert").tries

        out = StringIO()
        call_command(
            "update_materialized_views", "--parked", "--retry", models=[label], format="json",
            stdout=out,
        )  # fmt: skip
        [entry] = json.loads(out.getvalue())["views"]
        assert entry["retried"]
        assert entry["parked"][0]["key"] == [10]
        source.refresh()

        assert ParkedKey.objects.get(phase="insert").tries == tries + 1

    def test_the_command_says_so_after_a_refresh_and_not_that_the_source_has_changed(
        self, source: Poisoned
    ) -> None:
        label = source.View._meta.label
        source.poison("null", 10)

        ran = command("--models", label)
        assert ran.status == 0
        assert re.search(r"insert: 59 rows in .*; 1 key parked: see --parked\n", ran.out)
        source.change(1)
        phases = command("--models", label, "--format", "json").document["views"][0]["phases"]
        assert {each["phase"]: each["parked"] for each in phases}["insert"] == 1

        check = ["--check", "--pending", "--models", label]
        ran = command(*check)
        assert ran.status == 1
        assert ran.out == (
            f"{label}: 1 key parked: see `manage.py update_materialized_views --parked --models "
            f"{label}`\n"
        )
        assert command(*check, "--format", "json").document["views"][0]["parked"] == 1

    def test_verify_leaves_them_out_and_repairs_all_others(self, source: Poisoned) -> None:
        source.poison(KINDS[0], 10)
        source.refresh()
        assert source.View.verify().equal

        source.View.objects.filter(ref=20).delete()
        source.View.objects.filter(ref=21).update(double=99)
        source.View.objects.create(
            ref=500, single=500, quotient=1, double=2, whole=1, short="a", needed=1, positive=1
        )
        found = source.View.verify(repair=True)

        assert (found.missing, found.differing, found.surplus) == (1, 1, 1)
        assert (found.repaired, found.parked) == (3, 1)
        assert source.View.verify().equal
        assert source.right() == EVERYTHING - {10}


class TestRetries:
    def test_wait_longer_each_time_and_at_most_a_day(self, source: Poisoned) -> None:
        source.refresh()
        source.poison("null", 10)
        source.refresh()
        waits = []
        for _retry in range(13):
            row = ParkedKey.objects.get(phase="update")
            waits.append((row.retry_at - row.last_seen).total_seconds())
            make_due()
            source.refresh()
        assert waits[:3] == [60, 120, 240]
        assert waits[-1] == 86_400
        assert waits == sorted(waits)

    def test_no_refresh_before_that_tries_again(self, source: Poisoned) -> None:
        source.refresh()
        source.poison("null", 10)
        source.refresh()
        source.change(1)
        source.refresh()
        assert {row.tries for row in ParkedKey.objects.all()} == {1}

    def test_heal_an_untracked_view(self) -> None:
        poisoned = Poisoned()
        with poisoned.ready(tracked=False):
            poisoned.fill(COUNT)
            poisoned.poison("null", 10, 11)
            poisoned.refresh()
            poisoned.heal(10, 11)
            assert poisoned.parked() == {10, 11}
            make_due()
            poisoned.refresh()
            assert not poisoned.parked()
            assert poisoned.right() == EVERYTHING

    @pytest.mark.parametrize("marked", [[10], None], ids=["a key", "all keys"])
    def test_of_an_untracked_view_are_due_once_marked_as_dirty(
        self, marked: list[int] | None
    ) -> None:
        poisoned = Poisoned(options={"tracking": False})
        with poisoned.ready(tracked=False):
            poisoned.fill(COUNT)
            poisoned.poison("null", 10, 11)
            poisoned.refresh()
            poisoned.heal(10, 11)
            poisoned.View.mark_dirty(marked)
            poisoned.refresh()
            assert poisoned.parked() == ({11} if marked else set())

    def test_wait_although_triggers_are_missing(self) -> None:
        poisoned = Poisoned()
        with poisoned.ready(tracked=False):
            poisoned.fill(COUNT)
            poisoned.poison("null", 10, 11)
            poisoned.refresh()
            poisoned.refresh()
            assert {row.tries for row in ParkedKey.objects.all()} == {1}
            # but not if it is known that they have changed
            poisoned.heal(10, 11)
            poisoned.View.mark_dirty([10])
            poisoned.refresh()
            assert poisoned.parked() == {11}
            poisoned.View.mark_dirty()
            poisoned.refresh()
            assert not poisoned.parked()

    def test_count_as_changes_of_now(self, source: Poisoned) -> None:
        source.poison("null", 10)
        source.refresh()
        ParkedKey.objects.update(first_seen=F("first_seen") - timedelta(days=3))
        make_due()
        source.refresh(phases=["insert"])
        [status] = engine.view_statuses([source.View._meta.label])
        assert not status.change_lag or status.change_lag < timedelta(hours=1)

    @pytest.mark.parametrize(
        "other", [{"fingerprint": "another", "key": ["1", "2"]}, {"phase": "gone"}]
    )
    def test_are_over_with_the_definition(self, source: Poisoned, other: dict[str, Any]) -> None:
        # given a key that was parked under a definition with another key, or with a phase more
        source.poison("null", 10)
        source.refresh()
        ParkedKey.objects.update(**other)
        ViewShard.objects.update(checkpoints={})
        # when it is refreshed under this one
        source.refresh()
        # then it is as if the key had never been parked before
        assert source.parked() == {10}
        assert ParkedKey.objects.get().tries == 1
        source.heal(10)
        source.refresh()
        assert not source.parked()
        assert source.right() == EVERYTHING

    def test_of_another_phase_wait_for_that(self, source: Poisoned) -> None:
        # given a due key of the update phase
        source.refresh()
        source.poison("null", 10)
        source.refresh()
        assert set(ParkedKey.objects.values_list("phase", flat=True)) == {"update"}
        make_due()
        # when only inserts are refreshed, then there is nothing to do
        shard = ViewShard.objects.get(view__label=source.View._meta.label)
        for _time in range(3):
            view_classes.run(source.View, phases=["insert"])
        drains = shard.drain_number
        shard.refresh_from_db()
        assert shard.drain_number == drains

    def test_of_more_keys_than_one_refresh_can_try_take_turns(
        self, source: Poisoned, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given more parked keys than a batch has statements for, of which the last are healed
        source.poison("null", *range(1, 21))
        source.refresh()
        monkeypatch.setattr(bisection, "MAX_STATEMENTS", 12)
        source.heal(18, 19, 20)
        # when full refreshes try them
        for _time in range(8):
            make_due()
            ViewShard.objects.update(checkpoints={})
            source.refresh()
        # then none waits for ever
        assert source.parked() == set(range(1, 18))

    def test_are_no_larger_than_a_batch(
        self, source: Poisoned, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All at once might take longer than a statement may, each time again."""
        source.poison("null", *range(1, 31))
        source.refresh(batch_size=10)
        source.heal(*range(1, 31))
        source.View.mark_dirty()
        sizes, run_keys = [], BatchRunner.run_keys

        def measured(runner: Any, phase: Any, keys: Any, *others: Any) -> Any:
            sizes.append(len(keys))
            return run_keys(runner, phase, keys, *others)

        monkeypatch.setattr(BatchRunner, "run_keys", measured)
        source.refresh(batch_size=10)

        assert max(sizes) == 10
        assert source.right() == EVERYTHING

    def test_of_keys_whose_values_were_taken_follow_the_delete(self, source: Poisoned) -> None:
        # given a new row with the unique value of one that goes
        source.refresh()
        source.Row.objects.filter(k=5).delete()
        source.Row.objects.filter(k=60).update(second=5)
        # when one refresh updates the one before it deletes the other
        source.refresh()
        # then it has both
        assert source.right() == EVERYTHING - {5}
        assert not source.parked()


class TestOtherRows:
    """Unique constraints: which row is at fault is not known."""

    @pytest.mark.parametrize("step", [1, -1])
    def test_values_that_move_by_one_are_right_after_one_refresh(
        self, source: Poisoned, step: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given statements for 30 keys that fail, in each batch
        monkeypatch.setattr(bisection, "MAX_STATEMENTS", 60)
        source.refresh()
        # when 30 rows take each other's values, of which the last one is free
        source.Row.objects.filter(k=31 if step > 0 else 10).update(second=1_000)
        moving = range(1, 31) if step > 0 else range(11, 41)
        for key in moving[::-step]:
            source.Row.objects.filter(k=key).update(second=F("second") + step)
        source.refresh()
        # then all are right
        assert not source.parked()
        assert source.right() == EVERYTHING

    def test_a_long_move_goes_on_with_the_next_refresh(
        self, source: Poisoned, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bisection, "MAX_STATEMENTS", 30)
        source.refresh()
        source.Row.objects.filter(k=60).update(second=1_000)
        source.Row.objects.filter(k__lt=60).update(second=F("second") + 1)
        for _time in range(4):
            source.refresh()
        assert not source.parked()
        assert source.right() == EVERYTHING

    def test_are_no_reason_to_try_them_in_each_refresh(self, source: Poisoned) -> None:
        source.refresh()
        source.poison("unique", *range(21, 51))
        source.refresh()
        tries = set(ParkedKey.objects.values_list("tries", flat=True))
        source.change(5)

        with statements() as found:
            source.refresh()

        assert not [sql for sql in map(str, found) if "ROLLBACK TO" in sql]
        assert tries == set(ParkedKey.objects.values_list("tries", flat=True)) == {1}

    def test_are_tried_at_least_four_times_an_hour(self, source: Poisoned) -> None:
        source.refresh()
        source.poison("unique", 10)
        source.refresh()
        ParkedKey.objects.update(tries=20)
        make_due()
        source.refresh()
        row = ParkedKey.objects.get(phase="update")
        assert (row.retry_at - row.last_seen).total_seconds() == 900

    def test_free_a_value_also_without_a_delete_phase(self) -> None:
        poisoned = Poisoned(options={"phases": ["insert", "update"]})
        with poisoned.ready():
            poisoned.fill(COUNT)
            poisoned.refresh()
            poisoned.Row.objects.filter(k=5).update(second=1_000)
            poisoned.add(100)
            poisoned.Row.objects.filter(k=100).update(second=5)

            poisoned.refresh()

            assert not poisoned.parked()
            assert poisoned.right() == EVERYTHING | {100}


class TestLimits:
    def test_with_too_many_keys_it_is_no_row_that_is_bad(self, source: Poisoned) -> None:
        source.poison("null", *range(1, 10))

        with override_settings(MATVIEWS={"MAX_PARKED_KEYS": 5}):
            refresh = view_classes.run(source.View)

        assert refresh.state == RefreshState.FAILED
        assert "More than 5 keys failed" in refresh.error
        assert not source.parked()

    def test_with_a_limit_of_0_one_row_fails_the_phase(self, source: Poisoned) -> None:
        source.refresh()
        source.poison("null", 10)
        source.change(20)

        with override_settings(MATVIEWS={"MAX_PARKED_KEYS": 0}):
            refresh = view_classes.run(source.View)
            [explained] = explain(source)

        assert refresh.state == RefreshState.FAILED
        assert explained["parking_obstacle"] == "max_parked_keys is 0"
        assert not source.parked()
        assert source.right() == EVERYTHING - {10, 20}
        source.refresh()
        assert source.parked() == {10}
        assert explain(source)[0]["parking_obstacle"] == ""

    def test_a_limit_of_0_takes_back_what_is_parked(self, source: Poisoned) -> None:
        source.poison("null", 10, 11)
        source.refresh()

        with override_settings(MATVIEWS={"MAX_PARKED_KEYS": 0}):
            assert view_classes.run(source.View).state == RefreshState.FAILED
            source.heal(10, 11)
            source.refresh()

        assert not source.parked()
        assert source.right() == EVERYTHING

    def test_the_limit_of_a_view_is_its_own(self) -> None:
        poisoned = Poisoned(options={"max_parked_keys": 1})
        with poisoned.ready():
            poisoned.fill(COUNT)
            poisoned.poison("null", 10, 11)

            refresh = view_classes.run(poisoned.View)

            assert refresh.state == RefreshState.FAILED
            assert "More than 1 keys failed" in refresh.error
            poisoned.heal(11)
            poisoned.refresh(phases=["insert"])

    def test_a_source_of_which_nothing_can_be_computed_fails_soon(self, source: Poisoned) -> None:
        source.poison("null", *EVERYTHING)

        with statements() as found:
            refresh = view_classes.run(source.View, phases=["insert"])

        assert refresh.state == RefreshState.FAILED
        assert "10 of 60 keys were tried alone, and all failed." in refresh.error
        assert not source.parked()
        tried = [sql for sql in map(str, found) if "INSERT INTO" in sql and "made" in sql]
        assert len(tried) <= 2 + bisection.PROBES

    def test_a_source_of_nine_tenths_bad_rows_shows_one_that_is_right(
        self, source: Poisoned
    ) -> None:
        right = {3, 15, 27, 39, 51, 4}  # one of those that are tried is among them
        source.poison("null", *(EVERYTHING - right))

        source.refresh(phases=["insert"])

        assert source.right() == right
        assert source.parked() == EVERYTHING - right

    def test_a_tenth_of_a_large_batch_is_too_many(
        self, source: Poisoned, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bisection, "SAMPLE_KEYS", COUNT)
        source.poison("null", *range(1, 8))

        refresh = view_classes.run(source.View)

        assert refresh.state == RefreshState.FAILED
        assert "7 of 60 keys failed" in refresh.error

    @pytest.mark.parametrize("by_keys", [False, True])
    def test_a_tenth_of_many_small_batches_is_too_many(
        self, source: Poisoned, monkeypatch: pytest.MonkeyPatch, *, by_keys: bool
    ) -> None:
        monkeypatch.setattr(bisection, "SAMPLE_KEYS", 40)
        if by_keys:
            source.refresh()
            source.change(*EVERYTHING)
        source.poison("null", *range(2, COUNT, 5))

        for _time in range(2):  # once more, nothing is parked that would be left out
            refresh = view_classes.run(source.View, batch_size=5)

            assert refresh.state == RefreshState.FAILED
            assert "8 of 40 keys failed" in refresh.error
            assert not source.parked()
            assert not ViewShard.objects.filter(parked_count__gt=0).exists()
            assert refresh.runs.get(phase="update" if by_keys else "insert").parked == 0

        # and nothing is wedged
        source.heal(*range(2, COUNT, 5))
        source.refresh()
        assert source.right() == EVERYTHING

    def test_too_many_keys_of_a_run_leave_those_parked_that_were(
        self, source: Poisoned, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a parked key
        source.refresh()
        source.poison("null", 7)
        source.refresh()
        # when a run fails after its first batches have parked others
        source.change(*range(20, 61))
        source.poison("null", *range(22, 61, 6))
        with override_settings(MATVIEWS={"MAX_PARKED_KEYS": 4}):
            refresh = view_classes.run(source.View, batch_size=5)
        # then it alone is still parked, and the healthy rows of these batches are right
        assert "More than 4 keys failed" in refresh.error
        assert source.parked() == {7}
        assert source.right() >= {20, 21, 23, 24}
        assert ViewShard.objects.get(view__label=source.View._meta.label).parked_count == 1

    def test_a_tenth_does_not_count_what_is_parked(
        self, source: Poisoned, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given more than a tenth of the keys, parked in small numbers
        monkeypatch.setattr(bisection, "SAMPLE_KEYS", 20)
        source.refresh()
        for bad in ([1, 2, 3], [4, 5, 6], [7, 8, 9]):
            source.poison("null", *bad)
            source.refresh()
        # when all keys are tried again, then that is no reason to fail
        make_due()
        ViewShard.objects.update(checkpoints={})
        assert source.refresh().state == RefreshState.SUCCEEDED
        assert source.parked() == set(range(1, 10))

    def test_a_batch_leaves_to_the_next_what_takes_too_many_statements(
        self, source: Poisoned, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bisection, "MAX_STATEMENTS", 14)
        bad = {7, 8, 20, 33, 34, 59}
        source.refresh()
        source.change(*range(1, COUNT + 1))
        source.poison("null", *bad)

        refresh = source.refresh()

        assert source.right() == EVERYTHING - bad
        assert source.parked() == bad
        assert refresh.runs.get(phase="update").batches > 2

    def test_a_fault_that_is_not_the_datas_parks_nothing(self, source: Poisoned) -> None:
        """A time limit, for example."""
        error = DatabaseError("not of data")
        with mock.patch("matviews.queryset.sql.statements.Statements.run", side_effect=error):
            refresh = view_classes.run(source.View)
        assert refresh.state == RefreshState.FAILED
        assert not source.parked()


def test_a_healthy_refresh_costs_no_statement_more(source: Poisoned) -> None:
    """Nothing reads or writes parked keys, but for the statement that looks whether any is due."""
    source.refresh()
    source.change(1, 2)
    with statements() as found:
        source.refresh()
    of_parked = [sql for sql in map(str, found) if "parkedkey" in sql]
    assert all(sql.startswith("SELECT found.*") for sql in of_parked)
    assert not [sql for sql in map(str, found) if "SAVEPOINT" in sql]


def test_nor_does_one_of_which_nothing_but_parked_keys_is_left(source: Poisoned) -> None:
    source.poison("null", 10)
    source.refresh()
    source.refresh()
    with statements() as found:
        source.refresh()
    source.heal(10)
    source.refresh()
    source.refresh()
    with statements() as found_healthy:
        source.refresh()
    assert len(found) == len(found_healthy)


@pytest.mark.parametrize("tracked", [False, True])
def test_a_full_refresh_leaves_parked_keys_out_without_splitting(*, tracked: bool) -> None:
    source = Poisoned(options={"tracking": tracked})
    with source.ready(tracked=tracked):
        source.fill(COUNT)
        source.poison("null", 10, 30)
        source.refresh(batch_size=20)
        ParkedKey.objects.update(tries=5, retry_at=engine.now() + timedelta(hours=1))
        source.add(COUNT + 1)
        source.Row.objects.filter(k=2).delete()
        source.change(*EVERYTHING)
        if tracked:
            source.View.mark_dirty()  # which has parked keys tried again, too
        with mock.patch.object(full_refreshes, "walk_keys") as by_lists:
            source.refresh(batch_size=20)
        assert not by_lists.called
        assert source.parked() == {10, 30}
        assert source.right() == {*EVERYTHING, COUNT + 1} - {2, 10, 30}
        assert set(ParkedKey.objects.values_list("tries", flat=True)) == {6 if tracked else 5}


def test_more_parked_keys_than_a_statement_can_name_are_left_out_by_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Poisoned(options={"tracking": False})
    with source.ready():
        source.fill(COUNT)
        bad = {5, 10, 20, 30, 40}
        source.poison("null", *bad)
        source.refresh()
        ParkedKey.objects.update(retry_at=engine.now() + timedelta(hours=1))
        monkeypatch.setattr(type(dialect_of(engine.alias())), "max_keys", len(bad) - 1)
        source.change(*EVERYTHING)
        with mock.patch.object(full_refreshes, "walk_keys", wraps=walk_keys) as by_lists:
            source.refresh()
        assert by_lists.called
        assert source.parked() == bad
        assert source.right() == EVERYTHING - bad


@pytest.mark.parametrize("batch_size", [3, 100], ids=["windows", "all at once"])
def test_so_it_does_where_the_key_joins_other_tables(batch_size: int) -> None:
    buyer = model("Buyer")
    sale = model(
        "Purchase", buyer=models.ForeignKey(buyer, models.CASCADE), qty=models.IntegerField()
    )
    view = derived_view(
        lambda cls: buyer.objects.values(ref=F("pk")).annotate(total=Sum("purchase__qty")),
        options={"tracking": False},
        ref=models.BigIntegerField(unique=True),
        total=models.IntegerField(),
        meta={
            "constraints": [models.CheckConstraint(condition=Q(total__gte=0), name="made_total")]
        },
    )
    with made(buyer, sale, view):
        buyers = [buyer.objects.create() for _number in range(9)]
        bad = buyers[4].pk
        for each in buyers:
            sale.objects.create(buyer=each, qty=-1 if each.pk == bad else 1)
        for _time in range(2):
            refreshed(view, batch_size=batch_size)
            sale.objects.exclude(buyer=bad).update(qty=F("qty") + 1)
        with mock.patch.object(full_refreshes, "walk_keys") as walk_keys:
            refreshed(view, batch_size=batch_size)
        assert not walk_keys.called
        assert {row.key for row in engine.list_parked(view)} == {(bad,)}
        expected = {each.pk: 3 for each in buyers if each.pk != bad}
        assert dict(view.objects.values_list("ref", "total")) == expected


def test_a_staging_that_fails_is_not_tried_again_for_each_batch() -> None:
    poisoned = Poisoned(staged=True)
    with poisoned.ready():
        poisoned.fill(COUNT)
        poisoned.poison(KINDS[0], 59)
        with mock.patch.object(full_refreshes, "fill_stage", wraps=fill_stage) as fill:
            poisoned.refresh(batch_size=10, phases=["insert"])
        assert fill.call_count == 1
        assert poisoned.right() == EVERYTHING - {59}


class Killed(BaseException):
    """The worker is gone."""


def test_a_worker_that_dies_while_it_splits_leaves_nothing(source: Poisoned) -> None:
    # given a batch whose worker dies after it has parked a key
    source.poison("null", 10)
    engine.request(source.View)
    message = due(source.View)
    finish = Bisection.finish

    def die(bisection: Any, run: Any) -> int:
        finish(bisection, run)
        raise Killed

    with mock.patch.object(Bisection, "finish", die), pytest.raises(Killed):
        engine.run_batch(message)
    assert not source.parked()
    assert not source.View.objects.exists()
    # when another one takes over
    ViewShard.objects.update(claimed_token=0)
    inline.run_until_idle([message.shard_id])
    # then each key is done, and once
    assert source.parked() == {10}
    assert source.right() == EVERYTHING - {10}
    assert ParkedKey.objects.filter(phase="insert").count() == 1


def test_a_duplicate_of_a_message_parks_nothing_twice(source: Poisoned) -> None:
    source.poison("null", 10)
    engine.request(source.View)
    message = due(source.View)
    engine.run_batch(message)
    assert engine.run_batch(message).outcome.refused
    inline.run_until_idle([message.shard_id])
    assert ParkedKey.objects.filter(phase="insert").count() == 1
