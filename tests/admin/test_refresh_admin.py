"""Refreshes in the admin: the list, the page of one, and the button that stops it."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from matviews import engine
from matviews.admin import refresh_admin
from matviews.models import PhaseRun, Refresh, ViewControl
from matviews.states import RefreshState
from tests.helpers.engine import (
    due,
    held_by_another_worker,
    request_apart,
    shard_of,
    without_sqlite,
)
from tests.helpers.ledger import add_items, fault
from tests.helpers.view_classes import run
from tests.sample.models import Limited, Sharded, Walked

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

LIST = "/admin/matviews/refresh/"
ALERT = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


def page_of(refresh: Refresh) -> str:
    return f"{LIST}{refresh.pk}/change/"


def test_the_page_of_a_refresh_shows_strategy_and_estimates(admin_client: Client) -> None:
    refresh = run(Walked)
    shown_run = {"strategy": "by_keys", "expected_seconds": {"by_keys": 0.04, "full": 1.5}}
    PhaseRun.objects.filter(refresh=refresh, phase="insert").update(**shown_run)
    text = shown(admin_client, page_of(refresh))
    assert "Strategy by keys (expected: by keys 40 ms, in full 1.5 s)" in text
    assert text.count("Strategy") == 1  # of the other phases, which have hooks, there is none


def stop_of(refresh: Refresh) -> str:
    return f"{LIST}{refresh.pk}/stop/"


def shown(client: Client, address: str) -> str:
    """The text between the tags of a page's content, after what must hold for every page."""
    page = Page()
    page.feed(answered(client.get(address)))
    assert page.refused_by_policy == []
    return re.sub(r"\s+", " ", "".join(page.text))


def answered(answer: Any) -> str:
    assert answer.status_code == 200
    source: str = answer.content.decode()
    return source


