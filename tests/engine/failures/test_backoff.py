"""A view that fails waits before its next try, and is suspended in the end."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from django.db import connection
from django.test import override_settings
from django_celery_beat.models import CrontabSchedule
from hypothesis import given
from hypothesis import strategies as st

from matviews import engine, signals, tasks
from matviews.databases import errors_of
from matviews.engine.dispatch import closing
from matviews.engine.failures import backoff
from matviews.engine.failures.definition_digest import definition_digest
from matviews.engine.work import loader
from matviews.engine.work.loader import load_works
from matviews.health import check_health
from matviews.models import Period, Refresh, RefreshSchedule, ViewControl
from matviews.registry import registry
from matviews.states import RefreshState, ViewState
from matviews.tasks import inline, periodic
from tests.helpers.database_errors import database_error
from tests.helpers.engine import begun_together, due, items, request_apart, shard_of, travel
from tests.helpers.ledger import fault
from tests.helpers.poison import Poisoned
from tests.helpers.view_classes import make_view, ready, run, six_hooks
from tests.management.test_command import command
from tests.sample.models import Fault, Item, Ledger, Limited

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
SOON = {"SUSPEND_AFTER_FAILURES": 3, "SUSPEND_AFTER": timedelta(seconds=25)}


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


@pytest.fixture
def failing() -> Iterator[Fault]:
    """There is work, and the insert hook of `Ledger` fails."""
    items(3)
    yield Fault.objects.create(view="Ledger", hook="do_insert", action="raise")
    Fault.objects.all().delete()


def control(view: type[Any] = Ledger) -> ViewControl:
    return ViewControl.objects.get(label=view._meta.label)


def status(view: type[Any] = Ledger) -> engine.ViewStatus:
    (found,) = engine.view_statuses([view._meta.label])
    return found


def every(view: type[Any], count: int, period: Period) -> None:
    RefreshSchedule.objects.create(view=control(view), every=count, period=period)


def tick(view: type[Any] = Ledger) -> Refresh:
    """What a schedule does, and the worker that takes its message."""
    refresh = engine.request(view)
    inline.run_until_idle([shard_of(view).pk])
    refresh.refresh_from_db()
    return refresh


def wake() -> list[int]:
    """What maintenance does, and the workers that take its messages."""
    woken = engine.wake()
    for view in woken:
        inline.run_until_idle(step.message.shard_id for step in engine.close_finished_in_view(view)
                     if step.message)  # fmt: skip
    return woken


def fail(times: int, view: type[Any] = Ledger) -> None:
    for _ in range(times):
        assert run(view).state == RefreshState.FAILED
        travel(timedelta(seconds=10))


@contextmanager
def few_refreshes_read(count: int) -> Iterator[None]:
    """Read no more than `count` open refreshes of a view."""
    loader._work_query.cache_clear()
    with (
        mock.patch.object(loader, "MAX_REFRESHES_READ", count),
        mock.patch.object(loader, "MAX_ROWS_READ", count),
    ):
        try:
            yield
        finally:
            loader._work_query.cache_clear()


@pytest.fixture
def told() -> Iterator[list[str]]:
    """The signals about the view's health, in order."""
    names: list[str] = []

    def suspended(**_kwargs: Any) -> None:
        names.append("suspended")

    def recovered(**_kwargs: Any) -> None:
        names.append("recovered")

    signals.view_suspended.connect(suspended)
    signals.view_recovered.connect(recovered)
    yield names
    signals.view_suspended.disconnect(suspended)
    signals.view_recovered.disconnect(recovered)


