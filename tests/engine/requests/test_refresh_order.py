"""Refreshes of several views by one request: in order, whoever runs them."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import current_app
from django.db import connection, models
from django.db.models import F
from django.test.utils import CaptureQueriesContext

import matviews
from matviews import MaterializedView, engine, tasks
from matviews.exceptions import ViewDisabled
from matviews.models import Origin, Refresh
from matviews.states import RefreshState
from matviews.tasks.problems import check_health
from tests.helpers import tables
from tests.helpers.engine import let_time_pass
from tests.helpers.view_classes import six_hooks
from tests.helpers.view_graphs import DIAMOND, Views, built, label, label_names
from tests.sample.models import Item

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]


@pytest.fixture
def views() -> Iterator[Views]:
    """The diamond, without schedules."""
    with built(DIAMOND, None) as found:
        yield found


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is sent to workers, in order."""
    messages: list[Any] = []

    def keep(new: Any) -> bool:
        messages.extend(new)
        return True

    monkeypatch.setattr(tasks, "send", keep)
    return messages


def work(sent: list[Any]) -> str:
    """Let a worker take the messages; the views of its batches, in order."""
    ran = ""
    while sent:
        message = sent.pop(0)
        found = engine.run_batch(message).work
        ran += label_names([found.shard.view.label]) if found else ""
        tasks._send_due([engine.close_finished(message.shard_id)])
    return ran


def newest() -> dict[str, Refresh]:
    """The newest refresh of each view, by its name."""
    found = Refresh.objects.select_related("view").order_by("pk")
    return {label_names([each.view.label]): each for each in found}


class TestRequest:
    def test_downstream_follows_in_order(self, views: Views, sent: list[Any]) -> None:
        views.change()
        requested = matviews.refresh(label("A"), downstream=True)
        waiting = len(sent)

        assert work(sent) == "ABCD"
        assert waiting == 1
        assert views.is_right()
        found = newest()
        assert requested == found["A"]
        assert [found[name].origin for name in "ABCD"] == [Origin.API, *3 * [Origin.DEPENDENCY]]
        assert found["D"].upstream_refreshes == [found["B"].pk, found["C"].pk]

    def test_upstream_goes_ahead(self, views: Views, sent: list[Any]) -> None:
        views.change()
        requested = views.models["D"].refresh(upstream=True)

        assert work(sent) == "ABCD"
        assert views.is_right()
        assert requested == newest()["D"]
        assert {each.origin for each in newest().values()} == {Origin.API}

    def test_nothing_changed_upstream_is_done_at_once(self, views: Views, sent: list[Any]) -> None:
        requested = views.models["D"].refresh(upstream=True, downstream=True)

        assert requested.state == RefreshState.SUCCEEDED
        assert sent == []
        assert not any(each.waits_for_upstream for each in newest().values())

    def test_a_refresh_that_waits_is_neither_joined_nor_merged(
        self, views: Views, sent: list[Any]
    ) -> None:
        views.change()
        matviews.refresh(label("A"), downstream=True)
        waiting = newest()["B"]
        again = matviews.refresh(label("B"))
        engine.close_finished_in_view(waiting.view_id)

        assert again != waiting
        work(sent)
        assert Refresh.objects.get(pk=waiting.pk).state == RefreshState.SUCCEEDED
        assert views.is_right()

    @pytest.mark.parametrize(
        "state", [{"paused": True}, {"suspended_at": "now"}, {"enabled": False}]
    )
    def test_a_view_that_cannot_go_on_is_not_waited_for(
        self, views: Views, sent: list[Any], state: dict[str, Any]
    ) -> None:
        views.change()
        matviews.refresh(label("A"), downstream=True)
        moment = {"now": engine.now()}
        views.set("B", **{name: moment.get(str(value), value) for name, value in state.items()})

        assert work(sent) == "ACD"

    def test_a_refresh_that_is_stopped_is_not_waited_for(
        self, views: Views, sent: list[Any]
    ) -> None:
        views.change()
        matviews.refresh(label("A"), downstream=True)
        engine.request_stop(newest()["B"].pk)
        engine.close_finished_in_view(newest()["B"].view_id)

        assert work(sent) == "ACD"
        assert newest()["B"].state == RefreshState.STOPPED

    def test_a_disabled_neighbour_is_left_out(self, views: Views, sent: list[Any]) -> None:
        views.set("B", enabled=False)
        views.change()
        before = newest()["B"]
        matviews.refresh(label("A"), downstream=True)

        assert work(sent) == "ACD"
        assert newest()["B"] == before

    def test_a_view_that_is_refused_leaves_nothing(self, views: Views, sent: list[Any]) -> None:
        views.set("D", enabled=False)
        views.change()
        before = newest()

        with pytest.raises(ViewDisabled):
            matviews.refresh(label("D"), upstream=True)

        assert newest() == before

    def test_what_was_not_sent_is_rescued(self, views: Views, sent: list[Any]) -> None:
        """A worker was killed between the end of one refresh and the message of the next."""
        views.change()
        matviews.refresh(label("A"), downstream=True)
        engine.run_batch(sent.pop())
        engine.close_finished_in_view(newest()["A"].view_id)
        let_time_pass()
        sent += engine.rescue()

        assert len(sent) == 2
        assert sorted(work(sent)) == ["B", "C", "D"]

    def test_eager_tasks_follow_too(self, views: Views) -> None:
        before = current_app.conf.task_always_eager
        current_app.conf.task_always_eager = True
        views.change()
        try:
            matviews.refresh(label("A"), downstream=True)
        finally:
            current_app.conf.task_always_eager = before

        assert views.is_right()

    def test_without_neighbours_it_costs_as_much_as_before(self, views: Views) -> None:
        engine.request(label("A"))

        with CaptureQueriesContext(connection) as plain:
            engine.request(label("A"))
        with CaptureQueriesContext(connection) as ordered:
            engine.request_with_neighbours(label("A"))

        assert len(ordered) == len(plain)