class Page(HTMLParser):
    """The text of a page's content, and what `default-src 'self'` would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.refused_by_policy: list[str] = []
        self._in_content = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        inline = tag in ("script", "style") and "src" not in given
        handlers = [name for name in given if name == "style" or name.startswith("on")]
        if inline or handlers:
            self.refused_by_policy.append(self.get_starttag_text() or tag)
        self._in_content = self._in_content or given.get("id") == "content"
        if tag in ("td", "th", "dd", "br"):
            self.text.append(" ")

    def handle_data(self, data: str) -> None:
        if self._in_content:
            self.text.append(data)


def staff(*permissions: str) -> Client:
    user = User.objects.create_user("somebody", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def messages_of(answer: Any) -> list[str]:
    return [str(message) for message in answer.context["messages"]]


def failed() -> Refresh:
    add_items(1)
    with fault(Limited, "do_insert", "raise"):
        return run(Limited, requested_by=ALERT)


def listed(client: Client, query: str = "") -> list[int]:
    answer: Any = client.get(LIST + query)
    assert answer.status_code == 200
    return [refresh.pk for refresh in answer.context["cl"].result_list]


def test_the_list_has_the_newest_first_and_tells_of_each(admin_client: Client) -> None:
    add_items(30)
    first = run(Limited, batch_size=20, requested_by="anna")
    bad = failed()
    waiting = engine.request(Walked, phases=["insert"])

    assert listed(admin_client) == [waiting.pk, bad.pk, first.pk]
    text = shown(admin_client, LIST)
    assert "sample.Walked insert open Requested: API" in text
    assert f"failed Requested: API: {ALERT}" in text
    assert "sample.Limited insert, update, delete succeeded Requested: API: anna" in text
    assert " 30 in 2 batches" in text


def test_a_refresh_that_others_did_is_listed_as_theirs(admin_client: Client) -> None:
    first, second = request_apart(Limited), request_apart(Limited)
    run(Limited)

    second.refresh_from_db()
    assert second.merged_into_id == first.pk
    assert f"merged into refresh {first.pk}" in shown(admin_client, LIST)


def test_the_list_is_searched_by_label_and_filtered(admin_client: Client) -> None:
    good, bad, other = run(Limited), failed(), run(Walked, origin="command")
    key = ViewControl.objects.get(label="sample.Walked").pk

    assert listed(admin_client, "?q=limited") == [bad.pk, good.pk]
    assert listed(admin_client, "?state__exact=failed") == [bad.pk]
    assert listed(admin_client, "?origin__exact=command") == [other.pk]
    assert listed(admin_client, f"?view__id__exact={key}") == [other.pk]


def test_a_longer_list_needs_no_more_queries(admin_client: Client) -> None:
    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as seen:
            listed(admin_client)
        return len(seen)

    run(Limited)
    few = queries()
    for view in (Limited, Walked, Sharded) * 3:
        run(view)

    assert queries() == few


def test_a_long_history_is_never_counted_whole(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh_admin, "MAX_COUNTED", 3)
    monkeypatch.setattr(refresh_admin.RefreshAdmin, "list_per_page", 2)
    for _again in range(5):
        run(Limited)

    with CaptureQueriesContext(connection) as seen:
        answer: Any = admin_client.get(LIST)

    assert answer.context["cl"].result_count == 3
    counts = [query["sql"] for query in seen if "COUNT(" in query["sql"]]
    assert len(counts) == 1
    assert "LIMIT 3" in counts[0]


def test_the_page_tells_what_was_asked_for_and_what_came_of_it(admin_client: Client) -> None:
    add_items(30)
    done = run(Limited, batch_size=20, requested_by="anna", origin="command")

    text = shown(admin_client, page_of(done))

    for words in (
        "sample.Limited", "succeeded", "command: anna", "insert, update, delete",
        "Rows per batch 20", "30 rows in 2 batches", "2 batches. Seconds per batch: median ",
        "Rows per batch: median 15 rows, most 20 rows.",
    ):  # fmt: skip
        assert words in text
    assert "Stop this refresh" not in text


def test_shards_are_told_apart(admin_client: Client) -> None:
    add_items(5)
    control = ViewControl.objects.get(label="sample.Sharded")
    assert control.shards.count() > 1

    text = shown(admin_client, page_of(run(Sharded)))

    assert all(f"Shard {shard.number} succeeded" in text for shard in control.shards.all())


def test_errors_and_tracebacks_are_shown_as_text(admin_client: Client) -> None:
    bad = failed()
    PhaseRun.objects.filter(refresh=bad).exclude(error="").update(error=ALERT)

    source = answered(admin_client.get(page_of(bad)))
    text = shown(admin_client, page_of(bad))

    assert ALERT not in source
    assert f"insert: {ALERT}" in text
    assert "Traceback (most recent call last):" in text
    assert "RuntimeError: do_insert was told to fail" in text


def test_merged_refreshes_link_to_each_other(admin_client: Client) -> None:
    add_items(20)
    first = engine.request(Limited, batch_size=10)
    second = engine.request(Limited, phases=["insert"])
    engine.run_batch(due(Limited))

    leader = answered(admin_client.get(page_of(first)))
    follower = answered(admin_client.get(page_of(second)))

    assert f'<a href="{page_of(second)}">refresh {second.pk}</a>' in leader
    assert f'Merged into <a href="{page_of(first)}">refresh {first.pk}</a>.' in follower


def test_a_phase_that_waits_for_another_refresh_says_so(admin_client: Client) -> None:
    add_items(20)
    first = engine.request(Walked, phases=["insert"], batch_size=10)
    engine.run_batch(due(Walked))
    second = engine.request(Walked, phases=["insert"])

    text = shown(admin_client, page_of(second))

    assert f"Waits for refresh {first.pk}, which is running this phase." in text
    assert "pending" in text


def test_a_failed_batch_that_is_tried_again_is_told(admin_client: Client) -> None:
    add_items(20)
    waiting = engine.request(Limited, batch_size=10)
    engine.run_batch(due(Limited))
    PhaseRun.objects.filter(phase="insert").update(failures=1, error="OperationalError: deadlock")

    text = shown(admin_client, page_of(waiting))

    assert "insert: OperationalError: deadlock" in text
    assert "Failures 1; it will be retried" in text


def test_a_refresh_of_a_view_that_left_the_code_is_still_shown(admin_client: Client) -> None:
    done = run(Limited)
    ViewControl.objects.filter(pk=done.view_id).update(label="gone.View")

    assert "gone.View" in shown(admin_client, page_of(done))


def test_the_progress_of_a_refresh_is_its_own(admin_client: Client) -> None:
    add_items(30)
    first = engine.request(Limited, phases=["insert"], batch_size=10)
    done = run(Walked)
    engine.run_batch(due(Limited))

    live = admin_client.get(f"{LIST}{first.pk}/progress/").json()
    ended = admin_client.get(f"{LIST}{done.pk}/progress/").json()

    assert (live["refresh"], live["works"], live["done"]) == (first.pk, True, 0.333)
    assert live["words"].startswith("insert: 10 of about 30 rows")
    assert (ended["refresh"], ended["works"]) == (None, False)


def test_a_refresh_that_nobody_is_at_stops_at_once(admin_client: Client) -> None:
    waiting = engine.request(Limited)
    assert "Stop this refresh" in shown(admin_client, page_of(waiting))

    answer = admin_client.post(stop_of(waiting), follow=True)

    waiting.refresh_from_db()
    assert waiting.state == RefreshState.STOPPED
    assert answer.redirect_chain == [(page_of(waiting), 302)]
    assert messages_of(answer) == [f"Refresh {waiting.pk} has been stopped."]
    entry = LogEntry.objects.get()
    assert entry.get_edited_object() == waiting.view
    assert str(waiting.pk) in entry.change_message


@without_sqlite
def test_a_refresh_that_is_worked_on_stops_after_its_batch(admin_client: Client) -> None:
    add_items(20)
    working = engine.request(Limited, batch_size=10)
    engine.run_batch(due(Limited))

    with held_by_another_worker(shard_of(Limited)):
        answer = admin_client.post(stop_of(working), follow=True)

    assert "stops after the running batch." in messages_of(answer)[0]
    assert "It stops after the running batch." in shown(admin_client, page_of(working))
    assert "Stop this refresh" not in shown(admin_client, page_of(working))


def test_stopping_what_has_ended_says_so(admin_client: Client) -> None:
    done = run(Limited)

    answer = admin_client.post(stop_of(done), follow=True)

    assert messages_of(answer) == [f"Refresh {done.pk} has already ended."]
    assert not LogEntry.objects.exists()


def test_whoever_stops_on_the_view_page_comes_back_to_it(admin_client: Client) -> None:
    waiting = engine.request(Limited)

    answer = admin_client.post(stop_of(waiting), {"back": "view"})

    assert answer.headers["Location"] == f"/admin/matviews/viewcontrol/{waiting.view_id}/change/"


def test_stopping_needs_a_token_against_forgery(admin_user: User) -> None:
    waiting = engine.request(Limited)
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)

    assert client.post(stop_of(waiting)).status_code == 403
    waiting.refresh_from_db()
    assert not waiting.stop_requested


def test_the_button_is_for_those_who_may_stop() -> None:
    waiting = engine.request(Limited)
    client = staff("view_refresh")

    text = shown(client, page_of(waiting))

    assert "Stop this refresh" not in text
    assert "/admin/matviews/viewcontrol/" not in answered(client.get(page_of(waiting)))
    assert client.post(stop_of(waiting)).status_code == 403


def test_nobody_adds_changes_or_deletes_a_refresh(admin_client: Client) -> None:
    done = run(Limited)

    for address in (f"{LIST}add/", page_of(done), f"{LIST}{done.pk}/delete/"):
        assert admin_client.post(address, {"post": "yes"}).status_code == 403
    admin_client.post(LIST, {"action": "delete_selected", "_selected_action": done.pk, "post": "y"})
    assert Refresh.objects.filter(pk=done.pk).exists()


def test_a_removed_view_takes_its_refreshes_with_it(admin_client: Client) -> None:
    done = run(Limited)
    ViewControl.objects.filter(pk=done.view_id).update(label="gone.View")

    answer = admin_client.post(
        f"/admin/matviews/viewcontrol/{done.view_id}/delete/", {"post": "yes"}
    )

    assert answer.status_code == 302
    assert not Refresh.objects.filter(pk=done.pk).exists()