class TestWaiting:
    def test_requests_wait_join_and_are_done_when_the_wait_is_over(self, failing: Fault) -> None:
        # given a view that has failed
        assert tick().state == RefreshState.FAILED
        # when schedules and code ask again
        waiting = {tick().pk for _ in range(5)}
        # then they join one refresh, which waits, and nobody re-sends it
        (refresh,) = Refresh.objects.filter(pk__in=waiting)
        assert (refresh.state, refresh.requests) == (RefreshState.OPEN, 5)
        assert (status().state, status().failures) == (ViewState.FAILED, 1)
        assert timedelta(seconds=5) < (status().retry_in or HOUR) <= timedelta(seconds=10)
        assert (wake(), engine.rescue()) == ([], [])
        # and it is done without a person, once the wait is over
        failing.delete()
        travel(timedelta(seconds=10))
        assert wake() == [refresh.view_id]
        refresh.refresh_from_db()
        assert refresh.state == RefreshState.SUCCEEDED
        assert (status().failures, status().retry_in, status().failing_since) == (0, None, None)

    def test_two_maintenance_tasks_wake_a_view_once(self, failing: Fault) -> None:
        tick(), tick()
        travel(MINUTE)

        assert [len(engine.wake()) for _ in range(2)] == [1, 0]
        assert engine.rescue() == []  # its message is under way
        assert engine.close_finished(shard_of(Ledger).pk).message is not None

    def test_a_lost_message_of_a_woken_view_is_re_sent(self, failing: Fault) -> None:
        tick(), tick()
        travel(MINUTE)
        engine.wake()
        travel(2 * MINUTE)

        assert len(engine.rescue()) == 1

    def test_a_batch_whose_message_was_under_way_waits(self, failing: Fault) -> None:
        tick()
        refresh = engine.request(Ledger, force=True)
        message = due(Ledger)
        Refresh.objects.filter(pk=refresh.pk).update(forced=False)

        report = engine.run_batch(message)

        assert report.error == ""
        assert control().failures == 1

    def test_a_request_within_a_transaction_waits_and_is_merged(self, failing: Fault) -> None:
        tick()
        for _ in range(3):
            request_apart(Ledger)
        engine.close_finished_in_view(control().pk)

        states = Refresh.objects.order_by("pk").values_list("state", flat=True)
        assert sorted(states) == ["failed", "merged", "merged", "open"]

    @pytest.mark.usefixtures("failing")
    def test_a_person_tries_at_once_and_what_waited_is_tried_with_it(self) -> None:
        tick()
        waiting = tick()

        forced = run(Ledger)

        waiting.refresh_from_db()
        assert [forced.state, waiting.state] == ["failed", "failed"]
        assert control().failures == 2  # one try

    @pytest.mark.usefixtures("failing")
    def test_a_forced_request_does_not_join_one_that_waits(self) -> None:
        tick()
        waiting = tick()

        forced = engine.request(Ledger, force=True)

        assert forced.pk != waiting.pk
        assert engine.close_finished(shard_of(Ledger).pk).message is not None
        engine.request_stop(forced.pk)
        assert engine.close_finished(shard_of(Ledger).pk).message is None

    @pytest.mark.usefixtures("failing")
    def test_a_forced_request_begins_behind_any_number_that_wait(self) -> None:
        tick()
        oldest = [request_apart(Ledger), request_apart(Ledger)]
        last = Refresh.objects.filter(pk=request_apart(Ledger).pk)
        last.update(forced=True)

        with few_refreshes_read(2):
            work = load_works(oldest[0].view_id)[0]
            assert (work.refreshes, work.truncated, work.waits) == (oldest, True, False)
            last.update(stop_requested=True)
            assert load_works(oldest[0].view_id)[0].waits

    def test_what_is_fresh_does_not_depend_on_the_wait(self) -> None:
        items(1)
        with fault(Limited, "do_insert", "raise"):
            tick(Limited)
        assert Limited.is_fresh() is False
        Limited.insert(Limited.missing())

        assert Limited.is_fresh() is True
        assert backoff.is_waiting(control(Limited).pk)

    @pytest.mark.usefixtures("failing")
    def test_what_an_operator_saves_ends_the_wait(self) -> None:
        for save in (
            lambda: control().save(),
            lambda: RefreshSchedule.objects.create(view=control(), every=5),
        ):
            tick()
            assert backoff.is_waiting(control().pk)

            save()

            assert not backoff.is_waiting(control().pk)

    @pytest.mark.usefixtures("failing")
    def test_a_crontab_keeps_its_times(self) -> None:
        tick()

        tasks.refresh(Ledger._meta.label)
        assert control().retry_at is not None
        tasks.refresh(Ledger._meta.label, crontab=True)

        assert control().retry_at is None

    def test_the_task_of_a_crontab_says_so(self) -> None:
        crontab = CrontabSchedule.objects.create(minute="0")
        made = RefreshSchedule.objects.create(view=control(), crontab=crontab)
        task = periodic.desired_tasks()[periodic.name_of(made)]

        assert task.fields["kwargs"] == '{"crontab": true}'


