"""What an operator sets on a view's page: the fields of its control, and its schedules."""

from datetime import time, timedelta
from typing import Any
from unittest import mock

import pytest
from django.contrib.messages import get_messages
from django.db.models.signals import pre_save
from django.test import Client
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from matviews import engine, tasks
from matviews.models import Refresh, RefreshSchedule, ViewControl
from matviews.quiet_hours import QuietHours

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("own_views"),
]

SETTINGS = {"enabled": "on", "include_in_refresh_all": "on", "shard_count": "1"}
HOURLY = {
    "kind": "refresh",
    "enabled": "on",
    "phases": ["insert", "update", "delete"],
    "every": "1",
    "period": "hours",
}


def control(label: str = "sample.Limited") -> ViewControl:
    return ViewControl.objects.get(label=label)


def save(
    client: Client,
    *schedules: dict[str, Any],
    label: str = "sample.Limited",
    seen: ViewControl | None = None,
    **settings: str,
) -> Any:
    """Send the view's page with these schedules in place of those that it has, and settings.

    Whoever sends it has seen the page as it is now, or as it was with `seen`.
    """
    view = control(label)
    present = list(view.schedules.all())
    data: dict[str, Any] = {
        **SETTINGS,
        **settings,
        **{f"initial-{name}": shown(getattr(seen or view, name)) for name in SETTINGS},
        "schedules-TOTAL_FORMS": len(schedules),
        "schedules-INITIAL_FORMS": len(present),
    }
    for number, schedule in enumerate(schedules):
        data |= {f"schedules-{number}-{name}": value for name, value in schedule.items()}
        data[f"schedules-{number}-view"] = view.pk
        if number < len(present):
            data[f"schedules-{number}-id"] = present[number].pk
    return client.post(f"/admin/matviews/viewcontrol/{view.pk}/change/", data)


def shown(value: object) -> str:
    return "" if value is None else str(value)


def saved(answer: Any) -> list[str]:
    """The messages that came with what was saved."""
    assert answer.status_code == 302, errors(answer)
    return [str(message) for message in get_messages(answer.wsgi_request)]


def errors(answer: Any) -> list[dict[str, list[str]]]:
    """What was refused: by field, of the settings first, then of each schedule."""
    assert answer.status_code == 200
    (formset,) = answer.context["inline_admin_formsets"]
    forms = [answer.context["adminform"].form, *formset.formset.forms]
    return [{name: list(map(str, texts)) for name, texts in form.errors.items()} for form in forms]


