"""The admin: what its pages show, what its buttons do, and what it refuses."""

import itertools
import re
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery, current_app
from django.contrib.admin.models import LogEntry
from django.contrib.messages import get_messages
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from matviews import engine, tasks
from matviews.admin.presentation import time_ago
from matviews.models import Heartbeat, Refresh, RefreshSchedule, ViewControl, ViewShard
from matviews.phases import Phase
from matviews.registry import registry
from matviews.states import RefreshState
from matviews.tasks import inline, schedules
from tests.helpers.engine import due
from tests.helpers.ledger import add_items, fault
from tests.helpers.view_classes import make_view, ready, run, six_hooks
from tests.sample.models import Ledger, Limited, Sharded, Walked

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("own_views"),
]

LIST = "/admin/matviews/viewcontrol/"
SCRIPT = "<script>alert(1)</script>"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[engine.Message]:
    """The messages that a broker took."""
    messages: list[engine.Message] = []

    def take(batch: Any) -> bool:
        messages.extend(batch)
        return True

    monkeypatch.setattr(tasks, "send", take)
    return messages


@pytest.fixture
def hanging_broker() -> Iterator[socket.socket]:
    """A Redis that accepts connections and never answers, with the timeouts of the docs."""
    before = current_app._get_current_object()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        app = Celery("hanging", broker=f"redis://127.0.0.1:{port}/0")
        app.conf.broker_transport_options = {"socket_timeout": 2, "socket_connect_timeout": 2}
        app.set_default()
        yield server
        app.close()
    before.set_current()
    before.set_default()


def connections_to(server: socket.socket) -> int:
    """How often somebody has connected; each waits as long as `socket_timeout` says."""
    server.setblocking(False)
    for count in itertools.count():
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return count
    raise AssertionError


def control(label: str = "sample.Limited") -> ViewControl:
    return ViewControl.objects.get(label=label)


def page(label: str = "sample.Limited", action: str = "change") -> str:
    return f"{LIST}{control(label).pk}/{action}/"


def html(client: Client, url: str) -> str:
    answer = client.get(url)
    assert answer.status_code == 200
    return str(answer.content.decode())


def badges(shown: str) -> dict[str, str]:
    """The states that the phases of a view wear."""
    found = re.findall(r'data-badge="(\w+)"><span class="[^"]*">([^<]*)<', shown)
    return dict(found)


def told(answer: Any) -> list[str]:
    return [str(message) for message in get_messages(answer.wsgi_request)]


def act(client: Client, action: str, *labels: str) -> list[str]:
    """Do an action of the list for some views; return the messages."""
    keys = [control(label).pk for label in labels]
    answer = client.post(LIST, {"action": action, "_selected_action": keys})
    assert answer.status_code == 302
    return told(answer)


def noted() -> list[tuple[str, str]]:
    return [(entry.object_repr, entry.get_change_message()) for entry in LogEntry.objects.all()]


def listed(client: Client, query: str = "") -> list[str]:
    answer = client.get(LIST + query)
    return [control.label for control in answer.context["cl"].result_list]


