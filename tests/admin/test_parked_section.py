"""The parked keys of a view on its page, and the buttons that have them tried again."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.db.models import F
from django.test import Client, override_settings

from matviews import tasks
from matviews.admin import parked_section
from matviews.engine.parking.parked_keys import FIRST_RETRY
from matviews.models import ParkedKey, Refresh, ViewControl
from tests.helpers.poison import Poisoned

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]

BAD = [3, 5, 7]


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[Poisoned]:
    """A view with three parked keys."""
    monkeypatch.setattr(tasks, "send", lambda messages: True)
    poisoned = Poisoned()
    with poisoned.ready():
        poisoned.fill(60)
        poisoned.poison("null", *BAD)
        poisoned.refresh()
        yield poisoned


def page(action: str = "change") -> str:
    control = ViewControl.objects.get(label="shapes.Made")
    return f"/admin/matviews/viewcontrol/{control.pk}/{action}/"


def section(client: Client) -> str:
    """The part of the page, without tags."""
    shown = client.get(page()).content.decode()
    part = re.search(r'id="matviews-parked">(.*?)</section>', shown, re.DOTALL)
    assert part
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", part[1]))


def retry(client: Client, **data: Any) -> list[str]:
    """Press a button; what the page says then."""
    answer = client.post(page("retry-parked"), data)
    assert answer.headers["Location"] == page()
    return [str(message) for message in get_messages(answer.wsgi_request)]


def due() -> list[int]:
    """The keys that the next refresh tries again."""
    soon = timedelta(seconds=FIRST_RETRY / 2)
    found = ParkedKey.objects.order_by("pk")
    return [row.key[0] for row in found if row.retry_at < row.last_seen + soon]


def test_each_key_is_listed_with_its_error(admin_client: Client, source: Poisoned) -> None:
    shown = section(admin_client)

    assert "3 keys are left out" in shown
    for key in BAD:
        assert re.search(rf" {key} +insert +RowRefused: Column needed", shown), shown
    assert shown.count("once,") == 3


def test_no_value_is_shown_that_the_settings_do_not_allow(
    admin_client: Client, source: Poisoned
) -> None:
    with override_settings(MATVIEWS={"VALUES_IN_ERRORS": "none"}):
        assert section(admin_client).count("left out insert") == 3


def test_the_last_tried_come_first_and_the_others_are_counted(
    admin_client: Client, source: Poisoned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parked_section, "MAX_LISTED", 2)
    ParkedKey.objects.filter(key=[5]).update(last_seen=F("last_seen") + timedelta(hours=1))

    shown = section(admin_client)

    assert "3 keys are left out" in shown
    assert "1 more, which failed earlier, is not listed." in shown
    assert shown.index(" 5 insert") < shown.index(" 7 insert")
    assert " 3 insert" not in shown


def test_chosen_keys_are_tried_again(admin_client: Client, source: Poisoned) -> None:
    chosen = ParkedKey.objects.filter(key=[5]).values_list("pk", flat=True)

    told = retry(admin_client, key=list(chosen), ticked="")

    assert told == [
        "The next refresh tries 1 parked key again.", "Refresh of shapes.Made queued.",
    ]  # fmt: skip
    assert due() == [5]
    assert Refresh.objects.latest("pk").requested_by == "admin"
    assert LogEntry.objects.filter(
        change_message__contains="Requested another try of 1 parked keys."
    ).exists()


def test_all_keys_are_tried_again_also_those_that_are_not_listed(
    admin_client: Client, source: Poisoned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parked_section, "MAX_LISTED", 2)
    retry(admin_client, all="")
    assert due() == BAD


def test_none_ticked_or_none_left_is_said(admin_client: Client, source: Poisoned) -> None:
    assert retry(admin_client, ticked="") == ["Tick at least one key."]
    gone = retry(admin_client, key=["999999", "x", "9" * 30, "9" * 5_000], ticked="")
    assert gone[-1] == "None of these keys is parked any more."
    assert Refresh.objects.filter(state="open").count() == 0


def test_whoever_may_only_look_gets_no_buttons(client: Client, source: Poisoned) -> None:
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_viewcontrol"))
    client.force_login(user)

    assert "Retry" not in section(client)
    assert client.post(page("retry-parked"), {"all": ""}).status_code == 403


def test_a_view_without_parked_keys_says_so(admin_client: Client, source: Poisoned) -> None:
    source.heal(*BAD)
    source.refresh()
    assert "No key is parked." in section(admin_client)