class TestSchedules:
    def test_all_phases_ticked_stands_for_all(self, admin_client: Client) -> None:
        saved(save(admin_client, HOURLY))

        schedule = control().schedules.get()
        assert (schedule.phases, schedule.interval) == ([], timedelta(hours=1))
        shown = admin_client.get(f"/admin/matviews/viewcontrol/{control().pk}/change/")
        form = shown.context["inline_admin_formsets"][0].formset.forms[0]
        assert form["phases"].value() == ["insert", "update", "delete"]

    @pytest.mark.django_db(transaction=True)
    def test_a_change_is_followed_by_the_periodic_task(self, admin_client: Client) -> None:
        saved(save(admin_client, {**HOURLY, "phases": ["insert"]}))
        saved(save(admin_client, {**HOURLY, "phases": ["insert"], "every": "2"}))

        task = PeriodicTask.objects.get(name__startswith="matviews: schedule")
        assert (task.interval.every, task.interval.period) == (2, "hours")
        assert control().schedules.get().phases == ["insert"]
        # and the log of the admin tells of it
        history = admin_client.get(f"/admin/matviews/viewcontrol/{control().pk}/history/")
        assert b"Changed Every for schedule" in history.content

    def test_a_crontab_stands_for_the_interval(self, admin_client: Client) -> None:
        crontab = CrontabSchedule.objects.create(hour="3", minute="0")

        saved(save(admin_client, {**HOURLY, "every": "", "crontab": crontab.pk}))

        assert control().schedules.get().crontab == crontab

    def test_a_view_offers_the_phases_that_it_has(self, admin_client: Client) -> None:
        page = f"/admin/matviews/viewcontrol/{control('sample.Ledger').pk}/change/"
        form = admin_client.get(page).context["inline_admin_formsets"][0].formset.empty_form
        assert [value for value, _label in form.fields["phases"].choices] == ["insert"]

        refused = save(admin_client, {**HOURLY, "phases": ["delete"]}, label="sample.Ledger")

        assert list(errors(refused)[1]) == ["phases"]

    def test_a_phase_that_the_view_has_no_more_is_shown_and_refused(
        self, admin_client: Client
    ) -> None:
        RefreshSchedule.objects.create(
            view=control("sample.Ledger"), every=1, period="hours", phases=["insert", "delete"]
        )

        kept = save(admin_client, {**HOURLY, "phases": ["insert", "delete"]}, label="sample.Ledger")
        assert "has no phase delete" in errors(kept)[1]["phases"][0]

        saved(save(admin_client, {**HOURLY, "phases": ["insert"]}, label="sample.Ledger"))
        assert control("sample.Ledger").schedules.get().phases == []

    def test_a_schedule_can_verify_all_or_a_sample(self, admin_client: Client) -> None:
        verify = {**HOURLY, "kind": "verify"}
        saved(save(admin_client, {**verify, "sample": "500"}, label="shapes.CustomerTotal"))

        schedule = control("shapes.CustomerTotal").schedules.get()
        assert (schedule.kind, schedule.phases, schedule.sample) == ("verify", [], 500)
        # but not of a view without a source, nor a sample of a refresh
        (_control, found) = errors(save(admin_client, verify))
        assert found == {"kind": ["sample.Limited has no source() to compare it with."]}
        (_control, found) = errors(save(admin_client, {**HOURLY, "sample": "5"}))
        assert list(found) == ["sample"]

    @pytest.mark.parametrize(
        ("mistake", "field"),
        [
            ({"every": "0"}, "every"),
            ({"on_change": "on"}, "on_change"),
            ({"every": "-1"}, "every"),
            ({"every": "soon"}, "every"),
            ({"every": "999999999"}, "every"),
            ({"every": ""}, "every"),
            ({"crontab": "new"}, "crontab"),
            ({"period": "years"}, "period"),
            ({"phases": []}, "phases"),
            ({"phases": ["upsert"]}, "phases"),
            ({"jitter": "999999"}, "jitter"),
            ({"jitter": "-1"}, "jitter"),
            ({"jitter": "2", "every": "1", "period": "seconds"}, "jitter"),
        ],
    )
    def test_a_mistake_is_told_at_its_field_and_nothing_is_saved(
        self, admin_client: Client, mistake: dict[str, Any], field: str
    ) -> None:
        if mistake.get("crontab"):
            mistake = {"crontab": CrontabSchedule.objects.create().pk}

        found = errors(save(admin_client, {**HOURLY, **mistake}, batch_size="7"))

        assert [list(each) for each in found] == [[], [field]]
        assert len(found[1][field]) == 1
        assert not RefreshSchedule.objects.exists()
        assert control().batch_size is None

    def test_a_schedule_can_follow_changes(self, admin_client: Client) -> None:
        on_change = {**HOURLY, "on_change": "on", "every": "0", "period": "seconds"}
        saved(save(admin_client, on_change, label="shapes.CustomerTotal"))
        at_once = control("shapes.CustomerTotal").schedules.get()
        # without a time, as late as a target allows, if the view has one
        late = {**on_change, "every": ""}
        (_control, found) = errors(save(admin_client, late, label="shapes.CustomerTotal"))
        saved(save(admin_client, late, label="shapes.CustomerTotal", freshness_target="00:10:00"))
        by_target = control("shapes.CustomerTotal").schedules.get()

        assert (at_once.on_change, at_once.every) == (True, 0)
        assert list(found) == ["every"]
        assert (by_target.on_change, by_target.every) == (True, None)

    @pytest.mark.parametrize(
        ("mistake", "field"),
        [
            ({"kind": "verify"}, "on_change"),
            ({"crontab": "new", "every": ""}, "crontab"),
            ({"jitter": "5"}, "jitter"),
        ],
    )
    def test_what_goes_with_time_only_is_refused_on_change(
        self, admin_client: Client, mistake: dict[str, Any], field: str
    ) -> None:
        if mistake.get("crontab"):
            mistake = {**mistake, "crontab": CrontabSchedule.objects.create().pk}
        given = {**HOURLY, "on_change": "on", **mistake}

        (_control, found) = errors(save(admin_client, given, label="shapes.CustomerTotal"))

        assert field in found

    def test_two_schedules_that_share_a_phase_are_saved_with_a_sentence(
        self, admin_client: Client
    ) -> None:
        nightly = {**HOURLY, "phases": ["delete"], "period": "days"}

        messages = saved(save(admin_client, HOURLY, nightly))

        assert control().schedules.count() == 2
        assert (
            "Two schedules of sample.Limited request delete: every hour and every day. Requests "
            "that coincide are merged." in messages
        )

    def test_schedules_that_share_nothing_need_no_sentence(self, admin_client: Client) -> None:
        often = {**HOURLY, "phases": ["insert", "update"]}
        nightly = {**HOURLY, "phases": ["delete"], "period": "days"}
        disabled = {**HOURLY, "every": "5", "enabled": ""}

        messages = saved(save(admin_client, often, nightly, disabled))

        assert not any("Two schedules" in message for message in messages)

    def test_a_schedule_of_one_second_is_saved_with_a_sentence(self, admin_client: Client) -> None:
        messages = saved(save(admin_client, {**HOURLY, "period": "seconds"}))

        assert any("every second" in each and "merged" in each for each in messages)

    def test_whoever_may_only_look_sees_them_in_words(
        self, client: Client, admin_user: Any
    ) -> None:
        from django.contrib.auth.models import Permission, User

        RefreshSchedule.objects.create(view=control(), every=7, period="hours", phases=["insert"])
        looker = User.objects.create_user("looker", is_staff=True)
        looker.user_permissions.add(Permission.objects.get(codename="view_viewcontrol"))
        client.force_login(looker)

        shown = client.get(f"/admin/matviews/viewcontrol/{control().pk}/change/").content.decode()

        assert "every 7 hours" in shown
        assert "Refresh now" not in shown
        assert 'name="schedules-0-every"' not in shown


