"""What the list of views shows and does beyond its rows' states."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from matviews import changes, engine
from matviews.admin.strips import age_bar, strip
from matviews.admin.summary import summary
from matviews.models import Heartbeat, ParkedKey, Refresh, RefreshSchedule, ViewControl, ViewShard
from matviews.states import RefreshState
from tests.admin.test_pages import LIST, control, html, listed, told
from tests.helpers.ledger import add_items, fault
from tests.helpers.source_views import sourced, windowed
from tests.helpers.view_classes import make_view, ready, run
from tests.sample.models import Limited, Sharded, Walked

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_views")]


def row(client: Client, label: str) -> str:
    """The row of a view, as HTML."""
    shown = html(client, f"{LIST}?q={label}")
    [found] = re.findall(rf"<tr>.*?{label} <.*?</tr>", shown, re.DOTALL)
    return str(found)


def ended(label: str, state: RefreshState, **values: Any) -> Refresh:
    now = timezone.now()
    return Refresh.objects.create(
        view=control(label), phases=["insert"], origin="api", state=state,
        requested_at=now, started_at=now, finished_at=now + timedelta(seconds=2), **values,
    )  # fmt: skip


def facts() -> dict[str, str]:
    return {fact.name: re.sub("<.*?>", "", fact.value) for fact in summary(engine.view_statuses())}


class TestSummary:
    def test_it_counts_views_and_names_what_refreshes_them(self) -> None:
        run(Limited)
        add_items(1)
        with fault(Walked, "do_insert", "raise"):
            run(Walked)
        run(Sharded)
        long_ago = timezone.now() - timedelta(hours=3)
        ViewControl.objects.filter(label="sample.Sharded").update(
            last_delete=long_ago, freshness_target=timedelta(hours=1)
        )
        ViewControl.objects.filter(label="sample.Ledger").update(paused=True)
        ViewControl.objects.filter(label="sample.Slow").update(
            suspended_at=timezone.now(), failures=20
        )

        found = facts()

        assert found["on time"] == "1"
        failed = 2 if connection.vendor == "sqlite" else 1  # which cannot have shapes.JsonKey
        assert (found["behind"], found["failed"], found["suspended"]) == ("1", str(failed), "1")
        assert found["paused or disabled"] == "1"
        assert "ago" in found["worker seen"]
        assert found["beat seen"] == "never"
        assert found["broker"] == "accepts messages"
        assert found["oldest pending change"] == "none"

    def test_it_tells_of_a_broker_that_refuses_messages(self) -> None:
        Heartbeat.objects.create(pk=1, send_failed_at=timezone.now(), send_error="no route")

        assert facts()["broker"] == "refuses messages"

    @pytest.mark.database
    @pytest.mark.django_db(transaction=True)
    def test_it_tells_of_the_oldest_change_and_of_triggers(self) -> None:
        view = sourced()
        changes.install(engine.alias())
        run(view)
        add_items(1)

        assert re.match(r"[\d.]+ (ms|s)$", facts()["oldest pending change"])

        changes.remove(engine.alias())
        assert facts()["triggers"].startswith("missing for")

    def test_the_list_begins_with_it(self, admin_client: Client) -> None:
        shown = html(admin_client, LIST)

        assert "<dt>worker seen</dt><dd>never</dd>" in shown
        assert shown.index("worker seen") < shown.index("result_list")


class TestRow:
    def test_its_age_is_one_bar_with_one_text(self, admin_client: Client) -> None:
        run(Limited)
        ViewControl.objects.filter(label="sample.Limited").update(
            freshness_target=timedelta(hours=1),
            last_insert=timezone.now() - timedelta(minutes=30),
        )

        shown = row(admin_client, "sample.Limited")

        assert re.search(r'class="matviews-age".*width="50" height="8" class="used"', shown)
        assert re.search(r"30 min( \d\d s)? of 1 h", shown)

    def test_a_bar_beyond_the_target_is_full_and_marked(self) -> None:
        late = age_bar(timedelta(hours=3), timedelta(hours=1))

        assert 'class="matviews-age late"' in late
        assert 'width="100" height="8" class="used"' in late
        assert 'class="past"' in late

    def test_its_last_refreshes_are_shapes_with_words(self, admin_client: Client) -> None:
        ended("sample.Limited", RefreshState.SUCCEEDED)
        ended("sample.Limited", RefreshState.FAILED, error="no\nluck", repeats=3)
        ended("sample.Limited", RefreshState.STOPPED)

        shown = row(admin_client, "sample.Limited")

        titles = re.findall(r"<path d=\"(.*?)\"/><title>(.*?)</title>", shown)
        assert len({shape for shape, _text in titles}) == 3
        states = [text.split(", ")[1] for _shape, text in titles]
        assert states == ["succeeded", "failed", "stopped"]
        assert titles[1][1].endswith(", 2.0 s, 3 times before: no luck")
        assert "sample.Limited: 3 refreshes: 1 succeeded, 1 failed, 1 stopped." in shown
        assert f"?view__id__exact={control('sample.Limited').pk}" in shown

    def test_thirty_refreshes_are_shown_and_merged_ones_are_not(self) -> None:
        for _number in range(35):
            last = ended("sample.Limited", RefreshState.SUCCEEDED)
        ended("sample.Limited", RefreshState.MERGED, merged_into=last)
        ended("sample.Walked", RefreshState.SUCCEEDED)
        from matviews.admin.strips import last_refreshes

        keys = [control(label).pk for label in ("sample.Limited", "sample.Walked", "sample.Slow")]
        with CaptureQueriesContext(connection) as captured:
            found = last_refreshes(keys)

        assert [len(found[key]) for key in keys] == [30, 1, 0]
        assert len(captured) == 2
        assert found[keys[0]][-1] == last
        assert "none yet" in strip([], "sample.Slow")

    def test_a_long_error_is_one_line_and_whole_in_its_tooltip(self, admin_client: Client) -> None:
        error = "insert: " + "x" * 250
        ended("sample.Limited", RefreshState.FAILED, error=error)

        assert f'title="{error}">{error}</span>' in row(admin_client, "sample.Limited")

    def test_its_rows_lead_to_them_where_the_admin_has_the_model(
        self, admin_client: Client, client: Client
    ) -> None:
        run(Limited)
        page = f"{LIST}{control().pk}/change/"
        user = User.objects.create_user("somebody", is_staff=True)
        user.user_permissions.add(Permission.objects.get(codename="view_viewcontrol"))
        client.force_login(user)
        assert "/admin/sample/limited/" not in row(admin_client, "sample.Limited")
        assert "/admin/sample/limited/" not in html(admin_client, page)

        admin.site.register(Limited)
        try:
            import importlib

            from django.urls import clear_url_caches

            import tests.urls

            importlib.reload(tests.urls)
            clear_url_caches()
            assert '<a href="/admin/sample/limited/"' in row(admin_client, "sample.Limited")
            link = '<a href="/admin/sample/limited/" aria-label="Rows of sample.Limited: 0">'
            assert link in html(admin_client, page)
            assert "/admin/sample/limited/" not in html(client, page)
        finally:
            admin.site.unregister(Limited)
            importlib.reload(tests.urls)
            clear_url_caches()

    def test_it_names_what_it_reads_and_what_reads_it(self, admin_client: Client) -> None:
        lower, upper = control("shapes.CustomerTotal"), control("shapes.ViewOfView")
        edges = engine.view_graph().views_read["shapes.ViewOfView"]
        assert edges == ("shapes.CustomerTotal",)

        assert f'reads <a href="{LIST}{lower.pk}/change/">' in row(
            admin_client, "shapes.ViewOfView"
        )
        assert f'read by <a href="{LIST}{upper.pk}/change/">' in row(
            admin_client, "shapes.CustomerTotal"
        )

    def test_its_schedule_says_when_and_how_often(self, admin_client: Client) -> None:
        RefreshSchedule.objects.create(view=control(), every=7, period="hours", phases=["insert"])

        assert "every 7 hours (insert)" in row(admin_client, "sample.Limited")


class TestButtons:
    def test_a_row_is_refreshed_and_the_list_is_shown_again(self, admin_client: Client) -> None:
        shown = html(admin_client, f"{LIST}?q=Limited&o=2")
        [address] = re.findall(rf'formaction="({LIST}{control().pk}/refresh/[^"]*)"', shown)

        answer = admin_client.post(address.replace("&amp;", "&"), {"back": "list"})

        assert answer.status_code == 302
        assert answer["Location"] == f"{LIST}?q=Limited&o=2"
        assert told(answer)[0].startswith("Refresh of sample.Limited queued.")
        assert Refresh.objects.get().phases == ["insert", "update", "delete"]

    def test_what_failed_is_retried_with_its_parked_keys(self, admin_client: Client) -> None:
        view = sourced(windowed)
        shard = ViewShard.objects.get(view__label=view._meta.label)
        later = engine.now() + timedelta(hours=5)
        ParkedKey.objects.create(
            shard=shard, phase="insert", key=[1], first_seen=later, last_seen=later,
            retry_at=later,
        )  # fmt: skip
        ViewShard.objects.update(parked_count=1)
        shown = row(admin_client, "sample.Sourced")
        assert 'aria-label="Retry sample.Sourced"' in shown

        admin_client.post(f"{LIST}{shard.view_id}/retry/", {"back": "list"})

        assert ParkedKey.objects.get().retry_at < later
        assert Refresh.objects.get().forced

    def test_they_need_the_permission_and_a_post(
        self, client: Client, django_user_model: Any, admin_client: Client
    ) -> None:
        from django.contrib.auth.models import Permission

        viewer = django_user_model.objects.create_user("viewer", password="x", is_staff=True)
        viewer.user_permissions.add(Permission.objects.get(codename="view_viewcontrol"))
        client.force_login(viewer)

        assert "formaction" not in html(client, LIST)
        for action in ("refresh", "retry"):
            address = f"{LIST}{control().pk}/{action}/"
            assert client.post(address, {"back": "list"}).status_code == 403
            assert admin_client.get(address).status_code == 405
        assert not Refresh.objects.exists()

    def test_what_cannot_be_refreshed_has_none(self, admin_client: Client) -> None:
        ViewControl.objects.filter(label="sample.Limited").update(enabled=False)
        ViewControl.objects.create(label="shop.Gone")

        assert "formaction" not in row(admin_client, "sample.Limited")
        assert "formaction" not in row(admin_client, "shop.Gone")


class TestSorting:
    def test_by_each_column(self, admin_client: Client) -> None:
        run(Limited)
        run(Walked)
        ViewControl.objects.update(freshness_target=timedelta(hours=1))
        old = timezone.now() - timedelta(hours=2)
        ViewControl.objects.filter(label="sample.Walked").update(last_insert=old)
        columns = {"name": 1, "state": 2, "age": 3, "rows": 6}

        by_name = listed(admin_client, f"?o={columns['name']}")
        assert by_name == sorted(by_name)
        assert listed(admin_client, f"?o=-{columns['name']}") == by_name[::-1]
        assert listed(admin_client, f"?o=-{columns['age']}")[:2] == [
            "sample.Walked", "sample.Limited",
        ]  # fmt: skip
        assert listed(admin_client, f"?o={columns['state']}")[-1] == "sample.Limited"
        assert len(listed(admin_client, f"?o={columns['rows']}")) == len(by_name)
        urgent_first = listed(admin_client)
        assert listed(admin_client, "?o=99.x.5") == urgent_first

    def test_headings_lead_to_it(self, admin_client: Client) -> None:
        shown = html(admin_client, LIST)

        assert len(re.findall(r'<th scope="col" class="sortable', shown)) == 4


class TestGraph:
    def test_it_is_a_picture_and_a_table_that_lead_to_the_views(self, admin_client: Client) -> None:
        shown = html(admin_client, f"{LIST}graph/")

        pk = control("shapes.ViewOfView").pk
        link = f'<a href="{LIST}{pk}/change/" aria-label="shapes.ViewOfView: [a-z ]+">'
        assert re.search(link, shown)
        assert shown.count('<svg class="matviews-graph"') == 1
        assert f'<th scope="row"><a href="{LIST}{pk}/change/">shapes.ViewOfView</a></th>' in shown
        assert "shapes_order" in shown
        assert not re.search(r"\s(style|on\w+)\s*=", shown)
        assert f'href="{LIST}graph/"' in html(admin_client, LIST)

    def test_of_one_view_it_has_what_it_reads_and_what_reads_it(self, admin_client: Client) -> None:
        shown = html(admin_client, f"{LIST}graph/?view=shapes.CustomerTotal")

        views = set(re.findall(r'<th scope="row"><a [^>]*>(.*?)</a>', shown))
        assert views == {"shapes.CustomerTotal", "shapes.ViewOfView"}

    @pytest.mark.database
    def test_its_statements_do_not_depend_on_the_number_of_views(
        self, admin_client: Client
    ) -> None:
        def statements() -> int:
            with CaptureQueriesContext(connection) as captured:
                html(admin_client, f"{LIST}graph/")
            return len(captured)

        statements()
        few = statements()
        for number in range(40):
            ready(make_view(name=f"Made{number}", source=classmethod(lambda cls: windowed())))

        assert statements() == few

    def test_a_label_is_text(self, admin_client: Client) -> None:
        assert "<script>alert" not in html(
            admin_client, f"{LIST}graph/?view=<script>alert(1)</script>"
        )

    def test_many_views_are_a_table_only(
        self, admin_client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("matviews.admin.graph_page.MAX_NODES", 3)

        shown = html(admin_client, f"{LIST}graph/")

        assert 'matviews-graph"' not in shown
        assert "too many" in shown

    def test_it_needs_the_permission_to_view(self, client: Client, django_user_model: Any) -> None:
        client.force_login(django_user_model.objects.create_user("nobody", is_staff=True))

        assert client.get(f"{LIST}graph/").status_code == 403
