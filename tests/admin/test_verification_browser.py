"""Verifications on a view's page in a real browser: each state, in narrow and wide windows."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from playwright.sync_api import Browser, Page, expect

from matviews import engine
from matviews.engine import VerifyMessage
from matviews.models import VerifyRun, ViewControl
from matviews.registry import registry
from tests.admin.test_browser import assert_nothing_is_cut_off, sign_in
from tests.helpers import chromium
from tests.helpers.chromium import Pictures
from tests.helpers.ledger import add_items
from tests.helpers.source_views import LABEL, sourced
from tests.helpers.view_classes import run

pytestmark = pytest.mark.django_db(transaction=True)

NARROW, WIDE = {"width": 400, "height": 900}, {"width": 1280, "height": 900}
WINDOWS: dict[str, dict[str, Any]] = {
    "narrow": NARROW,
    "narrow-dark": {**NARROW, "color_scheme": "dark"},
    "wide": WIDE,
    "wide-dark": {**WIDE, "color_scheme": "dark"},
}
ERROR = (
    "OperationalError: could not read block 1234 in file "
    '"base/16384/2619_fsm_of_a_table_with_a_name_that_has_no_space_in_it": read only 0 bytes'
)


@pytest.fixture(autouse=True)
def _views(transactional_db: None) -> Iterator[None]:
    with registry.preserved():
        engine.sync_controls()
        yield


def store(**values: Any) -> None:
    control = ViewControl.objects.get(label=LABEL)
    control.verification = {**(control.verification or {}), **values}
    control.save()


def requested(**options: Any) -> VerifyMessage:
    message = engine.request_verification(LABEL, requested_by="operator", **options)
    assert message
    return message


@pytest.mark.parametrize(
    "window",
    [
        "narrow",
        *(pytest.param(each, marks=pytest.mark.long) for each in WINDOWS if each != "narrow"),
    ],
)
def test_every_state_of_a_verification_is_to_be_seen(
    window: str, browser: Browser, live_server: Any, pictures: Pictures
) -> None:
    User.objects.create_superuser("operator", password="secret")
    view = sourced()
    add_items(1200)
    run(view)
    view.objects.filter(value__lt=7).delete()
    view.objects.filter(value__gt=1190).update(value=0)
    with chromium.window(browser, base_url=live_server.url, **WINDOWS[window]) as page:
        sign_in(page)

        def see(state: str, *texts: str) -> None:
            section = open_view(page)
            for text in texts:
                expect(section).to_contain_text(text)
            assert_nothing_is_cut_off(page)
            pictures.take(section, f"verification-{state}-{window}")

        message = requested()
        see("waiting", "waits for a worker", "Never verified.")
        VerifyRun.objects.update(started_at=engine.now(), progress={"rows_compared": 1_234_567})
        see("running", "verifying, 1,234,567 rows compared")
        VerifyRun.objects.update(progress={})
        engine.verify_slice(message)
        see("differs", "7 missing, 9 differing, 0 surplus", "differing: key=")
        store(untracked="", pending=17, parked=3, sample=100_000)
        ViewControl.objects.update(differing={"since": engine.now().isoformat()})
        see("left-out", "Rows have been known to differ", "17 with pending changes, 3 parked")
        message = requested(repair=True)
        VerifyRun.objects.update(started_at=engine.now(), progress={"rows_compared": 800})
        see("repairing", "repairing, 800 rows compared")
        VerifyRun.objects.update(progress={})
        engine.verify_slice(message)
        see("repaired", "16 rows written", "repaired")
        engine.verify_slice(requested())
        see("equal", "equal")
        store(error=ERROR)
        see("failed", "failed", "base/16384")


def open_view(page: Page) -> Any:
    """The section of the verification on the view's page."""
    control = ViewControl.objects.get(label=LABEL)
    page.goto(reverse("admin:matviews_viewcontrol_change", args=[control.pk]))
    return page.get_by_role("region", name="Verification", exact=True)
