"""Requests that meet before a batch begins the work: however many, they cost as much as a few."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.db.backends.utils import CursorWrapper
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from benchmarks.statements import statements
from matviews import engine, tasks
from matviews.admin.phrases import requesters
from matviews.engine.requests import requests
from matviews.engine.work.loader import MAX_REFRESHES_READ
from matviews.engine.work.shard_work import MAX_REFRESHES_BEGUN
from matviews.models import Origin, PhaseRun, Refresh, ViewControl, ViewShard
from matviews.phases import Phase
from matviews.signals import refresh_finished, refresh_requested
from matviews.states import RefreshState
from matviews.tasks import inline
from tests.helpers.engine import (
    due,
    in_another_connection,
    items,
    let_time_pass,
    request_apart,
    shard_of,
    without_sqlite,
)
from tests.sample.models import Fault, Item, Limited, Sharded, Walked

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

NUMBERS = (100, pytest.param(10_000, marks=pytest.mark.long))


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


def pause(view: type[Any], paused: bool = True) -> ViewControl:
    control = ViewControl.objects.get(label=view._meta.label)
    ViewControl.objects.filter(pk=control.pk).update(paused=paused)
    return control


def insert_requests(view: type[Any], count: int) -> None:
    """What `count` transactions of callers leave behind, if nobody has settled since."""
    refresh = request_apart(view)
    Refresh.objects.bulk_create(
        [
            Refresh(
                view_id=refresh.view_id, phases=refresh.phases, origin=Origin.API,
                requested_at=timezone.now(), claims_at_request=refresh.claims_at_request,
            )
            for _ in range(count - 1)
        ],
        batch_size=1000,
    )  # fmt: skip


@dataclass
class Cost:
    """Statements sent, and rows fetched."""

    statements: int = 0
    rows: int = 0


@contextmanager
def cost() -> Iterator[Cost]:
    """What is done inside, as the database sees it."""
    found = Cost()

    def counting(name: str) -> Callable[..., Any]:
        def fetch(self: Any, *arguments: Any) -> Any:
            rows = getattr(self.cursor, name)(*arguments)
            found.rows += (rows is not None) if name == "fetchone" else len(rows)
            return rows

        return fetch

    with pytest.MonkeyPatch.context() as patch, statements() as sent:
        for name in ("fetchone", "fetchmany", "fetchall"):
            patch.setattr(CursorWrapper, name, counting(name), raising=False)
        yield found
    found.statements = len(sent)


class TestJoining:
    def test_a_request_joins_one_that_no_batch_has_begun(self) -> None:
        items(3)
        told: list[tuple[str, int, int]] = []

        def note(signal: Any, refresh: Refresh, **_kwargs: Any) -> None:
            name = "finished" if signal is refresh_finished else "requested"
            told.append((name, refresh.pk, refresh.requests))

        refresh_requested.connect(note)
        refresh_finished.connect(note)
        asked = [engine.request(Limited, requested_by=str(number)) for number in range(3)]
        inline.run_to_end(asked[-1])
        refresh_requested.disconnect(note)
        refresh_finished.disconnect(note)

        refresh = Refresh.objects.get()
        assert {each.pk for each in asked} == {refresh.pk}
        assert (refresh.requests, requesters(refresh)) == (3, "API: 0, and 2 more requests")
        assert Limited.objects.count() == 3
        requested = [("requested", refresh.pk, number) for number in (1, 2, 3)]
        assert told == [*requested, ("finished", refresh.pk, 3)]

    @pytest.mark.parametrize(
        "options", [{"phases": ["insert"]}, {"batch_size": 5}, {"phases": ["insert", "delete"]}]
    )
    def test_not_one_that_asks_for_something_else(self, options: dict[str, Any]) -> None:
        engine.request(Limited)
        engine.request(Limited, **options)

        assert list(Refresh.objects.values_list("requests", flat=True)) == [1, 1]

    def test_not_one_that_is_to_stop(self) -> None:
        first = engine.request(Limited)
        engine.request_stop(first.pk)

        assert engine.request(Limited).pk != first.pk

    def test_not_within_a_transaction_whose_changes_it_might_miss(self) -> None:
        first = engine.request(Limited)
        with transaction.atomic():
            assert engine.request(Limited).pk != first.pk

    @pytest.mark.parametrize("view", [Limited, Walked, Sharded])
    def test_not_one_of_which_a_batch_has_been_claimed(self, view: type[Any]) -> None:
        items(3)
        first = engine.request(view, batch_size=1)
        engine.run_batch(due(view))
        second = engine.request(view, batch_size=1)
        third = engine.request(view, batch_size=1)

        assert first.pk != second.pk
        assert third.pk == second.pk

    def test_a_worker_that_died_keeps_nobody_from_joining(self) -> None:
        engine.request(Limited)
        message = due(Limited)
        ViewShard.objects.filter(pk=message.shard_id).update(
            claimed_token=message.token, claimed_at=timezone.now(), claims=1
        )
        second, third = engine.request(Limited), engine.request(Limited)
        assert second.pk == third.pk

    @without_sqlite
    @pytest.mark.parametrize("view", [Limited, Walked])
    def test_one_that_comes_while_a_batch_is_at_work_gets_what_it_asks_for(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert not rows_missed_by_requests_during_a_batch(view, monkeypatch)

    @without_sqlite
    def test_and_would_not_if_it_joined(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(requests, "_joinable", joins_whatever_is_open)

        assert rows_missed_by_requests_during_a_batch(Walked, monkeypatch)

    @without_sqlite
    def test_nobody_waits_for_a_row_that_is_locked(self) -> None:
        # given a caller who has asked for the stop of a refresh, and not committed
        first = engine.request(Limited)
        with transaction.atomic():
            engine.request_stop(first.pk)
            asked: list[Refresh] = []
            in_another_connection(lambda: asked.append(engine.request(Limited))).join(10)
            # then another request does not wait for that
            assert asked
            assert asked[0].pk != first.pk

    def test_each_request_sends_a_message(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[Any] = []

        def send(messages: Any, *_tell: Any) -> bool:
            sent.extend(messages)
            return True

        monkeypatch.setattr(tasks, "send", send)
        Limited.refresh()
        Limited.refresh()

        assert len(sent) == 2


def rows_missed_by_requests_during_a_batch(
    view: type[Any], monkeypatch: pytest.MonkeyPatch
) -> set[int]:
    """The rows that a view lacks after they were committed and requested during a batch."""
    Item.objects.bulk_create([Item(pk=pk, value=1) for pk in (100, 101)])
    engine.request(view, phases=["insert"], batch_size=1)
    asked: list[Refresh] = []

    def ask() -> None:
        Item.objects.create(pk=50 - len(asked), value=1)  # behind a cursor that has passed
        asked.append(engine.request(view, phases=["insert"], batch_size=1))

    def meanwhile(_view: type[Any], hook: str) -> None:
        if hook == "do_insert" and len(asked) < 3:
            in_another_connection(ask).join()

    with monkeypatch.context() as patch:
        patch.setattr(Fault, "commit", meanwhile)
        inline.run_until_idle([shard_of(view).pk])
    assert {each.state for each in Refresh.objects.all()} == {RefreshState.SUCCEEDED}
    return set(Item.objects.values_list("pk", flat=True)) - set(
        view.objects.values_list("key", flat=True)
    )


def joins_whatever_is_open(refresh: Refresh) -> Any:
    """A seeded fault: a batch may have begun it."""
    return Refresh.objects.filter(state=RefreshState.OPEN, phases=refresh.phases)


def _settle(refresh: Refresh) -> None:
    engine.close_finished_in_view(refresh.view_id)


class TestMerging:
    def test_requests_of_transactions_are_merged_before_a_batch_begins_them(self) -> None:
        items(3)
        first, *others = [request_apart(Limited) for _ in range(5)]

        engine.close_finished_in_view(first.view_id)

        states = dict(Refresh.objects.values_list("pk", "state"))
        assert states == {
            first.pk: RefreshState.OPEN, **{each.pk: RefreshState.MERGED for each in others}
        }  # fmt: skip
        ended = inline.run_to_end(others[-1])
        assert (ended.state, ended.merged_into_id) == (RefreshState.SUCCEEDED, first.pk)
        assert set(Refresh.objects.values_list("state", flat=True)) == {RefreshState.SUCCEEDED}
        assert PhaseRun.objects.count() == 3
        assert Limited.objects.count() == 3
        assert engine.count_requests(Refresh.objects.get(pk=first.pk)) == 5

    def test_only_those_that_ask_for_the_same(self) -> None:
        request_apart(Limited)
        request_apart(Limited, batch_size=5)
        request_apart(Limited, phases=["insert"])
        last = request_apart(Limited, phases=["insert"])

        engine.close_finished_in_view(last.view_id)

        assert [each.pk for each in Refresh.objects.filter(state=RefreshState.MERGED)] == [last.pk]

    def test_none_that_has_begun(self) -> None:
        items(3)
        first = request_apart(Walked, batch_size=1)
        engine.run_batch(due(Walked))
        second, third = request_apart(Walked, batch_size=1), request_apart(Walked, batch_size=1)

        engine.close_finished_in_view(first.view_id)

        merged = dict(Refresh.objects.values_list("pk", "merged_into"))
        assert merged == {first.pk: None, second.pk: None, third.pk: second.pk}

    def test_one_that_fails_fails_for_all(self) -> None:
        Fault.objects.create(view="Limited", hook="needs_insert", action="raise")
        request_apart(Limited)
        last = request_apart(Limited)

        ended = inline.run_to_end(last)

        assert ended.state == RefreshState.FAILED
        assert "needs_insert was told to fail" in ended.error

    @without_sqlite
    def test_nobody_waits_for_a_caller_that_has_not_committed(self) -> None:
        """MariaDB would: an UPDATE waits for rows that are not there yet."""
        first, *_others = [request_apart(Limited) for _ in range(4)]
        with transaction.atomic():
            engine.request(Limited)
            engine.request_stop(first.pk)
            thread = in_another_connection(lambda: _settle(first))
            thread.join(20)
            assert not thread.is_alive()
            assert Refresh.objects.filter(state=RefreshState.MERGED).count() == 2
            transaction.set_rollback(True)
        with transaction.atomic():
            engine.request(Limited)
            thread = in_another_connection(lambda: inline.run_until_idle([shard_of(Limited).pk]))
            thread.join(20)
            assert not thread.is_alive()

    @without_sqlite
    def test_none_while_a_batch_may_be_beginning_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        items(2)
        first = request_apart(Limited, phases=["insert"])
        states: list[str] = []

        def close_finished() -> None:
            others = [request_apart(Limited, phases=["insert"]) for _ in range(2)]
            engine.close_finished_in_view(first.view_id)
            states.extend(
                Refresh.objects.filter(pk__in=[each.pk for each in others]).values_list(
                    "state", flat=True
                )
            )

        def meanwhile(_view: type[Any], hook: str) -> None:
            if hook == "do_insert" and not states:
                in_another_connection(close_finished).join()

        monkeypatch.setattr(Fault, "commit", meanwhile)
        engine.run_batch(due(Limited))

        assert states == [RefreshState.OPEN] * 2

    def test_few_begin_at_a_time(self) -> None:
        """However many are requested: otherwise each of them would do all of the work again."""
        items(30)
        for _ in range(12):
            request_apart(Walked, batch_size=1)
            engine.run_batch(due(Walked))

        begun = Refresh.objects.filter(state=RefreshState.OPEN, runs__isnull=False).distinct()
        assert begun.count() == MAX_REFRESHES_BEGUN
        waiting = Refresh.objects.filter(state=RefreshState.OPEN, runs=None)
        assert waiting.count() <= 1
        inline.run_until_idle([shard_of(Walked).pk])
        assert set(Refresh.objects.values_list("state", flat=True)) == {RefreshState.SUCCEEDED}

    def test_what_waits_in_one_shard_is_begun_when_another_has_closed_a_refresh(self) -> None:
        # given more requests than begin at a time, all done in the first shard
        items(8)
        sizes = range(1, MAX_REFRESHES_BEGUN + 3)
        last = [engine.request(Sharded, batch_size=size) for size in sizes][-1]
        first, second = ViewShard.objects.filter(view=last.view_id).values_list("pk", flat=True)
        inline.run_until_idle([first])
        assert engine.close_finished(first).message is None
        # when the second closes them
        inline.run_until_idle([second])
        # then nothing is left to be found by maintenance
        assert set(Refresh.objects.values_list("state", flat=True)) == {RefreshState.SUCCEEDED}


class TestStopping:
    def test_a_stop_ends_all_requests(self) -> None:
        engine.request(Limited)
        first = engine.request(Limited)
        merged = request_apart(Limited)
        engine.close_finished_in_view(first.view_id)

        assert engine.request_stop(first.pk)
        assert [each.message for each in engine.close_finished_in_view(first.view_id)] == [None]

        assert set(Refresh.objects.values_list("pk", "state")) == {
            (first.pk, RefreshState.STOPPED), (merged.pk, RefreshState.STOPPED)
        }  # fmt: skip
        assert engine.count_requests(Refresh.objects.get(pk=first.pk)) == 3

    def test_one_that_was_merged_is_stopped_alone(self) -> None:
        items(2)
        first, second = request_apart(Limited), request_apart(Limited)
        engine.close_finished_in_view(first.view_id)

        assert engine.request_stop(second.pk)
        assert not engine.request_stop(second.pk)

        assert inline.run_to_end(first).state == RefreshState.SUCCEEDED
        second.refresh_from_db()
        assert (second.state, second.finished_at is None) == (RefreshState.STOPPED, False)

    def test_one_that_is_to_stop_is_not_merged(self) -> None:
        items(1)
        first, second = request_apart(Limited), request_apart(Limited)
        engine.request_stop(first.pk)

        assert inline.run_to_end(second).state == RefreshState.SUCCEEDED

    def test_the_admin_says_how_many_it_stops(self, admin_client: Client) -> None:
        control = pause(Limited)
        for _ in range(3):
            refresh = engine.request(Limited)
        page = admin_client.get(reverse("admin:matviews_viewcontrol_change", args=[control.pk]))
        assert "This stops all 3 requests." in page.content.decode()
        page = admin_client.get(reverse("admin:matviews_refresh_change", args=[refresh.pk]))
        assert "This stops all 3 requests." in page.content.decode()

        stopped = admin_client.post(
            reverse("admin:matviews_refresh_stop", args=[refresh.pk]), follow=True
        )

        said = f"Refresh {refresh.pk}, which includes 3 requests, has been stopped."
        assert said in stopped.content.decode()


class TestCost:
    """No more statements and rows, whatever number of requests is open.

    Reading which work is due takes a second statement if many are.
    """

    @pytest.mark.parametrize("number", NUMBERS)
    def test_of_another_request_and_of_looking_at_the_view(
        self, number: int, admin_user: User
    ) -> None:
        control = pause(Limited)
        admin = Client()
        admin.force_login(admin_user)
        pages = (
            reverse("admin:matviews_viewcontrol_change", args=[control.pk]),
            reverse("admin:matviews_viewcontrol_changelist"),
        )
        for page in pages:
            admin.get(page)

        def look() -> list[Cost]:
            actions: list[Callable[[], object]] = [
                lambda: engine.request(Limited),
                lambda: request_apart(Limited),
                engine.view_statuses,
                *(partial(admin.get, page) for page in pages),
                lambda: engine.close_finished_in_view(control.pk),
                engine.rescue,
            ]
            found = []
            for action in actions:
                with cost() as each:
                    action()
                found.append(each)
            return found

        insert_requests(Limited, 30)
        few = look()
        Refresh.objects.all().delete()
        insert_requests(Limited, number)
        many = look()
        settled = look()

        more = [each.statements - before.statements for each, before in zip(many, few, strict=True)]
        assert set(more) <= {0, 1}
        more = [each.rows - before.rows for each, before in zip(many, few, strict=True)]
        assert max(more) <= 2 * MAX_REFRESHES_READ
        # In all: a request that joins no other, as its row is locked right then, reads a row less.
        in_all = [sum(each.rows for each in found) for found in (settled, many)]
        assert in_all[0] < in_all[1], (many, settled)

    @pytest.mark.parametrize("number", NUMBERS)
    def test_of_working_them_off(self, number: int) -> None:
        items(3)
        pause(Limited)
        insert_requests(Limited, number)
        pause(Limited, paused=False)

        with cost() as found:
            inline.run_until_idle([shard_of(Limited).pk])

        assert set(Refresh.objects.values_list("state", flat=True)) == {RefreshState.SUCCEEDED}
        assert PhaseRun.objects.count() == 3
        assert found.statements < 80
        assert found.rows < 3 * MAX_REFRESHES_READ

    def test_of_working_off_what_an_earlier_version_has_begun(self) -> None:
        """It made phase runs for each, merged into those of the first."""
        number = 250
        insert_requests(Limited, number)
        shard = shard_of(Limited)
        leaders: dict[str, PhaseRun] = {}
        for refresh in Refresh.objects.order_by("pk"):
            for phase in Phase:
                run = PhaseRun.objects.create(
                    refresh=refresh, shard=shard, phase=phase, merged_into=leaders.get(phase)
                )
                leaders.setdefault(phase, run)
        items(3)

        inline.run_until_idle([shard.pk])

        assert set(Refresh.objects.values_list("state", flat=True)) == {RefreshState.SUCCEEDED}
        assert not PhaseRun.objects.exclude(state="succeeded").exists()
        assert Limited.objects.count() == 3

    def test_of_pressing_refresh_now_again_and_again(self, admin_client: Client) -> None:
        control = ViewControl.objects.get(label="sample.Limited")
        press = reverse("admin:matviews_viewcontrol_refresh", args=[control.pk])
        phases = {"phases": ["insert", "update", "delete"]}
        costs = []
        for _ in range(20):
            with cost() as found:
                admin_client.post(press, phases)
            costs.append(found)

        assert costs[3:] == [costs[2]] * 17
        refresh = Refresh.objects.get()
        assert refresh.requests == 20
        let_time_pass()
        assert len(engine.rescue()) == 1
