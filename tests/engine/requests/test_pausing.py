"""Pausing a view: its requests are kept and wait, its batches are held."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from benchmarks.statements import statements
from matviews import engine
from matviews.databases.clock import UtcNow
from matviews.engine import Outcome
from matviews.exceptions import ViewDisabled
from matviews.models import Refresh, ViewControl, ViewShard
from matviews.states import RefreshState, RunState
from matviews.tasks import inline
from tests.helpers.engine import due, items, let_time_pass, shards_of
from tests.helpers.view_classes import run
from tests.sample.models import Fault, Ledger, Limited, Sharded

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

HOLDS = pytest.mark.parametrize("hold", [{"paused": True}, {"enabled": False}])
RELEASED = {"paused": False, "enabled": True}
MINUTE = timedelta(minutes=1)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


def switch(view: type[Any], **values: bool) -> None:
    ViewControl.objects.filter(label=view._meta.label).update(**values)


def test_requests_of_a_paused_view_are_kept_and_those_of_a_disabled_one_refused() -> None:
    switch(Ledger, paused=True)
    engine.request(Ledger)
    assert Refresh.objects.get().state == RefreshState.OPEN

    switch(Ledger, enabled=False)
    with pytest.raises(ViewDisabled):
        engine.request(Ledger)


@HOLDS
def test_nothing_is_due_until_the_view_is_released(hold: dict[str, bool]) -> None:
    # given a refresh under way
    items(6)
    refresh = engine.request(Ledger, batch_size=2)
    engine.run_batch(due(Ledger))
    # when the view is held
    switch(Ledger, **hold)
    let_time_pass()
    # then nothing is due, and maintenance does not even look
    assert engine.close_finished_in_view(refresh.view_id)[0].message is None
    with statements() as found:
        assert engine.rescue() == []
    assert len(found) == 1
    assert inline.run_to_end(refresh).state == RefreshState.OPEN
    # and when it is released, it goes on where it was
    switch(Ledger, **RELEASED)
    assert inline.run_to_end(refresh).state == RefreshState.SUCCEEDED
    assert refresh.runs.get().batches == 3
    assert Ledger.objects.count() == 6


@HOLDS
def test_a_message_that_was_under_way_does_no_batch(hold: dict[str, bool]) -> None:
    items(6)
    refresh = engine.request(Ledger, batch_size=2)
    message = due(Ledger)
    switch(Ledger, **hold)

    report = engine.run_batch(message)

    assert (report.outcome, report.rows, report.runs) == (Outcome.DONE, 0, ())
    assert Ledger.objects.count() == 0
    assert [each.message for each in engine.close_finished_in_view(refresh.view_id)] == [None]
    assert refresh.runs.get().state == RunState.PENDING


@HOLDS
def test_a_batch_at_work_commits_and_none_follows(
    hold: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    items(6)
    engine.request(Ledger, batch_size=2)
    message = due(Ledger)
    monkeypatch.setattr(Fault, "commit", lambda _view, _hook: switch(Ledger, **hold))

    report = engine.run_batch(message)

    assert (report.rows, Ledger.objects.count()) == (2, 2)
    assert engine.close_finished(message.shard_id).message is None


def test_whoever_releases_while_a_batch_finds_the_view_held_is_heard() -> None:
    # given a worker whose batch has found the view paused and has not looked again
    items(2)
    engine.request(Ledger)
    message = due(Ledger)
    switch(Ledger, paused=True)
    engine.run_batch(message)
    # when the view is resumed
    switch(Ledger, paused=False)
    # then the worker's own look finds what is due
    assert engine.run_batch(due(Ledger)).rows == 2
    assert engine.run_batch(message).outcome is Outcome.STALE


def test_all_that_waited_is_done_at_once_after_a_pause() -> None:
    items(4)
    switch(Limited, paused=True)
    asked = [engine.request(Limited) for _ in range(5)]
    items(2)
    switch(Limited, paused=False)

    assert inline.run_to_end(asked[0]).state == RefreshState.SUCCEEDED

    assert Limited.objects.count() == 6
    assert {each.pk for each in asked} == {asked[0].pk}


def test_a_refresh_of_all_views_leaves_paused_ones_out() -> None:
    assert "sample.Limited" in engine.views_to_refresh()
    switch(Limited, paused=True)

    assert "sample.Limited" not in engine.views_to_refresh()


def test_another_view_goes_on() -> None:
    items(3)
    switch(Ledger, paused=True)
    engine.request(Ledger)

    assert run(Limited).state == RefreshState.SUCCEEDED
    let_time_pass()
    ViewShard.objects.update(resend_after=None)
    assert engine.rescue() == []


def test_every_shard_is_held() -> None:
    items(8)
    refresh = engine.request(Sharded, batch_size=2)
    messages = [engine.close_finished(pk).message for pk in shards_of(refresh.view_id)]
    switch(Sharded, paused=True)

    reports = [engine.run_batch(message) for message in messages if message]

    assert [(each.outcome, each.rows) for each in reports] == [(Outcome.DONE, 0)] * 2
    switch(Sharded, paused=False)
    assert inline.run_to_end(refresh).state == RefreshState.SUCCEEDED
    assert Sharded.objects.count() == 8


class TestSinceWhenAndByWhom:
    """The change and its record are one statement, however the control is changed."""

    def paused(self) -> tuple[bool, bool, str]:
        """Whether it is paused, whether the time of that is now, and by whom."""
        control = ViewControl.objects.annotate(now=UtcNow()).get(label="sample.Ledger")
        is_now = control.paused_at is not None and control.now - control.paused_at < MINUTE
        return control.paused, is_now, control.paused_by

    def let_it_be_long_ago(self) -> None:
        ViewControl.objects.update(paused_at=LONG_AGO)

    def test_an_update_records_the_time_and_who_if_that_is_given(self) -> None:
        switch(Ledger, paused=True)
        assert self.paused() == (True, True, "")
        switch(Ledger, paused=False)
        assert self.paused() == (False, False, "")
        with statements() as found:
            ViewControl.objects.filter(label="sample.Ledger").update(paused=True, paused_by="ann")
        assert len(found) == 1
        assert self.paused() == (True, True, "ann")

    def test_a_save_records_the_time_and_who_if_that_is_given(self) -> None:
        control = ViewControl.objects.get(label="sample.Ledger")
        control.paused, control.paused_by = True, "ann"
        control.save()
        assert self.paused() == (True, True, "ann")
        assert control.paused_by == "ann"
        assert control.paused_at is not None
        control.paused = False
        control.save(update_fields=["paused"])
        assert self.paused() == (False, False, "")
        assert (vars(control)["paused_at"], control.paused_by) == (None, "")

    def test_another_row_begins_with_its_own(self) -> None:
        assert ViewControl.objects.create(label="shop.Paused", paused=True).paused_at
        assert ViewControl.objects.create(label="shop.Other").paused_at is None

    @pytest.mark.parametrize("again", ["update", "save", "save of another field", "bulk_update"])
    def test_what_pauses_a_paused_view_again_leaves_both_as_they_were(self, again: str) -> None:
        control = ViewControl.objects.get(label="sample.Ledger")
        ViewControl.objects.filter(pk=control.pk).update(paused=True, paused_by="ann")
        self.let_it_be_long_ago()
        control.paused, control.paused_by = True, "bob"
        if again == "update":
            ViewControl.objects.filter(pk=control.pk).update(paused=True, paused_by="bob")
        elif again == "bulk_update":
            ViewControl.objects.bulk_update([control], ["paused"])
        else:
            control.save(update_fields=["batch_size"] if "field" in again else None)
        assert self.paused() == (True, False, "ann")

    def test_a_bulk_update_pauses_from_now_on(self) -> None:
        control = ViewControl.objects.get(label="sample.Ledger")
        control.paused = True
        ViewControl.objects.bulk_update([control], ["paused"])
        assert self.paused() == (True, True, "")