class TestSettings:
    def test_they_are_saved(self, admin_client: Client) -> None:
        settings = {
            "batch_size": "50", "batch_target": "0.5", "freshness_target": "00:10:00",
            "queue": "big",
        }  # fmt: skip

        saved(save(admin_client, seen=None, **settings))

        view = control()
        assert (view.batch_size, view.batch_target, view.queue) == (50, 0.5, "big")
        assert view.freshness_target == timedelta(minutes=10)

    def test_quiet_hours_need_both_times(self, admin_client: Client) -> None:
        page = save(admin_client, seen=None, quiet_from="22:00")
        assert list(errors(page)[0]) == ["quiet_until"]

        saved(save(admin_client, seen=None, quiet_from="22:00", quiet_until="06:00"))

        assert control().quiet_hours == QuietHours(time(22), time(6), "UTC")

    def test_disabling_a_view_is_one_of_them(self, admin_client: Client) -> None:
        saved(save(admin_client, enabled=""))

        assert not control().enabled

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("batch_size", "0"),
            ("batch_target", "0"),
            ("batch_target", "nan"),
            ("batch_target", "1e9"),
            ("freshness_target", "-1"),
            ("freshness_target", "0"),
            ("freshness_target", "999999999 23:59:59"),
            ("queue", "amq.big"),
            ("quiet_from", "22"),
            ("quiet_zone", "Mars/Olympus"),
            ("shard_count", "0"),
            ("shard_count", "2"),  # its hooks do not declare shard
        ],
    )
    def test_what_cannot_be_is_refused(self, admin_client: Client, field: str, value: str) -> None:
        assert list(errors(save(admin_client, seen=None, **{field: value}))[0]) == [field]

    @pytest.mark.django_db(transaction=True)
    def test_a_view_that_knows_shards_gets_them(self, admin_client: Client) -> None:
        saved(save(admin_client, label="sample.Sharded", shard_count="4"))

        assert control("sample.Sharded").shards.count() == 4

    @pytest.mark.django_db(transaction=True)
    def test_shards_wait_for_the_end_of_an_open_refresh(self, admin_client: Client) -> None:
        before = control("sample.Sharded").shards.count()
        engine.request("sample.Sharded")
        saved(save(admin_client, label="sample.Sharded", shard_count="4"))
        assert control("sample.Sharded").shards.count() == before

        Refresh.objects.all().delete()
        with mock.patch.object(tasks, "send", return_value=True):
            tasks.maintain()

        assert control("sample.Sharded").shards.count() == 4

    def test_what_others_change_meanwhile_stays(self, admin_client: Client) -> None:
        def pause(*, instance: ViewControl, **_kwargs: Any) -> None:
            ViewControl.objects.filter(pk=instance.pk).update(paused=True)

        pre_save.connect(pause, sender=ViewControl)
        try:
            saved(save(admin_client, batch_size="50"))
        finally:
            pre_save.disconnect(pause, sender=ViewControl)

        assert (control().batch_size, control().paused) == (50, True)

    def test_an_old_page_changes_nothing_that_its_reader_has_not(
        self, admin_client: Client
    ) -> None:
        old = control()
        ViewControl.objects.filter(pk=old.pk).update(enabled=False)

        saved(save(admin_client, seen=old, batch_size="50"))

        assert (control().batch_size, control().enabled) == (50, False)

    def test_pausing_is_no_setting(self, admin_client: Client) -> None:
        saved(save(admin_client, paused="on"))

        assert not control().paused
