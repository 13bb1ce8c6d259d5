"""The wave of a refresh in a real browser: nothing of it is cut off."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Browser, expect

from tests.admin.test_browser import WINDOWS, assert_nothing_is_cut_off, sign_in
from tests.admin.test_wave_section import page_of
from tests.helpers import chromium
from tests.helpers.chromium import Pictures
from tests.helpers.view_graphs import DIAMOND, built

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("window", ["plain", *WINDOWS])
def test_a_wave_is_to_be_seen(
    window: str, alone: None, browser: Browser, live_server: Any, pictures: Pictures
) -> None:
    User.objects.create_superuser("operator", password="secret")
    options = WINDOWS.get(window, {})
    with (
        built(DIAMOND) as views,
        chromium.window(browser, base_url=live_server.url, **options) as page,
    ):
        views.change()
        views.settle()
        sign_in(page)
        page.goto(page_of(views, "B"))
        expect(page.locator("#matviews-wave-heading")).to_be_visible()
        expect(page.locator(".matviews-lanes").get_by_role("link")).to_have_count(3)
        assert_nothing_is_cut_off(page)
        pictures.take(page, f"wave-{window}", full_page=True)
