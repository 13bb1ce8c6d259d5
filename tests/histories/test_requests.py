"""Random histories of requests that meet: each gets what it asks for, whichever refresh does it."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import F, Q
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from matviews import engine
from matviews.engine.dispatch import closing
from matviews.engine.requests import requests
from matviews.engine.work.shard_work import Work
from matviews.models import PhaseRun, Refresh, ViewControl, ViewShard
from matviews.states import RefreshState
from tests.helpers import state_machines
from tests.helpers.engine import let_time_pass, shards_of
from tests.helpers.state_machines import MailboxMachine, run_machine
from tests.histories.conftest import RunRandom
from tests.sample.models import Item, Limited, Sharded, Walked

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


VIEWS: list[type[Any]] = [Walked, Limited, Sharded]
KEYS = range(1, 4)
# At one of a batch's statements, of which MariaDB and MySQL take twice as many.
KILLS = st.none() | st.none() | st.integers(1, 28 if connection.vendor == "mysql" else 14)


def take_an_earlier_number(refresh: Refresh) -> None:
    """As if the request had its primary key before all others, and has committed only now."""
    first = Refresh.objects.earliest("pk").pk
    Refresh.objects.filter(pk=refresh.pk).update(id=min(first, 0) - 1)
    refresh.pk = min(first, 0) - 1


class Meeting(MailboxMachine):
    """Requests for the same, and a source whose values only grow.

    So a view has what a request asked for if no value is less than it was in the source then.
    """

    @initialize(view=st.sampled_from(VIEWS))
    def begin(self, view: type[Any]) -> None:
        models: list[type[Any]] = [PhaseRun, Refresh, ViewShard, ViewControl, Item, *VIEWS]
        for model in models:
            model._base_manager.all().delete()
        engine.sync_controls()
        self.view, self.control = view, ViewControl.objects.get(label=view._meta.label)
        self.promises: list[tuple[int, dict[int, int]]] = []
        Item.objects.bulk_create([Item(pk=key, value=0) for key in KEYS])
        view.objects.bulk_create([view(key=key, value=0) for key in KEYS])

    @rule(key=st.sampled_from(KEYS))
    def change(self, key: int) -> None:
        Item.objects.filter(pk=key).update(value=F("value") + 1)

    @rule(apart=st.booleans(), slow=st.booleans(), sent=st.booleans(), kill=KILLS)
    def ask(self, apart: bool, slow: bool, sent: bool, kill: int | None) -> None:
        with self.mortal(kill):
            with transaction.atomic() if apart else nullcontext():
                refresh = engine.request(self.view, phases=["update"], batch_size=1)
                if apart and slow:
                    take_an_earlier_number(refresh)
            source = dict(Item.objects.values_list("pk", "value"))
            self.promises.append((refresh.pk, source))
            for shard_id in shards_of(self.control.pk) if sent else ():
                for message in engine.close_finished(shard_id).messages:
                    self.send(message)

    @precondition(lambda self: self.promises)
    @rule(position=st.integers(0, 100), kill=KILLS)
    def stop(self, position: int, kill: int | None) -> None:
        refresh, _source = self.promises[position % len(self.promises)]
        with self.mortal(kill):
            engine.request_stop(refresh)

    @precondition(lambda self: self.mailbox)
    @rule(position=st.integers(0, 100), again=st.booleans(), kill=KILLS)
    def deliver(self, position: int, again: bool, kill: int | None) -> None:
        self.work_on(position, again=again, kill=kill)

    @precondition(lambda self: self.mailbox)
    @rule(
        position=st.integers(0, 100),
        key=st.sampled_from(KEYS),
        apart=st.booleans(),
        slow=st.booleans(),
    )
    def ask_between_batches(self, position: int, key: int, apart: bool, slow: bool) -> None:
        self.deliver(position, again=False, kill=None)
        self.change(key)
        self.ask(apart, slow, sent=True, kill=None)

    @rule(kill=KILLS)
    def maintain(self, kill: int | None) -> None:
        let_time_pass()
        self.send_again(kill)

    @invariant()
    def whoever_was_promised_something_has_it(self) -> None:
        if not hasattr(self, "view"):
            return
        ended = Refresh.objects.exclude(finished_at=None).values_list("pk", "state")
        states = dict(ended)
        rows = dict(self.view._base_manager.values_list("key", "value"))
        for refresh, source in self.promises:
            if states.get(refresh) == RefreshState.SUCCEEDED:
                late = {key for key, value in source.items() if rows.get(key, -1) < value}
                assert not late, f"refresh {refresh} has left {late} as they were"
        self.promises = [each for each in self.promises if each[0] not in states]

    @invariant()
    def what_is_merged_waits_for_one_that_is_open(self) -> None:
        merged = Refresh.objects.filter(state=RefreshState.MERGED)
        assert not merged.exclude(merged_into__state=RefreshState.OPEN).exists()
        assert not merged.filter(runs__isnull=False).exists()
        unfinished = Q(state__in=(RefreshState.OPEN, RefreshState.MERGED))
        assert not Refresh.objects.filter(~unfinished, finished_at=None).exists()

    def check_after_work(self) -> None:
        self.whoever_was_promised_something_has_it()

    def teardown(self) -> None:
        if hasattr(self, "view"):
            self.work_until_quiet()
            assert not Refresh.objects.filter(finished_at=None).exists()
            self.whoever_was_promised_something_has_it()


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Meeting:
    """A hand-written history of requests to a view with a cursor: no key is visited twice."""
    monkeypatch.setattr(state_machines, "note", lambda _text: None)
    written = Meeting()
    written.begin(view=Walked)
    return written


def test_any_history_keeps_what_each_request_was_promised(run_random: RunRandom) -> None:
    run_random(partial(run_machine, Meeting), long=2_000)


class TestSeededFaults:
    def test_joining_a_refresh_that_has_begun(
        self, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def joinable(refresh: Refresh) -> Any:
            still_open = Refresh.objects.filter(state=RefreshState.OPEN, stop_requested=False)
            return still_open.filter(phases=refresh.phases, batch_size=refresh.batch_size)

        def history() -> None:
            meeting.ask(apart=False, slow=False, sent=True, kill=None)
            meeting.ask_between_batches(position=0, key=1, apart=False, slow=False)
            meeting.teardown()

        history()
        monkeypatch.setattr(requests, "_joinable", joinable)
        with pytest.raises(AssertionError, match="has left"):
            history()

    def test_merging_into_a_refresh_that_has_begun(
        self, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def mergeable(work: Work) -> list[list[int]]:
            return [[each.pk for each in work.refreshes]] if len(work.refreshes) > 1 else []

        def merge(keys: list[int]) -> bool:
            others = Refresh.objects.filter(pk__in=keys[1:], runs=None, stop_requested=False)
            merged = {"state": RefreshState.MERGED, "merged_into": keys[0]}
            return others.update(**merged) > 0

        def history() -> None:
            meeting.ask(apart=False, slow=False, sent=True, kill=None)
            meeting.ask_between_batches(position=0, key=1, apart=True, slow=False)
            meeting.teardown()

        history()
        monkeypatch.setattr(Work, "mergeable", mergeable)
        monkeypatch.setattr(closing, "_merge_alike", merge)
        with pytest.raises(AssertionError, match="has left"):
            history()

    def test_merging_a_merge_target(
        self, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def merge(keys: list[int]) -> bool:
            others = Refresh.objects.filter(pk__in=keys[1:], runs=None, stop_requested=False)
            return others.update(state=RefreshState.MERGED, merged_into=keys[0]) > 0

        def history() -> None:
            meeting.ask(apart=True, slow=False, sent=False, kill=None)
            meeting.ask(apart=True, slow=False, sent=True, kill=None)
            meeting.ask(apart=True, slow=True, sent=True, kill=None)
            meeting.what_is_merged_waits_for_one_that_is_open()
            meeting.teardown()

        history()
        monkeypatch.setattr(closing, "_merge_alike", merge)
        with pytest.raises(AssertionError):
            history()