class TestList:
    @pytest.mark.database
    def test_what_needs_a_person_comes_first(self, admin_client: Client) -> None:
        # given views that failed, whose changes are not logged, that are behind, paused, ready, and
        # one that the code no longer has
        with fault(Walked, "do_insert", "raise"):
            add_items(1)
            run(Walked)
        run(Limited)
        run(Ledger)
        long_ago = timezone.now() - timedelta(hours=3)
        ViewControl.objects.filter(label="sample.Limited").update(
            last_delete=long_ago, freshness_target=timedelta(hours=1)
        )
        ViewControl.objects.filter(label="sample.Sharded").update(paused=True)
        ViewControl.objects.create(label="shop.Gone")

        # One of the shapes has errors where the database is SQLite.
        order = [label for label in listed(admin_client) if label != "shapes.JsonKey"]
        shapes = [label for label in order if label.startswith("shapes.")]  # without triggers

        first = order.index(shapes[0])
        assert order[first - 1] == "sample.Walked"
        order = [label for label in order if label not in shapes]
        assert order[:2] == ["sample.Walked", "sample.Limited"]
        assert order.index("shop.Gone") < order.index("sample.Slow")  # never built
        assert order[-2:] == ["sample.Sharded", "sample.Ledger"]
        shown = html(admin_client, LIST)
        assert "behind by 2 h" in shown
        assert "insert: RuntimeError: do_insert was told to fail" in shown

    @pytest.mark.database
    def test_it_takes_as_many_statements_for_60_views_as_for_3(self, admin_client: Client) -> None:
        def statements() -> int:
            with CaptureQueriesContext(connection) as captured:
                html(admin_client, f"{LIST}?all=")
            return len(captured)

        def give_work(label: str) -> None:
            RefreshSchedule.objects.create(view=control(label), every=5, period="minutes")
            run(label)
            engine.request(label)
            engine.request(label)
            shard = ViewShard.objects.get(view__label=label)
            message = engine.close_finished(shard.pk).message
            assert message
            engine.run_batch(message)

        give_work("sample.Limited")
        statements()  # the first time fills Django's caches
        few = statements()
        for number in range(60):
            registry.register(make_view(name=f"Made{number}", **six_hooks()))
        engine.sync_controls()
        give_work("sample.Made1")
        give_work("sample.Made2")

        assert statements() == few

    @pytest.mark.database
    def test_views_are_searched_filtered_and_paged(self, admin_client: Client) -> None:
        run(Limited)
        ViewControl.objects.bulk_create(
            ViewControl(label=f"shop.Gone{number:02}") for number in range(60)
        )
        everything = 60 + len(list(registry))

        assert listed(admin_client, "?q=Limit") == ["sample.Limited"]
        assert listed(admin_client, "?state=NO_TARGET") == []
        assert listed(admin_client, "?state=ok, no target") == ["sample.Limited"]
        assert len(listed(admin_client)) == 50
        assert len(listed(admin_client, f"?p={-(-everything // 50)}")) == (everything - 1) % 50 + 1
        assert len(listed(admin_client, "?all=")) == everything
        assert admin_client.get(f"{LIST}?p=99").status_code == 302
        assert "removed from the code (60)" in html(admin_client, LIST)

    def test_a_refresh_under_way_has_a_bar_with_text(self, admin_client: Client) -> None:
        class Counted:
            left = 40

        options = {"phases": ["insert"]}
        view = ready(
            make_view(
                name="Counted",
                options=options,
                needs_insert=classmethod(lambda cls: Counted.left),
                do_insert=classmethod(lambda cls, limit: limit),
            )
        )
        engine.request(view, batch_size=10)
        engine.run_batch(due(view))

        shown = html(admin_client, f"{LIST}?q=Counted")

        assert re.search(r"<progress [^>]*value=\"25\"[^>]*aria-label=[^>]*>25 %</progress>", shown)

    def test_a_view_that_waits_for_a_worker_says_for_how_long_and_what_the_broker_said(
        self, admin_client: Client
    ) -> None:
        engine.request(Limited)
        Refresh.objects.update(requested_at=engine.now() - timedelta(minutes=7))
        ViewShard.objects.update(resend_after=None)
        Heartbeat.objects.create(send_failed_at=engine.now(), send_error="no route")
        page = f"{LIST}{control('sample.Limited').pk}/change/"

        assert "no worker has taken it for 7 min" in html(admin_client, f"{LIST}?q=Limited")
        shown = html(admin_client, page)
        assert "No worker has taken the message of the refresh requested" in shown
        assert "The last attempt to reach the broker failed: no route." in shown

    def test_it_says_what_is_wrong_with_all_views(self, admin_client: Client) -> None:
        Heartbeat.objects.create(maintenance_ended_at=timezone.now() - timedelta(hours=1))
        problem = schedules.maintenance_problem()
        control("sample.Slow").delete()

        answer = admin_client.get(LIST)

        assert problem
        assert answer.context["maintenance_problem"] == problem
        assert 'role="alert"' in answer.content.decode()
        assert answer.context["without_rows"] == ["sample.Slow"]
        assert answer.context["cl"].full_result_count == ViewControl.objects.count()

    def test_schedules_are_shown_with_when_or_why_not(self, admin_client: Client) -> None:
        RefreshSchedule.objects.create(view=control(), every=7, period="hours", phases=["insert"])
        RefreshSchedule.objects.create(view=control(), every=9, period="days", enabled=False)

        shown = html(admin_client, f"{LIST}?q=Limited")

        assert "every 7 hours (insert)" in shown
        assert "every 9 days" in shown
        assert "disabled: the schedule is disabled" in shown


