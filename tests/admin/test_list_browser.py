"""The list of views and the graph in a real browser: nothing overflows, all can be operated."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect

from matviews.models import (
    Alarm,
    ParkedKey,
    PhaseRun,
    Refresh,
    RefreshSchedule,
    ViewControl,
    ViewShard,
)
from matviews.states import RefreshState, RunState
from tests.admin.test_browser import sign_in
from tests.helpers import chromium
from tests.helpers.view_classes import make_view, ready, run, six_hooks
from tests.sample.models import Limited

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/matviews/viewcontrol/"
LONG_NAME = "AViewWithANameThatSomebodyChoseOneFridayEveningInNovember"
LONG_ERROR = (
    "insert: IntegrityError: " + "null value violates a not-null constraint " * 9 + "x" * 90
)
# Cells and lines that are cut off, or reach beyond the list; an error may be: it has an ellipsis.
OVERFLOWING = """
[...document.querySelectorAll(
  "#changelist .results, #result_list tbody :is(td, th), .matviews-summary > div")]
  .filter((each) => each.scrollWidth > each.clientWidth + 1)
  .map((each) => each.className)
"""


@pytest.fixture
def _many_states(own_views: None) -> None:
    """Every view has failed with a long error, and has a schedule and a history."""
    ready(make_view(name=LONG_NAME, **six_hooks()))
    run(Limited)
    now = timezone.now()
    states = [RefreshState.SUCCEEDED, RefreshState.FAILED, RefreshState.STOPPED] * 12
    for control in ViewControl.objects.all():
        RefreshSchedule.objects.create(view=control, every=90, period="seconds", phases=["delete"])
        Refresh.objects.bulk_create(
            Refresh(
                view=control, phases=["insert"], origin="api", state=state, requested_at=now,
                started_at=now, finished_at=now + timedelta(seconds=3),
                error=LONG_ERROR if state == RefreshState.FAILED else "",
            )
            for state in [*states, RefreshState.FAILED]
        )  # fmt: skip
    Alarm.objects.bulk_create(
        Alarm(
            kind=kind, view=view, slot=kind, text=f"{view}: its rows are older than its target",
            error=LONG_ERROR, since=now, raised_at=now, notified_at=now, ended_at=ended,
            is_open=None if ended else True, views=[f"sample.{LONG_NAME}"] * 12,
            undelivered="mail,hook",
        )
        for kind, view in (("failed", f"sample.{LONG_NAME}"), ("no worker", ""))
        for ended in (None, now)
    )  # fmt: skip
    ViewControl.objects.update(
        failures=7, failing_since=now, retry_at=now + timedelta(minutes=8),
        freshness_target=timedelta(seconds=1), last_insert=now - timedelta(days=400),
        last_update=now, last_delete=now,
    )  # fmt: skip


@pytest.fixture
def page(browser: Browser, live_server: Any, _many_states: None) -> Iterator[Page]:
    User.objects.create_superuser("operator", password="secret")
    with chromium.window(browser, base_url=live_server.url) as page:
        sign_in(page)
        yield page


def test_nothing_overflows_and_all_has_its_place(page: Page) -> None:
    # given every view with a long error, then nothing overflows at any width
    for address in (LIST, f"{LIST}graph/", "/admin/matviews/alarm/"):
        page.goto(address)
        for width in (1280, 1024, 800, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, address
            assert page.evaluate(OVERFLOWING) == []
    page.set_viewport_size({"width": 1280, "height": 900})
    # and an error has a line of its own
    page.goto(f"{LIST}?q=Limited")
    line = page.locator(".matviews-last-error").bounding_box()
    row = page.locator("#result_list tbody tr").bounding_box()
    assert line is not None
    assert row is not None
    assert line["width"] > 0.85 * row["width"]
    assert line["height"] < 30
    # and headings are above their columns
    page.goto(LIST)
    for name in ("state", "age", "recent", "schedule", "rows"):
        heading = page.locator(f"thead .column-{name}").bounding_box()
        cell = page.locator(f"tbody .field-{name}").first.bounding_box()
        assert heading is not None
        assert cell is not None
        assert abs(heading["x"] - cell["x"]) < 2


def test_nor_does_the_page_of_a_view_with_every_fault(page: Page) -> None:
    # given a suspended view with parked keys, a long traceback and rows that differ
    control = ViewControl.objects.get(label=f"sample.{LONG_NAME}")
    shard, refresh, now = shard_of_control(control), newest_failure(control), timezone.now()
    PhaseRun.objects.create(
        refresh=refresh, shard=shard, phase="insert", state=RunState.FAILED, error=LONG_ERROR,
        traceback=f"Traceback\n  {'y' * 400}\n{LONG_ERROR}", started_at=now, finished_at=now,
    )  # fmt: skip
    ParkedKey.objects.bulk_create(
        ParkedKey(
            shard=shard, phase="insert", key=["z" * 200, number], fingerprint="",
            error_class="IntegrityError", message=LONG_ERROR, first_seen=now, last_seen=now,
            retry_at=now,
        )
        for number in range(3)
    )  # fmt: skip
    ViewShard.objects.filter(pk=shard.pk).update(parked_count=3)
    ViewControl.objects.filter(pk=control.pk).update(suspended_at=now)
    # then nothing overflows at any width
    for address in (
        reverse("admin:matviews_viewcontrol_change", args=[control.pk]),
        reverse("admin:matviews_refresh_change", args=[refresh.pk]),
    ):
        page.goto(address)
        assert "y" * 400 in page.content()
        assert ("z" * 200 in page.content()) is ("viewcontrol" in address)
        page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
        for width in (1280, 1024, 800, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, address


def shard_of_control(control: ViewControl) -> ViewShard:
    return ViewShard.objects.get_or_create(view=control, number=0)[0]


def newest_failure(control: ViewControl) -> Refresh:
    return Refresh.objects.filter(view=control, state=RefreshState.FAILED).latest("pk")


def test_all_is_done_by_keyboard(page: Page) -> None:
    # when a row is retried, its view is refreshed, and the page stays the same
    page.goto(f"{LIST}?q=Limited")
    page.get_by_role("button", name="Retry sample.Limited").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Refresh of sample.Limited queued.")).to_be_visible()
    assert page.url.endswith("?q=Limited")
    assert Refresh.objects.filter(view__label="sample.Limited", state=RefreshState.OPEN).exists()
    # and the list is sorted
    page.goto(LIST)
    page.get_by_role("link", name="View", exact=True).press("Enter")
    expect(page.locator("tbody .field-name a").first).to_contain_text("sample." + LONG_NAME)
    # and the graph leads to a view
    page.goto(f"{LIST}graph/")
    page.locator(".matviews-graph").get_by_role("link", name="shapes.ViewOfView: failed").focus()
    page.keyboard.press("Enter")
    pk = ViewControl.objects.get(label="shapes.ViewOfView").pk
    page.wait_for_url(f"**{reverse('admin:matviews_viewcontrol_change', args=[pk])}")
