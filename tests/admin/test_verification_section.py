"""Verifying and repairing a view from its page and the list, and what the page tells of that."""

import re
from typing import Any

import pytest
from django.test import Client

from matviews import engine, tasks
from matviews.models import Origin, VerifyRun, ViewControl
from tests.admin.test_pages import act, html, page
from tests.admin.test_source_section import built, section, text
from tests.helpers.additive_views import Sales
from tests.helpers.source_views import LABEL, sourced, staged
from tests.helpers.sums import kept_of
from tests.helpers.tables import execute
from tests.helpers.view_classes import run
from tests.sample.models import Limited

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("own_views"),
]


# The last verification


def test_a_view_that_was_never_verified_says_so(admin_client: Client) -> None:
    sourced()

    assert (
        text(section(admin_client, "verification")) == "Verification Never verified. Verify Repair"
    )


def test_a_verification_that_found_no_difference_is_good(admin_client: Client) -> None:
    built().verify()

    shown = section(admin_client, "verification")

    assert 'matviews-badge matviews-good">equal<' in shown
    assert re.search(
        r"equal verified [\d.]+ m?s ago Compared 10 rows, all "
        r"Differences 0 missing, 0 differing, 0 surplus Verify Repair$",
        text(shown),
    )


@pytest.mark.parametrize("source", [None, staged])
def test_what_differed_and_whether_it_was_mended_is_told(admin_client: Client, source: Any) -> None:
    view = built(source)
    view.objects.filter(value__lt=4).delete()
    view.objects.filter(value__gt=7).update(value=0)
    # when it is only compared
    view.verify()
    shown = section(admin_client, "verification")
    assert 'matviews-badge matviews-bad">differs<' in shown
    assert "4 missing, 2 differing, 0 surplus" in shown
    assert "Repaired" not in shown
    # when it is mended
    view.verify(repair=True)
    shown = section(admin_client, "verification")
    assert 'matviews-badge matviews-good">repaired<' in shown
    assert "Repaired 6 rows written" in text(shown)
    # and when it is compared again
    view.verify()
    assert ">equal<" in section(admin_client, "verification")


def test_a_sample_says_that_it_is_one(admin_client: Client) -> None:
    built().verify(sample=5)

    shown = text(section(admin_client, "verification"))

    assert "Compared 5 rows, a sample of about 5 keys" in shown


# Verifying from here


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The messages that would be sent."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(
        tasks.verify_slice, "apply_async", lambda arguments, **_options: sent.append(arguments)
    )
    return sent


def test_a_button_verifies_in_the_background_and_the_page_shows_the_result(
    admin_client: Client, sent: list[tuple[int, int]]
) -> None:
    # given a view of which a row differs
    view = built()
    view.objects.filter(value=3).update(value=-1)
    # when a person presses the button
    answer = admin_client.post(page(LABEL, "verify"), follow=True)
    assert [str(each) for each in answer.context["messages"]] == [
        f"Verification of {LABEL} queued."
    ]
    run = VerifyRun.objects.get()
    assert (run.origin, run.requested_by, run.repair) == (Origin.ADMIN, "admin", False)
    # then the page says that it waits, and polls
    assert "waits for a worker" in section(admin_client, "verification")
    live = admin_client.get(page(LABEL, "progress")).json()
    assert (live["works"], live["verifying"], live["refresh"]) == (True, "waits for a worker", None)
    # and when a worker has done it, what it found
    tasks.verify_slice(*sent[0])
    shown = text(section(admin_client, "verification"))
    assert "0 missing, 1 differing, 0 surplus" in shown
    assert "Requested by admin" in shown
    assert "differing: key=" in shown
    assert admin_client.get(page(LABEL, "progress")).json()["works"] is False
    # and a repair mends it
    admin_client.post(page(LABEL, "repair"))
    tasks.verify_slice(*sent[1])
    assert "Repaired 1 row written" in text(section(admin_client, "verification"))
    assert view.verify().equal


def test_the_list_verifies_several_and_refuses_one_without_a_source(
    admin_client: Client, sent: list[tuple[int, int]]
) -> None:
    built()
    messages = act(admin_client, "verify", LABEL, Limited._meta.label)

    assert messages == [
        f"Cannot verify {Limited._meta.label}: It has no source() to compare it with.",
        f"Verification of {LABEL} queued.",
    ]
    assert len(sent) == 1


def test_a_broker_that_is_down_is_told(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise ConnectionError("no broker")

    monkeypatch.setattr(tasks.verify_slice, "apply_async", refuse)
    built()

    (message,) = act(admin_client, "verify", LABEL)

    assert "The broker is unreachable (no broker)" in message
    assert VerifyRun.objects.exists()


@pytest.mark.parametrize("action", ["verify", "repair"])
def test_it_needs_the_permission_to_operate_and_a_post(
    client: Client, admin_client: Client, django_user_model: Any, action: str
) -> None:
    sourced()
    user = django_user_model.objects.create_user("viewer", is_staff=True)
    client.force_login(user)
    assert client.post(page(LABEL, action)).status_code == 403
    assert admin_client.get(page(LABEL, action)).status_code == 405
    assert not VerifyRun.objects.exists()


def test_an_error_and_what_was_left_out_are_shown(admin_client: Client) -> None:
    sourced()
    message = engine.request_verification(LABEL)
    assert message
    VerifyRun.objects.update(attempts=99)
    engine.verify_slice(message)
    control = ViewControl.objects.get(label=LABEL)
    left_out = {"differing": 1, "pending": 3, "parked": 2, "untracked": "no triggers"}
    control.verification = {**(control.verification or {}), **left_out}
    control.save()

    shown = text(section(admin_client, "verification"))

    assert "workers in a row died" in shown
    assert "Compared 0 rows Differences" in shown
    assert "Left out 3 with pending changes, 2 parked" in shown
    assert "Differences may be changes since the last refresh: no triggers." in shown


def test_a_view_without_a_source_has_no_such_section(admin_client: Client) -> None:
    assert "matviews-verification-heading" not in html(admin_client, page())


@pytest.mark.usefixtures("alone")
def test_sums_that_differ_are_told(admin_client: Client) -> None:
    label = "shapes.ShopTotal"
    with Sales().tracked() as sales:
        sales.add((1, 1, None))
        run(sales.View)
        sales.View.verify()
        assert "Sums 0 groups differ" in text(section(admin_client, "verification", label))

        execute(f"UPDATE {kept_of(sales.View).table} SET matviews_rows = 7")
        sales.View.verify()
        shown = section(admin_client, "verification", label)

        assert "Sums 1 group differs" in text(shown)
        assert ">differs<" in shown
