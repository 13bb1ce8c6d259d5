"""Triggers that were dropped, disabled or recreated: the view reports it, and so does the log."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import DateTimeField, F, Value
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from benchmarks.statements import statements
from matviews import changes, engine, tasks
from matviews.changes import tracking_spec
from matviews.databases import triggers_of
from matviews.engine import ViewStatus
from matviews.models import TrackedTable, ViewControl
from matviews.queryset import plan_of
from matviews.registry import registry
from matviews.states import ViewState
from tests.helpers.engine import let_time_pass
from tests.helpers.ledger import add_items
from tests.helpers.source_views import LABEL, sourced, windowed
from tests.helpers.tables import execute
from tests.helpers.view_classes import run
from tests.sample.models import Item

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

TABLE = Item._meta.db_table
NOT_LOGGED = (ViewState.NOT_LOGGED, (TABLE,))


@pytest.fixture
def view(alone: None) -> Iterator[type[Any]]:
    """A tracked view of items, up to date."""
    made = sourced(options={"freshness_target": timedelta(hours=1)})
    changes.install(engine.alias())
    add_items(3)
    run(made)
    yield made
    changes.remove(engine.alias())


def test_triggers_are_looked_at_only_where_no_change_waits(
    view: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    module = import_module("matviews.changes.change_status")
    read = module.row_to_tracked

    def reading(values: Any) -> Any:
        record, triggers = read(values)
        seen.append(bool(triggers))
        return record, triggers

    def is_complete() -> bool:
        found = changes.change_status(LABEL, tracking, engine.alias())
        assert found
        return found.complete

    monkeypatch.setattr(module, "row_to_tracked", reading)
    tracking = changes.tracking_of(plan_of(registry.find(view), engine.alias()))
    # given nothing that waits, then the triggers say that nothing has changed
    assert is_complete()
    # given a change in the log, and then in the queue, then it says enough
    Item.objects.update(value=F("value") + 1)
    assert not is_complete()
    engine.move_log()
    assert not is_complete()
    assert seen == [True, False, False]
    # and without the triggers, nothing that waits says nothing
    run(view)
    drop()
    assert not is_complete()


def status() -> ViewStatus:
    [found] = engine.view_statuses([LABEL])
    return found


def drop() -> None:
    dialect = triggers_of(engine.alias())
    dialect.execute(dialect.drop(TABLE, dialect.installed_triggers()[TABLE]))


def drop_one() -> None:
    name = min(triggers_of(engine.alias()).installed_triggers()[TABLE])
    execute(f"DROP TRIGGER {name}{f' ON {TABLE}' if connection.vendor == 'postgresql' else ''}")


def disable() -> None:
    execute(f"ALTER TABLE {TABLE} DISABLE TRIGGER USER")


def make_again() -> None:
    script = tracking_spec.tracked_tables(engine.alias())[TABLE]
    dialect = triggers_of(engine.alias())
    drop()
    dialect.execute(dialect.create(TABLE, tracking_spec.union(script.values())))


def forget_record() -> None:
    TrackedTable.objects.filter(table=TABLE).delete()


on_postgres = pytest.mark.only_on("postgres", reason="only there")
LOSSES = [drop, drop_one, pytest.param(disable, marks=on_postgres), forget_record]


@pytest.mark.usefixtures("view")
class TestIsToldEverywhere:
    @pytest.mark.parametrize("lose", LOSSES)
    def test_as_a_state_of_the_view(self, lose: Callable[[], None]) -> None:
        assert (status().state, status().not_logged, status().on_time) == (
            ViewState.ON_TIME,
            (),
            True,
        )

        lose()
        add_items(1)

        now = status()
        assert (now.state, now.not_logged) == NOT_LOGGED
        assert (now.on_time, now.change_lag, now.failed) == (False, None, False)

    def test_until_they_are_back(self) -> None:
        drop()
        run(LABEL)
        assert (status().state, status().not_logged) == NOT_LOGGED

        changes.install(engine.alias())

        assert (status().state, status().not_logged) == (ViewState.ON_TIME, ())
        assert status().change_lag is not None  # all keys are to be compared once more
        run(LABEL)
        assert (status().state, status().change_lag) == (ViewState.ON_TIME, None)

    def test_also_where_another_state_comes_first(self) -> None:
        drop()
        engine.request(LABEL)
        let_time_pass()

        assert (status().state, status().not_logged) == (ViewState.WAITING, (TABLE,))
        assert status().fault == ViewState.NOT_LOGGED

    def test_by_the_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        drop()

        call_command("update_materialized_views", "--list")
        text = capsys.readouterr().out
        assert re.search(rf"{LABEL} +changes not logged ", text)
        assert f"changes of {TABLE} are not logged" in text
        assert "--triggers install" in text

        call_command("update_materialized_views", "--list", "--format", "json")
        views = json.loads(capsys.readouterr().out)["views"]
        [listed] = [each for each in views if each["view"] == LABEL]
        assert (listed["state"], listed["not_logged"]) == ("changes not logged", [TABLE])

        with pytest.raises(CommandError, match=f"1 of 1 views is not on time: {LABEL}."):
            call_command("update_materialized_views", "--check")
        assert f"{LABEL}: not on time: changes of {TABLE} are not" in capsys.readouterr().out

    def test_in_the_admin(self, admin_client: Client) -> None:
        drop()

        views = admin_client.get(reverse("admin:matviews_viewcontrol_changelist"))
        control = ViewControl.objects.get(label=LABEL)
        page = admin_client.get(reverse("admin:matviews_viewcontrol_change", args=[control.pk]))

        assert "changes not logged" in views.content.decode()
        for response in (views, page):
            assert TABLE in response.content.decode()
        assert "--triggers install" in page.content.decode()


class TestTheMaintenanceTask:
    @pytest.mark.parametrize("lose", LOSSES[:3])
    def test_says_so_once(
        self, view: type[Any], lose: Callable[[], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        lose()

        with caplog.at_level(logging.WARNING, "matviews.changes"):
            tasks.maintain()
            tasks.maintain()

        [message] = [each.getMessage() for each in caplog.records]
        assert message.startswith("triggers are missing or disabled, so changes are not logged")
        assert "--triggers install" in message
        assert message.endswith(f"table={TABLE} views={LABEL}")
        assert {each.full_refresh_reason for each in run(view).runs.all()} == {
            f"no triggers log all changes of {TABLE}"
        }

    def test_has_all_keys_compared_where_they_are_back(
        self, view: type[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        if connection.vendor == "sqlite":  # which knows a trigger by its name alone
            TrackedTable.objects.update(
                triggers=[
                    f"{name}:1" for name in triggers_of(engine.alias()).installed_triggers()[TABLE]
                ]
            )
        make_again()
        if connection.vendor != "sqlite":
            assert (status().state, status().not_logged) == NOT_LOGGED

        with caplog.at_level(logging.WARNING, "matviews.changes"):
            tasks.maintain()

        [message] = [each.getMessage() for each in caplog.records]
        assert message.startswith("triggers were disabled or re-created")
        assert status().not_logged == ()
        refresh = run(view)
        reasons = {each.full_refresh_reason for each in refresh.runs.all()}
        assert reasons == {f"the triggers of {TABLE} were installed or replaced"}

    def test_leaves_alone_what_is_as_it_should_be(
        self, view: type[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "matviews.changes"):
            tasks.maintain()

        assert caplog.records == []
        assert view.is_fresh()

    def test_leaves_alone_what_is_installed_meanwhile(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has seen the triggers of before, and somebody has others by now."""
        dialect = type(triggers_of(engine.alias()))
        present = dialect.installed_triggers

        def present_before_others_were_made(self: Any) -> dict[str, dict[str, str]]:
            monkeypatch.setattr(dialect, "installed_triggers", present)
            TrackedTable.objects.update(triggers=["others"])
            return {}

        monkeypatch.setattr(dialect, "installed_triggers", present_before_others_were_made)
        engine.mark_missing_triggers()

        assert TrackedTable.objects.get().triggers == ["others"]


