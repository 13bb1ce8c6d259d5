"""What an operator sees and does in the admin: a real browser, worker, beat and Redis."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import override_settings
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
from playwright.sync_api import Browser, Page, expect

from matviews.models import RefreshSchedule, ViewControl, ViewShard
from matviews.tasks.schedules import reconcile
from tests.helpers import chromium
from tests.helpers.chromium import Pictures
from tests.helpers.csp import POLICY
from tests.helpers.ledger import add_items, fault
from tests.helpers.processes import Workers
from tests.sample.models import Limited

LABEL = "sample.Limited"
SLOW = 0.4  # seconds per batch, of which the page sees many


@pytest.fixture(autouse=True)
def _small_batches() -> Iterator[None]:
    ten = {f"BATCH_SIZE_{name}": 10 for name in ("MIN", "INITIAL", "MAX")}
    with override_settings(MATVIEWS=ten):
        yield


@pytest.fixture
def page(
    browser: Browser, live_server: Any, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Page]:
    """The admin's first page, signed in as somebody who may do everything."""
    if connection.vendor == "sqlite":  # as docs/production.md has it
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "transaction_mode", "IMMEDIATE")
    User.objects.create_superuser("operator", password="secret")
    reconcile()
    with chromium.window(browser, base_url=live_server.url) as page:
        sign_in(page)
        yield page


def sign_in(page: Page) -> None:
    answer = page.goto(reverse("admin:index"))
    assert answer is not None
    assert answer.headers["content-security-policy"] == POLICY
    # By what no language changes.
    page.locator("[name=username]").fill("operator")
    page.locator("[name=password]").fill("secret")
    page.locator("[type=submit]").click()
    expect(page.locator("#matviews-viewcontrol").get_by_role("link").first).to_be_visible()


def open_view(page: Page) -> None:
    page.goto(reverse("admin:matviews_viewcontrol_changelist"))
    page.locator("tbody .field-name").get_by_role("link", name=LABEL).click()
    expect(page.get_by_role("heading", name="Status")).to_be_visible()
    page.wait_for_load_state()  # what moves while a page is loaded can be missed by a click


def state(page: Page) -> Any:
    return page.locator("#matviews-status .matviews-badge").first


def test_an_operator_refreshes_a_view_and_watches_it_work(page: Page, workers: Workers) -> None:
    # given a view that was never built, and a worker
    add_items(300)
    workers.start()
    open_view(page)
    expect(state(page)).to_have_text("never built")
    # when the button is pressed, by keyboard
    with fault(Limited, "do_insert", "sleep", seconds=SLOW):
        page.get_by_role("button", name="Refresh now").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_text(re.compile("queued"))).to_be_visible()
        # then the bar moves, without the page being loaded again
        page.evaluate("window.same = true")
        bar = page.get_by_role("progressbar", name=re.compile("Refresh"))
        expect(bar).to_be_visible()
        expect(page.locator("#matviews-percent")).to_have_text(re.compile(r"[1-9]\d? %"))
        # the phase wears its state, which no longer is that of an earlier run
        expect(page.locator("[data-badge=insert]")).to_have_text("running")
        early = float(bar.get_attribute("value") or 0)
        page.wait_for_function(
            "early => document.getElementById('matviews-done').value > early", arg=early
        )
    # and the page tells of the end by itself
    expect(state(page)).to_have_text("ok, no target")
    expect(page.locator("#matviews-status")).to_contain_text("300")
    assert page.evaluate("window.same")
    assert Limited.objects.count() == 300


def test_a_hidden_page_asks_for_nothing_and_goes_on_when_it_is_seen(
    page: Page, workers: Workers
) -> None:
    # given a page that shows a refresh at work
    add_items(5_000)  # more than can be done before it is stopped
    page.add_init_script(HIDES)
    page.clock.install()
    asked: list[str] = []
    page.on(
        "request",
        lambda request: asked.append(request.url) if request.resource_type == "fetch" else None,
    )
    workers.start()
    open_view(page)
    with fault(Limited, "do_insert", "sleep", seconds=SLOW):
        page.get_by_role("button", name="Refresh now").click()
        expect(page.locator("#matviews-percent")).to_have_text(re.compile("%"))
        # when its tab is hidden, it asks no more
        page.evaluate("hide(true)")
        page.wait_for_timeout(ANSWERED)
        asked.clear()
        let_time_pass(page)
        assert asked == []
        # when it is seen again, it does, until nothing is at work
        with page.expect_request("**/progress/"):
            page.evaluate("hide(false)")
        page.get_by_role("button", name="Stop this refresh").click()
        expect(page.get_by_text(re.compile("stopped|stops after"))).not_to_have_count(0)
    expect(page.get_by_role("button", name="Stop this refresh")).to_have_count(0)
    expect(page.get_by_role("progressbar")).to_have_count(0)
    asked.clear()
    let_time_pass(page)
    assert asked == []
    assert Limited.objects.count() < 5_000


def test_an_open_page_tells_when_no_worker_takes_its_refresh(page: Page) -> None:
    # given a refresh whose message has just been sent
    shards = ViewShard.objects.filter(view__label=LABEL)
    shards.update(resend_after=timezone.now() + timedelta(hours=1))
    page.clock.install()
    open_view(page)
    page.get_by_role("button", name="Refresh now").click()
    expect(state(page)).to_have_text("refreshing")
    stop = page.get_by_role("button", name="Stop this refresh").element_handle()
    # when nobody has been at it for a lease
    shards.update(resend_after=None)
    page.clock.run_for(20_000)
    # then the page says so, and a button that somebody may be pressing is still the same
    expect(state(page)).to_have_text("waiting")
    assert stop.is_visible()
    stop.click()
    expect(page.get_by_text("has been stopped")).to_be_visible()


