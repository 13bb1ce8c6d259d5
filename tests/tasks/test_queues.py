"""Which Celery queue the messages of a view go to."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from celery import Celery
from django.test import override_settings

from benchmarks.statements import statements
from matviews import engine, health, tasks
from matviews.json_fields import Cost
from matviews.models import RefreshSchedule, ViewControl, ViewShard
from matviews.registry import registry
from matviews.tasks import checks, periodic, problems, queues
from tests.helpers.engine import let_time_pass, shard_of
from tests.helpers.ledger import add_items
from tests.helpers.source_views import sourced, staged, windowed
from tests.helpers.view_classes import make_view, ready, six_hooks
from tests.sample.models import Limited

pytestmark = [pytest.mark.database, pytest.mark.django_db]

LABEL = "sample.Limited"


@pytest.fixture(autouse=True)
def rows(db: None) -> None:
    engine.sync_controls()


@pytest.fixture
def sent() -> Iterator[mock.Mock]:
    with mock.patch.object(tasks.insert_batch, "apply_async") as sent:
        yield sent


def put_into(queue: str) -> None:
    ViewControl.objects.filter(label=LABEL).update(queue=queue)


def queues_of(sent: mock.Mock) -> list[str | None]:
    return [call.kwargs["queue"] for call in sent.call_args_list]


def coded(queue: str) -> type[Any]:
    return ready(make_view("Coded", options={"queue": queue}, **six_hooks()))


@pytest.mark.parametrize(
    ("own", "coded_in", "setting", "expected"),
    [
        ("", None, None, None),
        ("", None, "all", "all"),
        ("", "code", "all", "code"),
        ("own", "code", "all", "own"),
    ],
)
def test_the_queue_is_the_operators_then_the_codes_then_the_settings(
    own: str, coded_in: str | None, setting: str | None, expected: str | None
) -> None:
    with registry.preserved(), override_settings(MATVIEWS={"CELERY_QUEUE": setting}):
        view = ready(make_view("Coded", options={"queue": coded_in}, **six_hooks()))
        label = view._meta.label
        ViewControl.objects.filter(label=label).update(queue=own)

        (status,) = engine.view_statuses([label])

        assert ViewControl.objects.get(label=label).queue_name == expected
        assert status.queue == expected


def test_the_next_message_goes_to_the_queue_that_an_operator_has_just_set(
    sent: mock.Mock,
) -> None:
    add_items(3)
    refresh = engine.request(Limited)
    tasks.dispatch(refresh.view_id)
    put_into("big")
    tasks.dispatch(refresh.view_id)

    assert queues_of(sent) == [None, "big"]


def test_sending_reads_no_queue(sent: mock.Mock) -> None:
    put_into("big")
    engine.request(Limited)
    message = engine.close_finished(shard_of(Limited).pk).message

    with statements() as found:
        assert tasks.send([message] if message else [])

    assert (found, queues_of(sent)) == ([], ["big"])


def test_what_is_sent_again_goes_there_too_and_the_log_names_the_queue(
    sent: mock.Mock, caplog: pytest.LogCaptureFixture
) -> None:
    put_into("big")
    add_items(3)
    engine.request(Limited)
    tasks.maintain()
    let_time_pass()
    tasks.maintain()

    assert queues_of(sent) == ["big", "big"]
    assert "queue=big views=sample.Limited" in caplog.text


def test_a_broker_that_refuses_is_named_with_the_queue(
    sent: mock.Mock, caplog: pytest.LogCaptureFixture
) -> None:
    put_into("big")
    sent.side_effect = OSError("refused")

    tasks.dispatch(engine.request(Limited).view_id)

    assert "message not sent" in caplog.text
    assert "queue=big" in caplog.text


def test_schedules_and_delayed_starts_go_to_the_queue_of_the_view() -> None:
    put_into("big")
    schedule = RefreshSchedule.objects.create(
        view=ViewControl.objects.get(label=LABEL), every=5, period="minutes"
    )

    desired = periodic.desired_tasks()
    fields = desired[periodic.name_of(schedule)].fields
    tasks.refresh.push_request(**json.loads(fields["headers"]))
    try:
        with mock.patch.object(tasks.refresh, "apply_async") as delayed:
            tasks.refresh.run(LABEL, jitter=5)
    finally:
        tasks.refresh.pop_request()

    assert fields["queue"] == "big"
    assert desired[periodic.MAINTENANCE].fields["queue"] is None
    assert queues_of(delayed) == ["big"]


def test_health_names_the_queue_that_no_worker_listens_to() -> None:
    put_into("big")
    refresh = engine.request(Limited)
    refresh.requested_at -= problems.MAX_WAIT
    refresh.save()
    ViewShard.objects.update(resend_after=None)

    texts = [each.text for each in health.check_health().problems if each.kind == "no worker"]

    assert [text.endswith("listens to big.") for text in texts] == [True]


class TestW042:
    @pytest.fixture
    def app(self, monkeypatch: pytest.MonkeyPatch) -> Celery:
        app = Celery("shop", set_as_current=False)
        monkeypatch.setattr(checks, "current_app", app)
        return app

    def messages(self) -> list[str]:
        found = checks.check_queues(databases=[engine.alias()])
        assert {each.id for each in found} <= {"matviews.W042"}
        return [each.msg for each in found if each.msg.startswith(LABEL)]

    @pytest.mark.parametrize("name", ["", "big", "größte", "a" * 255])
    def test_a_name_that_brokers_accept(self, app: Celery, name: str) -> None:
        put_into(name)
        assert self.messages() == []

    @pytest.mark.parametrize("name", [" big", "amq.big", "a\nb", "ä" * 128])
    def test_a_name_that_brokers_refuse(self, app: Celery, name: str) -> None:
        put_into(name)
        (message,) = self.messages()
        assert "must be the name of a queue" in message

    def test_a_queue_that_celery_does_not_know_and_may_not_create(self, app: Celery) -> None:
        app.conf.update(task_create_missing_queues=False)
        put_into("celery")
        assert self.messages() == []
        put_into("big")
        (message,) = self.messages()
        assert "is not in task_queues" in message

    def test_without_tables_or_with_another_database_it_says_nothing(self) -> None:
        assert checks.check_queues(databases=["other"]) == []


def test_a_route_that_raises_has_no_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("shop", set_as_current=False)
    app.conf.task_routes = [lambda *_args, **_kwargs: 1 / 0]
    monkeypatch.setattr(queues, "current_app", app)
    assert queues.queue_of("matviews.refresh") == ""
    assert queues.queues_in_words("matviews.refresh", queue="x") == "the queue of its tasks"


class TestW044:
    """A staged view beside one that has to be fresher than its statement allows."""

    @pytest.fixture(autouse=True)
    def views(self) -> Iterator[None]:
        with registry.preserved():
            for name in ("Staged", "Beside"):
                sourced(staged if name == "Staged" else windowed, name=name)
            self.target("sample.Beside", timedelta(seconds=10))
            self.takes(30.0)
            yield

    def target(self, label: str, target: timedelta | None) -> None:
        ViewControl.objects.filter(label=label).update(freshness_target=target)

    def takes(self, seconds: float) -> None:
        shard = ViewShard.objects.get(view__label="sample.Staged")
        shard.costs = {"insert": Cost(full=seconds)}
        shard.save()

    def found(self) -> list[str]:
        problems = checks.check_staged_views(databases=[engine.alias()])
        assert {each.id for each in problems} <= {"matviews.W044"}
        return [each.msg for each in problems]

    def test_it_is_named_with_the_other_and_the_queue(self) -> None:
        (message,) = self.found()
        assert message.startswith("sample.Staged: its source is computed in one statement")
        assert "up to 30 s" in message
        assert "sample.Beside" in message

    def test_not_if_it_is_quick_or_alone_on_its_queue_or_nobody_is_in_a_hurry(self) -> None:
        self.takes(9.0)
        assert self.found() == []
        self.takes(30.0)
        ViewControl.objects.filter(label="sample.Staged").update(queue="big")
        assert self.found() == []
        ViewControl.objects.update(queue="")
        self.target("sample.Beside", None)
        assert self.found() == []
        self.target("sample.Staged", timedelta(seconds=1))  # its own
        assert self.found() == []

    def test_of_unknown_cost_the_limit_counts_that_it_asks_for(self) -> None:
        ViewShard.objects.update(costs={})
        assert self.found() == []
        sourced(staged, name="Limited2", options={"statement_timeout": 600})
        (message,) = self.found()
        assert "10 min" in message
