"""What people and programs read about a wait."""

import pytest
from django.utils import translation

from matviews import engine
from matviews.models import Refresh, VerifyRun, ViewControl
from matviews.waits import Wait, WaitCode

WAITS = [
    (
        Wait(WaitCode.QUIET_HOURS, {"hours": "22:00 to 06:00 UTC"}),
        "quiet hours: 22:00 to 06:00 UTC",
        "Ruhezeit: 22:00 to 06:00 UTC",
    ),
    (
        Wait(WaitCode.REPLICATION_LAG, {"found": 7.4, "limit": 5}),
        "7 s of replication lag, of at most 5",
        "7 s Replikationsverzug, höchstens 5",
    ),
    (
        Wait(WaitCode.ACTIVE_SESSIONS, {"found": 1_100, "limit": 1_000}),
        "1,100 active sessions, of at most 1,000",
        "1.100 aktive Sitzungen, höchstens 1.000",
    ),
    (
        Wait(WaitCode.TRANSACTION_AGE, {"found": 9.0, "limit": 5}),
        "9 s since a transaction began, of at most 5",
        "9 s seit Beginn einer Transaktion, höchstens 5",
    ),
    (
        Wait(WaitCode.VACUUM, {"tables": "shop_item"}),
        "shop_item is being vacuumed",
        "VACUUM läuft auf shop_item",
    ),
    (
        Wait(WaitCode.MAX_REFRESHES, {"limit": 1, "queue": ""}),
        "at most 1 view is refreshed at the same time",
        "höchstens 1 View wird gleichzeitig aktualisiert",
    ),
    (
        Wait(WaitCode.MAX_REFRESHES, {"limit": 2, "queue": "reports"}),
        "at most 2 views of the queue reports are refreshed at the same time",
        "höchstens 2 Views der Queue reports werden gleichzeitig aktualisiert",
    ),
    (
        Wait(WaitCode.TURNS),
        "takes turns with other long refreshes",
        "wechselt sich mit anderen langen Aktualisierungen ab",
    ),
    (
        Wait(WaitCode.UPSTREAM),
        "waits for refreshes of views that it reads",
        "wartet auf Aktualisierungen von Views, die sie liest",
    ),
]


@pytest.mark.parametrize(("wait", "english", "german"), WAITS)
def test_commands_and_logs_are_in_english_and_people_see_their_language(
    wait: Wait, english: str, german: str
) -> None:
    with translation.override("de"):
        assert (str(wait), wait.shown) == (english, german)
    with translation.override("en"):
        assert wait.shown == english


def test_every_code_has_its_sentences() -> None:
    assert {wait.code for wait, *_sentences in WAITS} == set(WaitCode)


def test_the_code_of_a_newer_version_is_shown_as_it_is() -> None:
    assert str(Wait("full moon", {"days": 2})) == Wait("full moon").shown == "full moon"


@pytest.mark.database
@pytest.mark.django_db
@pytest.mark.parametrize("wait", [each for each, *_sentences in WAITS])
def test_the_bookkeeping_keeps_them_whole(wait: Wait) -> None:
    engine.sync_controls()
    view = ViewControl.objects.order_by("pk")[0]
    ViewControl.objects.filter(pk=view.pk).update(wait=wait)
    refresh = Refresh.objects.create(
        view=view, phases=[], proceeded_despite=wait, requested_at=engine.now()
    )
    run = VerifyRun.objects.create(
        view=view, wait=wait, proceeded_despite=wait, requested_at=engine.now()
    )
    for row in (view, refresh, run):
        row.refresh_from_db()

    assert view.wait == refresh.proceeded_despite == run.wait == run.proceeded_despite == wait
    assert ViewControl.objects.filter(wait__isnull=False).count() == 1
    ViewControl.objects.update(wait=None)
    assert not ViewControl.objects.filter(wait__isnull=False).exists()