class TestViewPage:
    def test_what_a_hook_raises_is_text_on_every_page(
        self, admin_client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(cls: type) -> int:
            raise ValueError(SCRIPT)

        hooks = six_hooks(needs_insert=classmethod(fail))
        refresh = run(ready(make_view(name="Wicked", **hooks)))

        pages = [
            html(admin_client, LIST),
            html(admin_client, page("sample.Wicked")),
            html(admin_client, f"/admin/matviews/refresh/{refresh.pk}/change/"),
        ]

        assert all(SCRIPT not in each and ESCAPED in each for each in pages)
        assert "Traceback (most recent call last)" in pages[1]
        assert "in fail" in pages[1]

    def test_pages_have_no_script_and_no_style_of_their_own(self, admin_client: Client) -> None:
        add_items(20)
        run(Limited)
        RefreshSchedule.objects.create(view=control(), every=5)
        refresh = engine.request(Limited, batch_size=5)
        engine.run_batch(due(Limited))
        ViewControl.objects.create(label="shop.Gone")
        pages = [
            LIST,
            page(),
            page("shop.Gone", "delete"),
            "/admin/matviews/refresh/",
            f"/admin/matviews/refresh/{refresh.pk}/change/",
        ]

        for url in pages:
            shown = html(admin_client, url)
            tags = re.findall(r"<[a-z][^>]*>", shown)
            assert [tag for tag in tags if re.search(r"\s(style|on\w+)\s*=", tag)] == [], url
            assert [tag for tag in tags if tag.startswith("<script") and "src=" not in tag] == []
            assert "<style" not in shown

    @pytest.mark.database
    def test_it_takes_as_many_statements_for_many_refreshes(self, admin_client: Client) -> None:
        def statements() -> int:
            with CaptureQueriesContext(connection) as captured:
                html(admin_client, page())
            return len(captured)

        def work(times: int) -> None:
            for _number in range(times):
                run(Limited)
            for _number in range(times):
                engine.request(Limited)
            engine.run_batch(due(Limited))

        add_items(3)
        work(2)
        statements()  # the first time fills Django's caches
        few = statements()
        Refresh.objects.all().delete()
        work(25)

        assert statements() == few

    @pytest.mark.database
    def test_progress_is_a_few_values_in_a_few_statements(self, admin_client: Client) -> None:
        add_items(30)
        refresh = engine.request(Limited, batch_size=10)
        engine.run_batch(due(Limited))
        url = page(action="progress")

        with CaptureQueriesContext(connection) as captured:
            answer = admin_client.get(url)

        assert answer.json() == {
            "refresh": refresh.pk,
            "works": True,
            "done": pytest.approx(1 / 3, abs=0.01),
            "phases": {
                "insert": answer.json()["phases"]["insert"],
                "update": "pending",
                "delete": "pending",
            },
            "badges": {
                "insert": ["matviews-badge matviews-busy", "running"],
                "update": ["matviews-badge matviews-quiet", "pending"],
                "delete": ["matviews-badge matviews-quiet", "pending"],
            },
            "words": "insert: " + answer.json()["phases"]["insert"],
            "verifying": "",
        }
        assert answer.json()["phases"]["insert"].startswith("10 of about 30 rows")
        assert "no-store" in answer["Cache-Control"]
        assert len(answer.content) < 600
        assert len(captured) <= 8  # two of them are the session and the user

    def test_progress_ends_when_nothing_is_open(self, admin_client: Client) -> None:
        run(Limited)

        assert admin_client.get(page(action="progress")).json()["works"] is False
        # and a view that is paused has nothing to tell until it is resumed
        engine.request(Limited)
        ViewControl.objects.update(paused=True)
        assert admin_client.get(page(action="progress")).json()["works"] is False

    def test_a_page_made_while_a_refresh_ended_asks_how_it_is(
        self, admin_client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refresh = engine.request(Limited)
        statuses = engine.view_statuses

        def end_it_then(labels: list[str] | None = None) -> list[engine.ViewStatus]:
            found = statuses(labels)
            inline.run_to_end(refresh)
            return found

        monkeypatch.setattr(engine, "view_statuses", end_it_then)

        assert 'data-works="yes"' in html(admin_client, page())

    @pytest.mark.parametrize("state", ["stopped", "failed", "not_converging"])
    def test_progress_tells_of_a_phase_that_ended_without_success(
        self, admin_client: Client, state: str
    ) -> None:
        add_items(10)
        refresh = engine.request(Limited, batch_size=10)
        engine.run_batch(due(Limited))
        refresh.runs.filter(phase="insert").update(state=state)

        live = admin_client.get(page(action="progress")).json()

        assert live["phases"]["insert"] == f"10 rows, {state.replace('_', ' ')}"

    def test_large_numbers_are_written_for_scripts_and_addresses_as_they_are(
        self, admin_client: Client, settings: Any
    ) -> None:
        settings.USE_THOUSAND_SEPARATOR = True
        refresh = Refresh.objects.create(
            pk=1234567,
            view=control(),
            phases=["insert"],
            origin="api",
            requested_at=timezone.now(),
        )
        gone = ViewControl.objects.create(pk=7654321, label="shop.Gone")
        gone.refreshes.create(phases=["insert"], origin="api", requested_at=timezone.now())

        for url in (page(), f"/admin/matviews/refresh/{refresh.pk}/change/"):
            assert 'data-refresh="1234567"' in html(admin_client, url)
        assert "?view__id__exact=7654321" in html(admin_client, page("shop.Gone"))

    def test_shards_are_taken_together(self, admin_client: Client) -> None:
        add_items(7)
        run(Sharded)

        assert "7 rows in 2 batches" in html(admin_client, page("sample.Sharded"))

    def test_a_time_is_told_in_projects_without_time_zones(self, settings: Any) -> None:
        settings.USE_TZ = False

        assert "1 d ago</time>" in time_ago(timezone.now() - timedelta(days=1))

    def test_what_is_going_on_comes_first_and_the_settings_last(self, admin_client: Client) -> None:
        shown = html(admin_client, page("shapes.QuantityTotal"))
        ids = re.findall(r'id="matviews-(\w+)-heading"|id="(viewcontrol)_form"', shown)
        order = [section or form for section, form in ids]
        sections = ["status", "phases", "history", "source", "parked", "verification"]
        assert order == [*sections, "viewcontrol"]

    def test_a_running_phase_does_not_wear_the_state_of_the_last_run(
        self, admin_client: Client
    ) -> None:
        # given a view that was refreshed, whose next refresh has been claimed by another worker
        run(Limited)
        add_items(1)
        engine.request(Limited)
        shard = ViewShard.objects.get(view=control())
        ViewShard.objects.filter(pk=shard.pk).update(
            claimed_token=shard.token, claimed_at=timezone.now(), worker="elsewhere:7"
        )

        shown = html(admin_client, page())

        assert badges(shown) == {"insert": "running", "update": "pending", "delete": "pending"}
        assert "Running: <b>insert</b> on elsewhere:7" in shown
        live = admin_client.get(page(action="progress")).json()
        assert live["badges"]["insert"] == ["matviews-badge matviews-busy", "running"]

    def test_a_refresh_that_nobody_takes_says_so(self, admin_client: Client) -> None:
        engine.request(Limited)
        ViewShard.objects.update(resend_after=None, resends=3)

        shown = html(admin_client, page())

        assert "No worker has taken the message of the refresh requested" in shown
        assert "It was sent again 3 times." in shown

    def test_the_history_tells_waiting_from_work(self, admin_client: Client) -> None:
        add_items(3)
        refresh = run(Limited)
        start = timezone.now() - timedelta(minutes=1)
        Refresh.objects.filter(pk=refresh.pk).update(
            requested_at=start,
            started_at=start + timedelta(seconds=2),
            finished_at=start + timedelta(seconds=5),
        )
        refresh.runs.update(seconds=0, started_at=start + timedelta(seconds=2))
        refresh.runs.filter(phase="insert").update(seconds=0.5)
        words = "waited 2.0 s, worked 500 ms, 2.5 s between batches"

        for url in (page(), f"/admin/matviews/refresh/{refresh.pk}/change/"):
            shown = html(admin_client, url)
            assert words in shown
            # and the bar has the same scale
            assert '<rect class="waiting" x="0" y="5" width="400" height="2"/>' in shown
            assert '<rect class="working" x="400" y="0" width="100" height="12"/>' in shown
            assert '<rect class="waiting" x="500" y="5" width="500" height="2"/>' in shown
        assert "insert: 3 rows" in html(admin_client, page())

    def test_a_view_whose_code_is_gone_has_a_page(self, admin_client: Client) -> None:
        ViewControl.objects.create(label="shop.Gone")

        assert "removed from the code" in html(admin_client, page("shop.Gone"))


@pytest.mark.django_db(transaction=True)
class TestActions:
    @pytest.mark.database
    def test_refresh_now_asks_for_the_views_and_sends(
        self, admin_client: Client, sent: list[engine.Message]
    ) -> None:
        messages = act(admin_client, "refresh_now", "sample.Limited", "sample.Walked")

        asked = Refresh.objects.values_list("view__label", "origin", "requested_by", "phases")
        assert sorted(asked) == [
            ("sample.Limited", "admin", "admin", list(Phase.values)),
            ("sample.Walked", "admin", "admin", list(Phase.values)),
        ]
        assert [message.phase for message in sent] == [Phase.INSERT, Phase.INSERT]
        assert messages == ["Refresh of sample.Limited, sample.Walked queued."]
        assert sorted(label for label, _what in noted()) == ["sample.Limited", "sample.Walked"]

    def test_what_is_refused_is_named_and_the_others_go_on(
        self, admin_client: Client, sent: list[engine.Message]
    ) -> None:
        ViewControl.objects.filter(label="sample.Walked").update(enabled=False)
        ViewControl.objects.create(label="shop.Gone")
        ready(make_view(name="Faulty"))

        messages = act(
            admin_client,
            "refresh_now", "sample.Walked", "shop.Gone", "sample.Faulty", "sample.Limited",
        )  # fmt: skip

        assert Refresh.objects.get().view == control()
        assert len(messages) == 4
        assert any("sample.Walked" in each and "disabled" in each for each in messages)
        assert any("shop.Gone" in each and "no longer" in each for each in messages)
        assert any("sample.Faulty" in each and "manage.py check" in each for each in messages)

    def test_phases_are_chosen_on_the_view_page(
        self, admin_client: Client, sent: list[engine.Message]
    ) -> None:
        answer = admin_client.post(page(action="refresh"), {"phases": ["insert", "delete"]})

        assert answer.headers["Location"] == page()
        assert Refresh.objects.get().phases == ["insert", "delete"]
        # and none, or one that the view lacks, is refused
        nothing = admin_client.post(page(action="refresh"))
        lacking = admin_client.post(page("sample.Ledger", "refresh"), {"phases": ["delete"]})
        assert "Tick at least one phase." in told(nothing)[-1]
        assert "It has only these phases: insert." in told(lacking)[-1]
        assert Refresh.objects.count() == 1

    @pytest.mark.database
    def test_a_paused_view_waits_until_it_is_resumed(
        self, admin_client: Client, sent: list[engine.Message]
    ) -> None:
        act(admin_client, "pause", "sample.Limited", "sample.Walked")
        messages = act(admin_client, "refresh_now", "sample.Limited")
        assert control().paused
        assert messages[1:] == ["Refresh of sample.Limited queued; it waits until resumed."]
        assert sent == []

        act(admin_client, "resume", "sample.Limited", "sample.Walked")

        assert not ViewControl.objects.filter(paused=True).exists()
        assert [message.phase for message in sent] == [Phase.INSERT]
        assert [what for label, what in noted() if label == "sample.Walked"] == [
            "Resumed.",
            "Paused.",
        ]
        assert "Nothing changed." in act(admin_client, "resume", "sample.Limited")[-1]

    def test_a_suspended_view_says_so_and_is_resumed_by_a_person(
        self, admin_client: Client, sent: list[engine.Message]
    ) -> None:
        # given a view that failed twice, and so is suspended, with a request that waits
        add_items(1)
        soon = {"SUSPEND_AFTER_FAILURES": 1, "SUSPEND_AFTER": timedelta(microseconds=1)}
        with override_settings(MATVIEWS=soon), fault(Limited, "do_insert", "raise"):
            run(Limited), run(Limited)
        engine.request(Limited)
        # then list and page say so
        assert "failed 2 times in a row, suspended" in html(admin_client, LIST)
        shown = html(admin_client, page())
        assert re.search(r"Failed 2 times in a row, the first time <time.*Suspended <time", shown)
        assert page(action="resume-suspended") in html(admin_client, page())
        # and the action resumes it, is recorded, and does nothing to the others
        messages = act(admin_client, "resume_suspended", "sample.Limited", "sample.Walked")
        assert messages == ["No longer suspended: sample.Limited."]
        assert (control().failures, control().suspended_at) == (1, None)
        assert [message.shard_id for message in sent] == [ViewShard.objects.get(view=control()).pk]
        assert noted() == [("sample.Limited", "Resumed after 2 failures.")]
        assert "Nothing changed." in act(admin_client, "resume_suspended", "sample.Limited")[-1]

    def test_a_failing_view_says_when_it_tries_again(self, admin_client: Client) -> None:
        add_items(1)
        with fault(Limited, "do_insert", "raise"):
            run(Limited)

        for url, words in (
            (LIST, r"failed once; tries again in (\d+|\d\.\d) s"),
            (page(), r"Failed once, .* It tries again in (\d+|\d\.\d) s at the earliest, or now."),
        ):
            shown = re.search(words, html(admin_client, url))
            assert shown
            assert float(shown[1]) <= 10
        # and now is a button
        assert "Try now</button>" in html(admin_client, page())

    def test_the_page_has_buttons_for_both(
        self, admin_client: Client, sent: list[engine.Message]
    ) -> None:
        admin_client.post(page(action="pause"))
        assert control().paused
        shown = html(admin_client, page())
        assert page(action="resume") in shown
        assert re.search(r"Paused <time.*</time> by admin; requests wait.", shown)
        ViewControl.objects.update(paused_by="")
        assert "by an unknown user. Requests wait." in html(admin_client, page())

        admin_client.post(page(action="resume"))
        assert not control().paused
        assert page(action="pause") in html(admin_client, page())

    @pytest.mark.database
    def test_a_refresh_is_stopped_at_once_where_nobody_is_at_work(
        self, admin_client: Client, sent: list[engine.Message]
    ) -> None:
        refresh = engine.request(Limited)
        url = f"/admin/matviews/refresh/{refresh.pk}/stop/"
        assert url in html(admin_client, page())

        stopped = admin_client.post(url, {"back": "view"})
        again = admin_client.post(url)

        refresh.refresh_from_db()
        assert refresh.state == RefreshState.STOPPED
        assert "has been stopped" in told(stopped)[0]
        assert "has already ended" in told(again)[-1]
        assert stopped.headers["Location"] == page()
        assert f"Requested a stop of refresh {refresh.pk}." in html(
            admin_client, page(action="history")
        )

    def test_the_workers_are_told_after_the_commit(
        self, admin_client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
        within: list[bool] = []

        def note(view_ids: list[int]) -> bool:
            within.append(connection.in_atomic_block)
            return True

        monkeypatch.setattr(tasks, "dispatch_all", note)

        messages = act(admin_client, "refresh_now", "sample.Limited")

        assert within == [False]
        assert messages == [
            "Refresh of sample.Limited queued. The workers are notified after the commit."
        ]

    @pytest.mark.parametrize("action", ["refresh_now", "resume"])
    def test_a_broker_that_is_down_is_tried_once_for_many_views(
        self, admin_client: Client, monkeypatch: pytest.MonkeyPatch, action: str
    ) -> None:
        tries: list[object] = []

        def refuse(*args: object, **options: object) -> None:
            tries.append(args)
            raise ConnectionError("no broker")

        monkeypatch.setattr(tasks.insert_batch, "apply_async", refuse)
        labels = [definition.label for definition in registry]
        if action == "resume":
            ViewControl.objects.update(paused=True)
            for label in labels:
                engine.request(label)

        messages = act(admin_client, action, *labels)

        assert len(tries) == 1
        assert "The broker is unreachable (no broker); matviews.maintain notifies" in messages[0]
        assert Refresh.objects.filter(state=RefreshState.OPEN).count() == len(labels)

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("action", ["refresh_now", "resume"])
    def test_an_action_waits_for_a_broker_that_hangs_only_once(
        self, admin_client: Client, hanging_broker: socket.socket, action: str
    ) -> None:
        labels = [definition.label for definition in registry]
        if action == "resume":
            ViewControl.objects.update(paused=True)
            for label in labels:
                engine.request(label)

        messages = act(admin_client, action, *labels)

        assert connections_to(hanging_broker) == 1
        assert "matviews.maintain notifies the workers when it is back." in messages[0]

    def test_every_post_needs_its_csrf_token(self, admin_user: Any) -> None:
        client = Client(enforce_csrf_checks=True)
        client.force_login(admin_user)
        refresh = engine.request(Limited)

        for action in ("refresh", "pause", "resume", "change"):
            assert client.post(page(action=action), {"phases": "insert"}).status_code == 403
        assert client.post(f"/admin/matviews/refresh/{refresh.pk}/stop/").status_code == 403
        assert client.post(LIST, {"action": "pause"}).status_code == 403
        # and the page brings one for each of its forms
        shown = html(client, page())
        assert shown.count("csrfmiddlewaretoken") >= shown.count('method="post"') > 4


class TestRows:
    @pytest.mark.database
    def test_a_view_is_deleted_with_its_bookkeeping_once_the_code_has_it_no_more(
        self, admin_client: Client
    ) -> None:
        run(Limited)
        RefreshSchedule.objects.create(view=control(), every=5)
        gone = page(action="delete")
        assert admin_client.get(gone).status_code == 403
        registry.unregister("sample.Limited")

        assert "Refreshes: 1" in html(admin_client, gone)
        assert admin_client.post(gone, {"post": "yes"}).status_code == 302

        assert not ViewControl.objects.filter(label="sample.Limited").exists()
        assert not Refresh.objects.exists()

    def test_nobody_adds_a_view(self, admin_client: Client) -> None:
        assert admin_client.get(f"{LIST}add/").status_code == 403
        assert "add/" not in "".join(
            re.findall(r'href="[^"]*viewcontrol/[^"]*"', html(admin_client, LIST))
        )