def let_time_pass(page: Page) -> None:
    """What the page would do in the next minute it does now."""
    page.clock.run_for(60_000)
    page.wait_for_timeout(ANSWERED)


ANSWERED = 300  # milliseconds, in which what the page asks for is asked and answered
# A browser without a window has no tab to hide.
HIDES = """
let hidden = false;
Object.defineProperty(document, "hidden", { get: () => hidden });
window.hide = (now) => {
  hidden = now;
  document.dispatchEvent(new Event("visibilitychange"));
};
"""


def test_beat_follows_an_interval_that_was_changed_in_the_admin(
    page: Page, workers: Workers
) -> None:
    # given a view on an hourly schedule, and everything at work
    view = ViewControl.objects.get(label=LABEL)
    made = RefreshSchedule.objects.create(view=view, every=1, period="hours", jitter=0)
    workers.start()
    beat = workers.start_beat()
    sent = ("Sending due task", f"of {LABEL}")
    workers.wait_for(lambda: beat.lines(*sent))
    # when somebody changes it to a second
    open_view(page)
    page.get_by_role("spinbutton", name="Every:").fill("1")
    page.get_by_role("combobox", name="Period:").select_option("seconds")
    page.get_by_role("button", name="Save and continue editing").click()
    expect(page.get_by_text(re.compile("was changed successfully"))).to_be_visible()
    expect(page.get_by_text(re.compile("every second"))).not_to_have_count(0)
    # then beat sends each second
    workers.wait_for(lambda: len(beat.lines(*sent)) >= 4)
    # when the view is paused, beat is told to send no more
    changes = len(beat.lines("Schedule changed"))
    page.get_by_role("button", name="Pause").click()
    expect(state(page)).to_have_text("paused")
    task = PeriodicTask.objects.get(name__contains=f"schedule {made.pk} ")
    assert not task.enabled
    workers.wait_for(lambda: len(beat.lines("Schedule changed")) > changes)
    # when it is resumed, it goes on
    before = len(beat.lines(*sent))
    page.get_by_role("button", name="Resume").click()
    expect(state(page)).not_to_have_text("paused")
    workers.wait_for(lambda: len(beat.lines(*sent)) >= before + 2)


def test_an_interval_that_cannot_be_is_refused_at_its_field(page: Page) -> None:
    open_view(page)
    page.get_by_role("button", name="Add another Schedule").click()
    page.get_by_role("spinbutton", name="Every:").fill("0")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("An interval must be at least 1.")).to_be_visible()
    assert not RefreshSchedule.objects.exists()


def test_a_failed_view_comes_first_and_shows_its_traceback(
    page: Page,
    workers: Workers,
    pictures: Pictures,
    browser: Browser,
    live_server: Any,
    pytestconfig: pytest.Config,
) -> None:
    # given a view whose hook raises
    add_items(3)
    workers.start()
    view = ViewControl.objects.get(label=LABEL)
    RefreshSchedule.objects.create(view=view, every=1, period="hours")
    with fault(Limited, "do_insert", "raise"):
        open_view(page)
        page.get_by_role("button", name="Refresh now").click()
        expect(state(page)).to_have_text("failed")
    # then its page has the error and the traceback
    failed = page.locator("#matviews-phase-insert").locator("..")
    expect(failed.get_by_text("RuntimeError: do_insert was told to fail").first).to_be_visible()
    failed.get_by_text("Traceback").first.click()
    expect(failed.get_by_text("Traceback (most recent call last)")).to_be_visible()
    # and it is the first of the list, but for one that has errors where the database is SQLite
    page.goto(reverse("admin:matviews_viewcontrol_changelist"))
    rows = page.locator("#result_list tbody tr").filter(has_not_text="shapes.JsonKey")
    expect(rows.first).to_contain_text(LABEL)
    # and nothing is cut off in the dark, nor in a narrow window, nor in long German words
    cookies = page.context.cookies()
    every = pytestconfig.getoption("long") or pictures
    for name, options in WINDOWS.items() if every else [("german", WINDOWS["german"])]:
        with chromium.window(browser, base_url=live_server.url, **options) as other:
            other.context.add_cookies(cookies)  # type: ignore[arg-type]
            open_view(other)
            pictures.take(other, f"view-{name}", full_page=True)
            assert_nothing_is_cut_off(other)
            other.locator("#matviews-history").get_by_role("link").first.click()
            expect(other.get_by_role("heading", name="Status")).to_be_visible()
            pictures.take(other, f"refresh-{name}", full_page=True)
            assert_nothing_is_cut_off(other)
            other.goto(reverse("admin:matviews_viewcontrol_changelist"))
            pictures.take(other, f"list-{name}", full_page=True)
            assert_nothing_is_cut_off(other)


WINDOWS: dict[str, dict[str, Any]] = {
    "dark": {"color_scheme": "dark"},
    "narrow": {"width": 400},
    "german": {"width": 400, "locale": "de-DE", "color_scheme": "dark"},
}


def assert_nothing_is_cut_off(page: Page) -> None:
    too_wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(too_wide) <= 0
    for field in page.locator("#schedules-0 :is(input, select, label):visible").all():
        box = field.bounding_box()
        assert box
        assert box["x"] + box["width"] <= page.viewport_size["width"]  # type: ignore[index]