class TestDelay:
    @given(st.integers(1, 10_000), st.integers(1, 10**7), st.floats(1, 10**6))
    def test_it_begins_at_the_interval_doubles_and_is_bounded(
        self, count: int, interval: int, longest: float
    ) -> None:
        def delay(failed: int) -> float:
            return backoff.delay_after(failed, timedelta(seconds=interval), longest)

        assert delay(1) == min(max(interval, 10), longest)
        assert delay(count + 1) == min(2 * delay(count), longest)

    @pytest.mark.usefixtures("failing")
    def test_it_is_that_of_the_shortest_enabled_schedule(self) -> None:
        every(Ledger, 2, Period.HOURS)
        every(Ledger, 5, Period.MINUTES)
        RefreshSchedule.objects.create(
            view=control(), every=1, period=Period.MINUTES, enabled=False
        )
        tick()

        left = status().retry_in
        assert left is not None
        assert 4 * MINUTE < left <= 5 * MINUTE

    def test_a_view_has_limits_of_its_own(self) -> None:
        def broken(cls: type[Any]) -> int:
            raise RuntimeError("broken")

        options = {
            "max_retry_delay": 3.0,
            "suspend_after_failures": 2,
            "suspend_after": timedelta(seconds=1),
        }
        with registry.preserved():
            hooks = six_hooks(
                needs_insert=classmethod(lambda cls: True), do_insert=classmethod(broken)
            )
            view = ready(make_view(options=options, **hooks))
            run(view)
            assert (status(view).retry_in or HOUR) <= timedelta(seconds=3)
            travel(timedelta(seconds=3))
            run(view)
            assert status(view).state == ViewState.SUSPENDED


class TestCounting:
    @pytest.mark.usefixtures("failing")
    def test_a_failure_counts_once_however_often_its_end_is_seen(self) -> None:
        refresh = engine.request(Ledger)
        engine.run_batch(due(Ledger))
        works = load_works(refresh.view_id)
        for _ in range(2):  # two processes that have read it while it was open
            closing._close_ended(works[0])
            works[0].refreshes = [refresh]

        assert control().failures == 1

    def test_refreshes_that_share_their_runs_are_one_failure(self) -> None:
        items(30)
        begun = begun_together(Ledger, 3, batch_size=10)
        with fault(Ledger, "do_insert", "raise"):
            inline.run_until_idle([shard_of(Ledger).pk])

        states = Refresh.objects.filter(pk__in=[each.pk for each in begun])
        assert set(states.values_list("state", flat=True)) == {"failed"}
        assert control().failures == 1

    def test_only_the_phase_that_failed_can_end_the_failing(self) -> None:
        items(3)
        run(Limited)
        Limited.objects.update(value=99)
        with fault(Limited, "do_update", "raise"):
            run(Limited)
        assert control(Limited).failed_phases == ["update"]

        run(Limited, phases=["insert"])
        assert (control(Limited).failures, status(Limited).state) == (1, ViewState.FAILED)
        assert "was told to fail" in status(Limited).error

        run(Limited, phases=["update"])
        assert (control(Limited).failures, control(Limited).failed_phases) == (0, [])

    @pytest.mark.usefixtures("failing")
    def test_a_stopped_refresh_says_nothing(self) -> None:
        tick()
        refresh = engine.request(Ledger, force=True)
        engine.request_stop(refresh.pk)
        engine.close_finished_in_view(refresh.view_id)

        assert control().failures == 1


@pytest.mark.usefixtures("alone")
class TestRecovering:
    """A view whose source has not changed recovers as any other does."""

    def test_it_has_work_until_it_has_succeeded(self, told: list[str]) -> None:
        view = Poisoned()
        with view.ready():
            view.fill(3)
            view.refresh()
            # given a release that broke it, and the next that mended it
            with mock.patch.object(view.View, "source", classmethod(lambda cls: 1 / 0)):
                run(view.View)
            assert status(view.View).state == ViewState.FAILED
            # when it is refreshed and nothing has changed
            assert run(view.View).state == RefreshState.SUCCEEDED
            # then it is told, and later requests are done at once
            assert (status(view.View).fault, told) == (None, ["recovered"])
            assert check_health().problems == ()
            assert not engine.request(view.View).runs.exists()

    def test_a_phase_that_the_next_release_drops_leaves_no_failure(self) -> None:
        view = Poisoned()
        with view.ready():
            view.refresh()
            ViewControl.objects.update(failures=1, failed_phases=["gone"])

            run(view.View)

            assert control(view.View).failures == 0


