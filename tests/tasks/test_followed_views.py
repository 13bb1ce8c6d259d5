"""What `check` and the admin say of views on change, and how the code's schedules begin."""

from datetime import date, timedelta
from typing import Any

import pytest
from django.core.checks import CheckMessage
from django.db.models import DateField, F, QuerySet, Value
from django.test import Client
from django.urls import reverse

from matviews import engine
from matviews.checks import check_on_change
from matviews.models import Refresh, RefreshSchedule, ViewControl
from matviews.tasks.checks import check_followed_views
from tests.helpers.ledger import add_items
from tests.helpers.source_views import LABEL, sourced
from tests.helpers.view_classes import run
from tests.sample.models import Item

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_views")]

MINUTE = timedelta(minutes=1)
UNTRACKED = (
    "sample.Sourced: MatviewMeta.refresh_on_change has no effect, because its changes are not "
    "tracked: MatviewMeta.tracking is False."
)
SLOW = (
    "The target of sample.Sourced is 10 s, but a refresh usually takes 40 s, so its rows exceed "
    "the target after each change."
)


def by_date() -> QuerySet[Any, Any]:
    today = Value(date(2026, 1, 1), output_field=DateField())
    items = Item.objects.alias(today=today).filter(today__gt=date(2020, 1, 1))
    return items.values("value", key=F("pk"))


def schedules(view: type[Any]) -> Any:
    return ViewControl.objects.get(label=view._meta.label).schedules


def found(problems: list[CheckMessage]) -> list[tuple[str, str | None]]:
    return [(problem.msg, problem.id) for problem in problems]


def checked() -> list[tuple[str, str | None]]:
    return found(check_followed_views(databases=[engine.alias()]))


class TestSchedulesFromTheCode:
    @pytest.mark.parametrize(
        ("options", "columns"),
        [
            ({"refresh_on_change": timedelta(seconds=90)}, [(True, 90, "seconds")]),
            ({"refresh_on_change": timedelta()}, [(True, 0, "seconds")]),
            ({"freshness_target": 10 * MINUTE}, [(True, None, "minutes")]),
            ({"freshness_target": MINUTE, "tracking": False}, []),
            (
                {"freshness_target": MINUTE, "refresh_every": MINUTE},
                [(False, 1, "minutes")],
            ),
        ],
    )
    def test_they_are_on_change_if_it_says_so_or_has_a_target_only(
        self, options: dict[str, Any], columns: list[Any]
    ) -> None:
        view = sourced(options=options)

        made = schedules(view).values_list("on_change", "every", "period")

        assert list(made) == columns


class TestChecks:
    def test_w046_a_view_that_is_not_tracked(self) -> None:
        sourced(options={"refresh_on_change": MINUTE, "tracking": False})

        assert found(check_on_change([engine.alias()])) == [(UNTRACKED, "matviews.W046")]
        assert check_on_change() == []

    def test_a_view_that_is_tracked_is_fine(self) -> None:
        sourced(options={"refresh_on_change": MINUTE})

        assert found(check_on_change([engine.alias()])) == []
        assert checked() == []

    def test_w047_dates_that_move_without_a_schedule_by_time(self) -> None:
        view = sourced(by_date, options={"refresh_on_change": MINUTE})
        on_change_only = checked()
        daily = RefreshSchedule(view=schedules(view).get().view, every=1, period="days")
        daily.save()

        assert [name for _text, name in on_change_only] == ["matviews.W047"]
        assert checked() == []

    def test_w048_a_target_that_refreshes_are_too_slow_for(self, admin_client: Client) -> None:
        view = sourced(options={"freshness_target": timedelta(seconds=10)})
        add_items(1)
        run(view)
        took(view, timedelta(seconds=9))
        fast = checked()
        took(view, timedelta(seconds=40))
        slow = checked()
        control = ViewControl.objects.get(label=LABEL)
        address = reverse("admin:matviews_viewcontrol_change", args=[control.pk])
        page = admin_client.get(address).content.decode()
        ViewControl.objects.update(freshness_target=MINUTE)

        assert fast == []
        assert slow == [(SLOW, "matviews.W048")]
        assert SLOW in page
        assert checked() == []

    def test_refreshes_without_work_and_of_other_phases_do_not_count(self) -> None:
        view = sourced(options={"freshness_target": {"insert": timedelta(seconds=10)}})
        run(view, phases=["delete"])
        took(view, MINUTE)
        control = ViewControl.objects.get(label=LABEL)
        Refresh.objects.create(
            view=control, phases=["insert"], origin="api", state="succeeded",
            requested_at=engine.now() - MINUTE, finished_at=engine.now(),
        )  # fmt: skip

        assert checked() == []


def took(view: type[Any], time: timedelta) -> None:
    """Let the refreshes of a view have taken so long, after waiting a minute for a worker."""
    Refresh.objects.filter(view__label=view._meta.label).update(
        requested_at=F("started_at") - MINUTE, finished_at=F("started_at") + time
    )
