"""The list of alarms: what is active comes first, and who may see it."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from matviews import engine
from matviews.models import Alarm, ViewControl
from tests.admin.test_pages import ESCAPED, SCRIPT, html

pytestmark = pytest.mark.django_db

ALARMS = "/admin/matviews/alarm/"
LABEL = "sample.Limited"


@pytest.fixture(autouse=True)
def _views() -> None:
    engine.sync_controls()


def alarm(kind: str = "failed", minutes: int = 10, **values: Any) -> Alarm:
    since = timezone.now() - timedelta(minutes=minutes)
    texts = {"text": f"{LABEL}: it fails", "error": "insert: ValueError: no"}
    raised = {"raised_at": since, "notified_at": since, "event": "raised"}
    view = values.pop("view", LABEL)
    return Alarm.objects.create(
        view=view, kind=kind, slot=kind, since=since, **{**texts, **raised, **values}
    )


def rows(shown: str) -> list[str]:
    """The text of each row."""
    body = shown[shown.index("<tbody>") :]
    found = re.findall(r"<tr>.*?</tr>", body, re.DOTALL)
    return [" ".join(re.sub("<[^>]*>", " ", each).split()) for each in found]


def test_active_alarms_come_first_with_cause_and_affected_views(admin_client: Client) -> None:
    now = timezone.now()
    alarm("no worker", view="", minutes=90, text="No worker runs.", error="", views=["shop.A"] * 12)
    alarm("behind", ended_at=now, is_open=None, minutes=1)
    alarm("suspended", minutes=5, undelivered="mail,hook")
    alarm("never built", raised_at=None, notified_at=None)

    first, second, third = rows(html(admin_client, ALARMS))

    assert first.startswith(f"{LABEL} suspended active Since: 5 min")
    assert "not delivered: mail, hook" in first
    assert f"{LABEL}: it fails insert: ValueError: no" in first
    assert second.startswith("matviews no worker active Since: 1 h 30 min")
    assert second.endswith("shop.A and 2 more")
    assert third.startswith(f"{LABEL} behind ended")


def test_each_leads_to_its_view_for_those_who_may_see_that(client: Client) -> None:
    alarm()
    page = f"/admin/matviews/viewcontrol/{ViewControl.objects.get(label=LABEL).pk}/change/"
    user = User.objects.create_user("somebody", is_staff=True)
    client.force_login(user)

    assert client.get(ALARMS).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_alarm"))
    assert page not in html(client, ALARMS)
    user.user_permissions.add(Permission.objects.get(codename="view_viewcontrol"))
    assert page in html(client, ALARMS)


def test_what_errors_say_is_text(admin_client: Client) -> None:
    alarm(error=SCRIPT, views=[SCRIPT])

    shown = html(admin_client, ALARMS)

    assert SCRIPT not in shown
    assert shown.count(ESCAPED) == 2


def test_it_takes_as_many_statements_for_many_alarms(admin_client: Client) -> None:
    def statements() -> int:
        with CaptureQueriesContext(connection) as captured:
            html(admin_client, ALARMS)
        return len(captured)

    alarm()
    statements()
    few = statements()
    for number in range(30):
        alarm(view=f"shop.View{number}")

    assert statements() == few


def test_it_is_in_german_too(admin_client: Client) -> None:
    alarm()
    shown = str(admin_client.get(ALARMS, headers={"accept-language": "de"}).content.decode())

    assert "Ursache" in shown
    assert "gescheitert aktiv Seit:" in rows(shown)[0]
