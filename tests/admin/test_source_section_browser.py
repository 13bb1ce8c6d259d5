"""The page of a view with a `source()` in a real browser: nothing of it is cut off."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from playwright.sync_api import Browser, Page, expect

from matviews import changes, engine
from matviews.models import ViewControl
from matviews.registry import registry
from tests.admin.test_browser import WINDOWS, assert_nothing_is_cut_off, sign_in
from tests.helpers import chromium
from tests.helpers.chromium import Pictures
from tests.helpers.ledger import add_items
from tests.helpers.source_views import LABEL, sourced
from tests.helpers.view_classes import run

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _view(transactional_db: None) -> Iterator[None]:
    with registry.preserved():
        engine.sync_controls()
        yield


@pytest.mark.parametrize("window", ["dark", "narrow", "plain"])
def test_path_verification_and_changed_definition_are_to_be_seen(
    window: str, browser: Browser, live_server: Any, pictures: Pictures
) -> None:
    # given a view that was built, and never verified
    User.objects.create_superuser("operator", password="secret")
    view = sourced()
    add_items(1200)
    run(view)
    options = WINDOWS.get(window, {})
    with chromium.window(browser, base_url=live_server.url, **options) as page:
        sign_in(page)
        shown = open_view(page)
        expect(shown.get_by_text("Never verified")).to_be_visible()
        pictures.take(page, f"source-unverified-{window}", full_page=True)
        assert_nothing_is_cut_off(page)
        # when it differs, is verified, and its definition changes
        view.objects.filter(value__lt=3).delete()
        view.objects.filter(value__gt=1190).update(value=0)
        view.verify()
        control = ViewControl.objects.get(label=LABEL)
        control.fingerprints |= {"insert": "an older one", "update": "an older one"}
        control.save()
        changes.install(engine.alias())  # or the state would be that changes are not logged
        # then its page and the list have all of that
        shown = open_view(page)
        expect(shown.get_by_text("differs", exact=True)).to_be_visible()
        expect(shown.get_by_text("3 missing, 9 differing, 0 surplus")).to_be_visible()
        expect(page.locator("#matviews-phases").get_by_text("definition changed")).to_have_count(2)
        pictures.take(page, f"source-verified-{window}", full_page=True)
        assert_nothing_is_cut_off(page)
        page.goto(reverse("admin:matviews_viewcontrol_changelist"))
        row = page.locator("#result_list tbody tr", has_text=LABEL)
        expect(row.get_by_text("definition changed")).to_be_visible()
        pictures.take(page, f"source-list-{window}", full_page=True)
        assert_nothing_is_cut_off(page)


def open_view(page: Page) -> Any:
    """The section of the verification on the view's page."""
    page.goto(reverse("admin:matviews_viewcontrol_changelist"))
    page.get_by_role("link", name=LABEL).first.click()
    return page.get_by_role("region", name="Verification", exact=True)