class TestStatus:
    def trouble(self, views: Views, **values: Any) -> engine.ViewStatus:
        views.set("A", **values)
        (status,) = engine.view_statuses([label("D")])
        return status

    def test_a_paused_view_upstream(self, views: Views) -> None:
        status = self.trouble(views, paused=True)
        data = views.models["D"].status()

        assert (status.state, status.on_time) == ("upstream paused", False)
        assert (data.state, data.on_time) == ("upstream paused", False)
        assert data.upstream_paused == (label("A"),)
        assert not views.models["D"].is_fresh()
        views.set("A", paused=False)
        assert views.models["D"].is_fresh()
        assert views.models["D"].status().on_time

    @pytest.mark.parametrize("values", [{"failures": 1}, {"suspended_at": "now"}])
    def test_a_failed_view_upstream(self, views: Views, values: dict[str, Any]) -> None:
        now = engine.now()
        status = self.trouble(
            views, **{name: now if value == "now" else value for name, value in values.items()}
        )
        data = views.models["D"].status()

        assert (status.state, status.upstream.failed) == ("upstream failed", (label("A"),))
        assert (data.state, data.upstream_failed) == ("upstream failed", (label("A"),))
        assert not views.models["D"].is_fresh()

    @pytest.mark.parametrize(
        ("values", "kind"),
        [({"paused": True}, "upstream paused"), ({"failures": 1}, "upstream failed")],
    )
    def test_health_names_the_view_upstream(
        self, views: Views, values: dict[str, Any], kind: str
    ) -> None:
        self.trouble(views, **values)
        problems = {each.view: each for each in check_health().problems}

        assert problems[label("D")].kind == kind
        assert problems[label("D")].text.endswith(f" ({label('A')})")

    def test_a_view_itself_is_none_of_them(self, views: Views) -> None:
        self.trouble(views, failures=1)
        (status,) = engine.view_statuses([label("A")])

        assert status.state == "failed"
        assert not any(status.upstream)
        states = {each.label: each.state for each in engine.view_statuses()}
        assert [states[label(name)] for name in "ABCD"] == ["failed", *3 * ["upstream failed"]]

    def test_only_a_view_that_reads_others_costs_a_statement(self, views: Views) -> None:
        counts = []
        for name in "AD":
            views.models[name].status()
            with CaptureQueriesContext(connection) as captured:
                views.models[name].status()
            counts.append(len(captured))

        assert counts == [2, 3]


def test_hooks_have_edges_if_they_are_declared(alone: None) -> None:
    tables.derived_view(lambda cls: Item.objects.values(ref=F("pk")), name="Read", ref=tables.key())
    members = six_hooks()
    for name, options in (("Declared", {"depends_on": {label("Read"): None}}), ("Silent", {})):
        model = tables.model(
            name,
            bases=(MaterializedView, models.Model),
            MatviewMeta=type("MatviewMeta", (), options),
            **members,
        )
        assert model

    graph = engine.view_graph()

    assert graph.views_read[label("Declared")] == (label("Read"),)
    assert graph.views_read[label("Silent")] == ()
    assert engine.in_order([label("Declared"), label("Read")]) == [label("Read"), label("Declared")]