class TestSuspending:
    @override_settings(MATVIEWS=SOON)
    def test_it_is_told_once_and_ends_with_a_forced_success(
        self, failing: Fault, told: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        # given a view that fails often enough, and long enough
        fail(4)
        assert status().state == ViewState.SUSPENDED
        # when it fails again, because somebody insists
        fail(2)
        # then there was one alarm
        alarms = [each for each in caplog.records if each.getMessage().startswith("view suspended")]
        assert [(each.levelname, each.view) for each in alarms] == [  # type: ignore[attr-defined]
            ("ERROR", "sample.Ledger")
        ]
        assert told == ["suspended"]
        # and requests wait, however long
        travel(30 * HOUR)
        waiting = {tick().pk for _ in range(3)}
        assert (len(waiting), wake(), engine.rescue()) == (1, [], [])
        # and a success resumes it, and says so
        failing.delete()
        assert run(Ledger).state == RefreshState.SUCCEEDED
        assert told == ["suspended", "recovered"]
        assert set(Refresh.objects.filter(pk__in=waiting).values_list("state", flat=True)) == {
            "succeeded"
        }
        assert (status().state, status().suspended_at) == (ViewState.NO_TARGET, None)

    @override_settings(MATVIEWS={"SUSPEND_AFTER_FAILURES": 3})
    def test_not_before_its_time_has_passed(self, failing: Fault) -> None:
        fail(6)
        assert status().state == ViewState.FAILED
        travel(6 * HOUR)
        fail(1)
        assert status().state == ViewState.SUSPENDED

    @override_settings(MATVIEWS={"SUSPEND_AFTER": timedelta(seconds=5)})
    def test_not_before_its_number_is_reached(self, failing: Fault) -> None:
        fail(19)
        assert status().state == ViewState.FAILED
        fail(1)
        assert status().state == ViewState.SUSPENDED

    @override_settings(MATVIEWS=SOON)
    def test_an_outage_suspends_nothing_however_long(self) -> None:
        def unreachable(cls: type[Any]) -> int:
            raise ConnectionRefusedError("the warehouse is down")

        with registry.preserved():
            hooks = six_hooks(
                needs_insert=classmethod(lambda cls: True), do_insert=classmethod(unreachable)
            )
            view = ready(make_view(**hooks))
            fail(10, view)

            assert (status(view).state, status(view).failures) == (ViewState.FAILED, 10)
            assert control(view).own_failures == 0

    @override_settings(MATVIEWS=SOON)
    def test_a_person_resumes_it_and_its_requests_are_done(
        self, failing: Fault, told: list[str]
    ) -> None:
        fail(4)
        waiting = tick()
        failing.delete()

        engine.resume([control().pk])
        inline.run_until_idle([shard_of(Ledger).pk])

        waiting.refresh_from_db()
        assert (waiting.state, control().failures) == (RefreshState.SUCCEEDED, 0)
        assert told == ["suspended", "recovered"]

    @override_settings(MATVIEWS=SOON)
    def test_a_failure_elsewhere_is_no_changed_definition(self, failing: Fault) -> None:
        # given a suspended view, and somebody who tries it with other code
        fail(4)
        with mock.patch("matviews.engine.dispatch.closing.definition_digest", return_value="other"):
            fail(1)
        # then it stays suspended
        assert engine.release_changed() == []
        assert status().state == ViewState.SUSPENDED

    @override_settings(MATVIEWS=SOON)
    def test_a_changed_hook_resumes_it(
        self, failing: Fault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        fail(4)
        waiting = tick()
        assert engine.release_changed() == []

        def fixed(cls: type[Any], limit: int) -> int:
            missing = Item.objects.exclude(pk__in=cls.objects.values("key"))[:limit]
            return len(cls.objects.bulk_create(cls(key=item.pk) for item in missing))

        monkeypatch.setattr(Ledger, "do_insert", classmethod(fixed))
        caplog.set_level(logging.INFO, "matviews")
        assert engine.release_changed() == [control().pk]
        inline.run_until_idle([shard_of(Ledger).pk])

        waiting.refresh_from_db()
        assert waiting.state == RefreshState.SUCCEEDED
        assert "view tries again, its definition has changed view=sample.Ledger" in caplog.text

    @override_settings(MATVIEWS=SOON)
    def test_a_migration_of_its_app_resumes_it(self, failing: Fault) -> None:
        fail(4)

        engine.resume_migrated({"shapes"})
        assert status().state == ViewState.SUSPENDED
        failing.delete()
        waiting = tick()
        engine.resume_migrated({"sample"})
        assert status().suspended_at is None
        assert wake() == [control().pk]
        waiting.refresh_from_db()
        assert waiting.state == RefreshState.SUCCEEDED


class TestCommand:
    @pytest.mark.usefixtures("failing")
    def test_it_says_how_often_a_view_failed_and_when_it_tries_again(self) -> None:
        tick()

        for option in ("--list", "--check"):
            printed = command(option, "--models", "Ledger").out
            assert "failed 1 time in a row since " in printed
            assert "scheduled refreshes wait for " in printed
        (entry,) = json.loads(command("--check", "--models", "Ledger", "--format", "json").out)[
            "views"
        ]
        assert (entry["reason"], entry["failures"], entry["suspended_at"]) == ("failed", 1, None)
        assert 0 < entry["retry_in"] <= 10

    @override_settings(MATVIEWS=SOON)
    def test_it_says_that_a_view_is_suspended_and_how_to_go_on(self, failing: Fault) -> None:
        fail(4)

        listed, checked = (
            command(option, "--models", "Ledger") for option in ("--list", "--check")
        )
        assert (listed.status, checked.status) == (1, 1)
        assert "not on time: suspended" in checked.out
        assert "update_materialized_views --models sample.Ledger" in listed.out
        # and the command tries, whatever the state
        failing.delete()
        assert command("--models", "Ledger").status == 0
        assert status().suspended_at is None


class TestDigest:
    def test_it_depends_on_code_options_and_settings_of_batches(self) -> None:
        def first(cls: type[Any]) -> int:
            return 1 if "a" in {"a", "b", "c"} else 0

        def second(cls: type[Any]) -> int:
            return 2 if "a" in {"a", "b", "c"} else 0

        def digest(hook: Callable[[type[Any]], int], **options: Any) -> str:
            made = make_view(options=options, **six_hooks(do_insert=classmethod(hook)))
            return definition_digest(registry.register(made))

        with registry.preserved():
            before = digest(first)
            assert digest(first) == before
            assert len({before, digest(second), digest(first, statement_timeout=5.0)}) == 3
            assert digest(first, strategy="full") != before
            with override_settings(MATVIEWS={"STATEMENT_TIMEOUT": 5.0}):
                assert digest(first) != before
            with override_settings(MATVIEWS={"LEASE": 5.0}):
                assert digest(first) == before


EXTERNAL: dict[str, list[Any]] = {
    "postgresql": ["08006", "25006", "28P01", "40P01", "42501", "53100", "53300", "55P03", "57P01",
                   "58030"],
    "mysql": [1021, 1026, 1040, 1114, 1142, 1205, 1213, 1290, 1792, 1836, 1226, 2006,
              2013],
    "sqlite": ["SQLITE_BUSY", "SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_READONLY_DBMOVED"],
}  # fmt: skip
OF_THE_VIEW: dict[str, list[Any]] = {
    "postgresql": ["22012", "22001", "23505", "42703", "57014", "P0001"],
    "mysql": [1054, 1062, 1146, 1264, 1365, 1406, 1969],
    "sqlite": ["SQLITE_CONSTRAINT_UNIQUE", "SQLITE_ERROR", "SQLITE_MISMATCH"],
}


class TestCauses:
    @pytest.mark.parametrize("outside", [True, False])
    def test_each_code_is_of_the_view_or_not(self, outside: bool) -> None:
        for code in (EXTERNAL if outside else OF_THE_VIEW)[connection.vendor]:
            assert errors_of("default").is_external(database_error(code)) is outside, code

    def test_what_a_hook_makes_of_an_outage_is_one_as_well(self) -> None:
        errors = errors_of("default")
        wrapped = ValueError("no rates")
        wrapped.__cause__ = TimeoutError()

        assert errors.is_external(wrapped)
        assert not errors.is_external(ValueError("no rates"))
        assert not errors.is_external(MemoryError())