class TestIsNoAlarm:
    def test_for_a_view_that_is_not_tracked(self) -> None:
        run(sourced(options={"tracking": False}))

        assert (status().state, status().not_logged) == (ViewState.NO_TARGET, ())

    def test_for_a_table_of_which_no_trigger_can_tell(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each refresh is a full one: the target is compared with the last success."""
        dialect = type(triggers_of(engine.alias()))
        monkeypatch.setattr(
            dialect, "untrackable_tables", lambda _self, tables: dict.fromkeys(tables, "")
        )
        drop()
        assert (status().state, status().not_logged) == (ViewState.ON_TIME, ())

        two_hours_ago()

        assert (status().state, status().not_logged) == (ViewState.BEHIND, ())


def two_hours_ago() -> None:
    past = timezone.now() - timedelta(hours=2)
    ViewControl.objects.update(last_insert=past, last_update=past, last_delete=past)


class TestIsOnTime:
    """Told by the oldest change that is pending, where changes are logged."""

    def test_as_long_as_nothing_changes(self, view: type[Any]) -> None:
        two_hours_ago()

        now = status()
        assert (now.state, now.staleness, now.on_time) == (ViewState.ON_TIME, timedelta(), True)

    def test_until_a_change_has_waited_for_too_long(self, view: type[Any]) -> None:
        add_items(1)
        assert status().state == ViewState.ON_TIME

        ViewControl.objects.update(freshness_target=timedelta(microseconds=1))

        now = status()
        assert (now.state, now.on_time) == (ViewState.BEHIND, False)
        assert now.staleness == now.change_lag
        run(view)
        assert status().state == ViewState.ON_TIME

    def test_by_the_last_success_where_the_source_depends_on_the_time(self) -> None:
        def source() -> Any:
            now = Value(timezone.now(), DateTimeField())
            return windowed().alias(now=now).filter(now__gte=timezone.now() - timedelta(days=1))

        view = sourced(source, options={"freshness_target": timedelta(hours=1)})
        changes.install(engine.alias())
        try:
            run(view)
            assert status().state == ViewState.ON_TIME
            two_hours_ago()
            assert (status().state, status().change_lag) == (ViewState.BEHIND, None)
        finally:
            changes.remove(engine.alias())

    def test_by_the_changes_where_a_date_stays_the_same(self) -> None:
        day = Value(timezone.now(), DateTimeField())
        view = sourced(
            lambda: windowed().alias(day=day).filter(day__gte=day),
            options={"freshness_target": timedelta(hours=1)},
        )
        changes.install(engine.alias())
        try:
            run(view)
            two_hours_ago()
            assert status().state == ViewState.ON_TIME
        finally:
            changes.remove(engine.alias())

    def test_whatever_a_phase_did_that_the_view_no_longer_has(self, view: type[Any]) -> None:
        run(view)
        registry.unregister(LABEL)
        fewer = sourced(options={"phases": ["insert"]})
        changes.install(engine.alias())
        add_items(1)
        assert status().change_lag is not None

        run(fewer)

        assert status().change_lag is None


def test_many_views_cost_as_many_statements_as_one(view: type[Any]) -> None:
    def cost() -> int:
        with statements() as found:
            engine.view_statuses()
        return len(found)

    drop()
    cost()
    one = cost()
    for number in range(5):
        sourced(name=f"Other{number}")

    assert cost() == one
