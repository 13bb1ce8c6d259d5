"""Alarms: what has lasted is told once, and so is its end, whoever is told and whatever hangs."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from django.core import mail
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from matviews import engine, signals, tasks
from matviews.checks import check_settings
from matviews.models import Alarm, AlarmEvent, Heartbeat, RefreshSchedule, ViewControl
from matviews.tasks import alarms, delivery, time_limits
from matviews.tasks.alarm_causes import causes_of
from matviews.tasks.problems import Health, HealthState, Problem, check_health
from tests.helpers.engine import items, travel
from tests.helpers.hanging import until_the_end
from tests.helpers.ledger import fault
from tests.helpers.view_classes import run
from tests.sample.models import Ledger

pytestmark = pytest.mark.django_db(transaction=True)

MINUTE = timedelta(minutes=1)
LABEL, OTHER = "sample.Limited", "sample.Whole"
FAILED = Problem(HealthState.DEGRADED, "failed", LABEL, f"{LABEL}: it fails", "ValueError: no")
SUSPENDED = Problem(HealthState.DEGRADED, "suspended", LABEL, f"{LABEL}: it is suspended")
BEHIND = Problem(HealthState.DEGRADED, "behind", OTHER, f"{OTHER}: it is late")
NO_POLLING = Problem(HealthState.DEGRADED, "no polling", "", "Nobody polls")
NO_WORKER = Problem(HealthState.BROKEN, "no worker", "", "No worker runs")
DATABASE = Problem(HealthState.BROKEN, "database", "", "The database refuses")


class Told:
    """What is wrong, and what people were told of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self.problems: tuple[Problem, ...] = ()
        monkeypatch.setattr(alarms, "check_health", lambda: Health.of(self.problems))
        for signal in (signals.view_alarm, signals.view_alarm_ended):
            signal.connect(self._hear)

    def _hear(self, *, alarm: Alarm, **_kwargs: Any) -> None:
        self.lines.append(f"{alarm.event} {alarm.view}: {alarm.kind}")

    def after(self, minutes: float, *problems: Problem) -> list[str]:
        """What is told if these problems are found, so many minutes later."""
        travel(minutes * MINUTE)
        self.problems, self.lines = problems, []
        alarms.notify()
        return self.lines


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    engine.sync_controls()
    return Told(monkeypatch)


@pytest.fixture
def hook(settings: Any) -> Iterator[list[list[Alarm]]]:
    """The lists of alarms that the project's hook was called with."""
    settings.MATVIEWS = {"ALARM_HOOK": f"{__name__}.remember"}
    REMEMBERED.clear()
    yield REMEMBERED
    FAULTS.clear()


REMEMBERED: list[list[Alarm]] = []
FAULTS: list[Callable[[], object]] = []


def remember(found: list[Alarm]) -> None:
    for happens in FAULTS:
        happens()
    REMEMBERED.append(found)


@pytest.mark.database
class TestLasting:
    def test_a_problem_is_told_once_it_has_lasted_and_once_it_is_gone_for_long(
        self, told: Told
    ) -> None:
        assert told.after(0, FAILED) == []
        assert told.after(4, FAILED) == []
        assert told.after(1, FAILED) == [f"raised {LABEL}: failed"]
        assert told.after(1, FAILED) == []
        assert told.after(1) == []
        assert told.after(4) == []
        assert told.after(1) == [f"ended {LABEL}: failed"]
        assert told.after(1) == []
        assert Alarm.objects.get().is_open is None

    def test_what_passes_is_never_told(self, told: Told) -> None:
        told.after(0, FAILED)

        assert told.after(4) == []
        assert not Alarm.objects.exists()
        assert told.after(2, FAILED) == []

    def test_what_comes_and_goes_is_one_alarm(self, told: Told) -> None:
        told.after(0, FAILED)
        lines = [told.after(5, *([FAILED] * (minute % 2))) for minute in range(1, 20)]

        assert [line for told_now in lines for line in told_now] == [f"raised {LABEL}: failed"]

    @pytest.mark.parametrize("kind", ["suspended", "invalid"])
    def test_what_needs_a_person_is_told_at_once(self, told: Told, kind: str) -> None:
        assert told.after(0, FAILED._replace(kind=kind)) == [f"raised {LABEL}: {kind}"]

    @pytest.mark.parametrize("kind", ["never built", "definition changed"])
    def test_what_the_next_night_mends_is_told_after_it(self, told: Told, kind: str) -> None:
        problem = FAILED._replace(kind=kind)
        told.after(0, problem)

        assert told.after(24 * 60, problem) == []
        assert told.after(6 * 60, problem) == [f"raised {LABEL}: {kind}"]

    def test_it_is_repeated_every_four_hours_until_it_ends(self, told: Told) -> None:
        told.after(0, FAILED)
        lines = [told.after(15, FAILED) for _time in range(4 * 24)]

        assert [line for told_now in lines for line in told_now] == [
            f"raised {LABEL}: failed", *[f"repeated {LABEL}: failed"] * 5,
        ]  # fmt: skip

    def test_a_view_that_gets_worse_is_told_again_and_one_that_gets_better_is_not(
        self, told: Told
    ) -> None:
        told.after(0, FAILED)
        told.after(5, FAILED)

        assert told.after(1, SUSPENDED) == [f"raised {LABEL}: suspended"]
        assert told.after(1, FAILED) == []
        assert told.after(1, BEHIND._replace(view=LABEL)) == []
        told.after(1)
        assert told.after(5) == [f"ended {LABEL}: behind"]

    def test_one_that_goes_from_bad_to_worse_and_back_is_told_once_an_hour(
        self, told: Told
    ) -> None:
        behind = BEHIND._replace(view=LABEL)
        told.after(0, behind)
        told.after(5, behind)
        lines = [told.after(10, [FAILED, behind][minute % 2]) for minute in range(18)]

        assert 2 <= len([line for told_now in lines for line in told_now]) <= 3

    def test_what_was_not_told_must_last_in_its_worse_state(self, told: Told) -> None:
        changed = FAILED._replace(kind="definition changed")
        told.after(0, changed)
        told.after(600, changed)

        assert told.after(1, FAILED) == []
        assert told.after(5, FAILED) == [f"raised {LABEL}: failed"]

    def test_other_kinds_of_a_view_have_alarms_of_their_own(self, told: Told) -> None:
        differs = FAILED._replace(kind="differs")
        told.after(0, FAILED, differs)

        assert sorted(told.after(5, FAILED, differs)) == [
            f"raised {LABEL}: differs", f"raised {LABEL}: failed",
        ]  # fmt: skip

    def test_keys_that_stay_parked_hide_nothing_that_comes_later(self, told: Told) -> None:
        parked, behind = (FAILED._replace(kind=kind) for kind in ("keys parked", "behind"))
        told.after(0, parked)
        assert told.after(5, parked) == [f"raised {LABEL}: keys parked"]
        told.after(1, parked, behind)
        assert told.after(5, parked, behind) == [f"raised {LABEL}: behind"]
        told.after(1, parked)
        assert told.after(5, parked) == [f"ended {LABEL}: behind"]

    def test_an_alarm_comes_back_after_its_end(self, told: Told) -> None:
        for _time in range(2):
            told.after(0, FAILED)
            assert told.after(5, FAILED) == [f"raised {LABEL}: failed"]
            told.after(1)
            assert told.after(5) == [f"ended {LABEL}: failed"]

    def test_if_health_cannot_be_found_nothing_ends(self, told: Told) -> None:
        told.after(0, FAILED)
        told.after(5, FAILED)
        told.after(1, DATABASE)

        assert told.after(60, DATABASE) == ["raised : database"]
        told.after(1, FAILED)
        assert told.after(5, FAILED) == ["ended : database"]

    def test_a_view_without_its_table_keeps_no_alarm_of_others_open(self, told: Told) -> None:
        missing = BEHIND._replace(kind="not migrated")
        told.after(0, FAILED)
        told.after(5, FAILED, missing)
        told.after(1, missing)

        assert f"ended {LABEL}: failed" in told.after(5, missing)

    def test_paused_and_disabled_views_raise_none(self, told: Told) -> None:
        ViewControl.objects.filter(label=LABEL).update(
            suspended_at=timezone.now(), paused=True, failures=20
        )
        assert LABEL not in [each.view for each in check_health().problems]

    def test_ended_alarms_are_trimmed_with_the_history(self, told: Told) -> None:
        told.after(0, SUSPENDED)
        told.after(1)
        told.after(5)

        travel(timedelta(days=29))
        engine.trim_alarms()
        assert Alarm.objects.count() == 1
        travel(timedelta(days=1))
        engine.trim_alarms()
        assert not Alarm.objects.exists()

    def test_if_nothing_changes_it_costs_two_statements(self, told: Told) -> None:
        told.after(0, FAILED)
        told.after(5, FAILED)
        with CaptureQueriesContext(connection) as captured:
            alarms.notify()

        words = [each["sql"].split()[0] for each in captured]
        assert words.count("SELECT") == 2
        assert words.count("UPDATE") == 1


@pytest.mark.database
class TestOnce:
    def test_two_maintenance_tasks_tell_it_once(
        self, told: Told, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told.after(0, FAILED)
        compare = alarms._compare

        def and_meanwhile_another(*args: Any, **kwargs: Any) -> list[int]:
            listed = compare(*args, **kwargs)
            monkeypatch.setattr(alarms, "_compare", compare)
            alarms.notify()
            return listed

        monkeypatch.setattr(alarms, "_compare", and_meanwhile_another)
        assert told.after(5, FAILED) == [f"raised {LABEL}: failed"]

    def test_two_that_see_it_first_make_one_row(
        self, told: Told, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        new = alarms._new

        def and_meanwhile_another(*args: Any) -> Alarm:
            monkeypatch.setattr(alarms, "_new", new)
            alarms.notify()
            return new(*args)

        monkeypatch.setattr(alarms, "_new", and_meanwhile_another)
        told.after(0, SUSPENDED)

        assert told.lines == [f"raised {LABEL}: suspended"]
        assert Alarm.objects.count() == 1

    def test_two_that_see_it_get_worse_tell_it_once(
        self, told: Told, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told.after(0, FAILED)
        told.after(5, FAILED)
        update = alarms._update

        def after_another(*args: Any) -> None:
            monkeypatch.setattr(alarms, "_update", update)
            alarms.notify()
            update(*args)

        monkeypatch.setattr(alarms, "_update", after_another)

        assert told.after(1, SUSPENDED) == [f"raised {LABEL}: suspended"]
        assert told.after(1, SUSPENDED) == []

    def test_what_gets_worse_while_it_is_told_is_told_again(
        self, told: Told, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told.after(0, FAILED)
        deliver = delivery.deliver

        def and_meanwhile_another(*args: Any) -> Any:
            monkeypatch.setattr(alarms, "deliver", deliver)
            told.problems = (SUSPENDED,)
            alarms.notify()
            return deliver(*args)

        monkeypatch.setattr(alarms, "deliver", and_meanwhile_another)

        assert told.after(5, FAILED) == [f"raised {LABEL}: failed"]
        assert told.after(1, SUSPENDED) == [f"raised {LABEL}: suspended"]
        assert told.after(1, SUSPENDED) == []

    @pytest.mark.parametrize("ends", [False, True])
    def test_a_process_that_is_killed_before_it_has_told_leaves_it_to_the_next(
        self, told: Told, monkeypatch: pytest.MonkeyPatch, ends: bool
    ) -> None:
        told.after(0, FAILED)
        if ends:
            told.after(5, FAILED)
            told.after(1)
        with monkeypatch.context() as patch:
            patch.setattr(alarms, "deliver", mock.Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                told.after(5, *([] if ends else [FAILED]))

        rest = () if ends else (FAILED,)
        event = "ended" if ends else "raised"
        assert told.after(1, *rest) == []
        assert told.after(2, *rest) == [f"{event} {LABEL}: failed"]
        assert told.after(2, *rest) == []


class TestCauses:
    def keys(self, *problems: Problem) -> dict[str, list[str]]:
        found = causes_of(Health.of(problems).problems)
        return {each.problem.view or each.problem.kind: each.views for each in found}

    @pytest.mark.parametrize("kind", ["no worker", "broker", "beat", "maintenance"])
    def test_views_that_are_late_for_lack_of_workers_are_listed_there(self, kind: str) -> None:
        assert self.keys(NO_WORKER._replace(kind=kind), BEHIND, FAILED) == {
            kind: [OTHER],
            LABEL: [],
        }

    def test_the_lack_of_a_worker_of_one_queue_delays_no_view_of_another(self) -> None:
        of_queue = NO_WORKER._replace(views=("a", "b"))
        late = [BEHIND._replace(view="b"), BEHIND]
        assert self.keys(of_queue, *late) == {"no worker": ["b"], OTHER: []}

    def test_a_process_that_cannot_send_is_no_reason_for_that(self) -> None:
        broker = NO_WORKER._replace(kind="broker", state=HealthState.DEGRADED)

        assert self.keys(broker, BEHIND) == {"broker": [], OTHER: []}

    def test_that_all_views_fail_is_told_by_each(self) -> None:
        assert self.keys(NO_WORKER._replace(kind="all views"), FAILED) == {LABEL: []}

    def reading(self, **reads: str) -> Any:
        found = {label: set(others.split()) for label, others in reads.items()}
        return mock.patch.object(engine, "views_read", return_value=found)

    def late(self, *labels: str) -> list[Problem]:
        return [BEHIND._replace(view=label, text=f"{label} is late") for label in labels]

    def test_views_that_are_late_because_of_one_that_they_read_are_listed_there(self) -> None:
        failed = FAILED._replace(view="a")
        with self.reading(b="a", c="b x", d="c", x=""):
            assert self.keys(failed, *self.late("b", "c", "e")) == {"a": ["b", "c"], "e": []}
            assert self.keys(*self.late("b", "c", "d")) == {"b": ["c", "d"]}
            assert self.keys(failed, *self.late("c")) == {"a": [], "c": []}  # b is on time

    def test_views_on_change_that_are_late_are_listed_under_that_nobody_polls(self) -> None:
        engine.sync_controls()
        followed = ViewControl.objects.filter(label__in=[LABEL, OTHER])
        for control in followed:
            RefreshSchedule.objects.create(view=control, on_change=True, every=0)
        late = self.late(OTHER, "a", "b")
        with self.reading(a=OTHER):
            assert self.keys(NO_POLLING, FAILED, *late) == {
                "no polling": ["a", OTHER],
                LABEL: [],
                "b": [],
            }
            assert self.keys(NO_POLLING, NO_WORKER, *late) == {
                "no polling": [],
                "no worker": ["a", "b", OTHER],
            }

    @pytest.mark.parametrize("kind", ["keys parked", "differs", "definition changed"])
    def test_what_makes_nobody_late_hides_nobody(self, kind: str) -> None:
        with self.reading(b="a"):
            assert self.keys(FAILED._replace(view="a", kind=kind), *self.late("b")) == {
                "a": [],
                "b": [],
            }

    def test_a_view_that_is_late_because_of_an_alarm_is_told_once_an_hour(self, told: Told) -> None:
        with self.reading(b=LABEL, c=LABEL):
            told.after(0, FAILED)
            assert told.after(5, FAILED) == [f"raised {LABEL}: failed"]
            assert told.after(30, FAILED, *self.late("b")) == []
            assert told.after(30, FAILED, *self.late("b", "c")) == [f"raised {LABEL}: failed"]
            assert Alarm.objects.get().views == ["b", "c"]
            assert told.after(61, FAILED, *self.late("c")) == []
            assert Alarm.objects.get().views == ["c"]

    def test_a_view_that_fails_itself_is_not_late_because_of_another(self) -> None:
        with self.reading(b="a"):
            assert self.keys(FAILED._replace(view="b"), *self.late("a")) == {"a": [], "b": []}

    def test_views_that_read_a_failed_one_are_listed_under_it(self) -> None:
        upstream = [BEHIND._replace(view=each, kind="upstream failed") for each in "bc"]
        with self.reading(b=LABEL, c="b"):
            assert self.keys(FAILED, *upstream) == {LABEL: ["b", "c"]}

    def test_a_paused_view_has_no_alarm_so_the_first_that_reads_it_lists_the_others(self) -> None:
        upstream = [BEHIND._replace(view=each, kind="upstream paused") for each in "cbd"]
        with self.reading(b="a", c="b", d="a"):
            assert self.keys(*upstream) == {"b": ["c", "d"]}

    @given(
        st.dictionaries(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef"))),
        st.sets(st.sampled_from("abcdef")),
        st.sets(st.sampled_from("abcdef")),
    )
    def test_whatever_reads_what_each_late_view_is_told_once(
        self, reads: dict[str, set[str]], late: set[str], failed: set[str]
    ) -> None:
        found = [*self.late(*late - failed), *(FAILED._replace(view=each) for each in failed)]
        with mock.patch.object(engine, "views_read", return_value=reads):
            keys = self.keys(*found)

        listed = [label for labels in keys.values() for label in labels]
        assert sorted([*keys, *listed]) == sorted(late | failed)

    def test_a_view_with_an_alarm_keeps_it_while_another_lists_it(self, told: Told) -> None:
        told.after(0, BEHIND)
        told.after(5, BEHIND)

        told.after(1, BEHIND, NO_WORKER)
        assert told.after(500, BEHIND, NO_WORKER) == ["raised : no worker"]
        assert Alarm.objects.get(kind="no worker").views == [OTHER]
        told.after(1, BEHIND)
        told.after(1)
        assert sorted(told.after(5)) == ["ended : no worker", f"ended {OTHER}: behind"]


class TestLog:
    def test_a_record_with_fields_and_a_grouping_for_each_kind_and_view(
        self, told: Told, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "matviews")
        told.after(0, FAILED)
        told.after(5, FAILED)
        told.after(1)
        told.after(5)

        raised, ended = (each for each in caplog.records if "alarm" in each.getMessage())
        assert (raised.levelno, ended.levelno) == (logging.ERROR, logging.INFO)
        assert raised.__dict__["grouping"] == ["alarm: failed", LABEL, "", "ValueError"]
        assert (raised.__dict__["view"], raised.__dict__["kind"]) == (LABEL, "failed")
        assert ended.getMessage().startswith(f"alarm: failed event=ended view={LABEL} ")

    @pytest.mark.parametrize("kind", ["failed", "suspended"])
    def test_the_exception_of_a_view_that_fails_is_attached_as_the_history_has_it(
        self, told: Told, caplog: pytest.LogCaptureFixture, kind: str
    ) -> None:
        items(1)
        with fault(Ledger, "do_insert", "raise"):
            run(Ledger)
        caplog.clear()
        failed = Problem(HealthState.DEGRADED, kind, Ledger._meta.label, "it fails", "insert: no")
        told.after(0, failed, SUSPENDED)
        told.after(5, failed, SUSPENDED)

        raised = {each.__dict__["view"]: each for each in caplog.records if "alarm" in each.msg}
        assert raised[LABEL].exc_info is None  # it has never failed
        record = raised[Ledger._meta.label]
        assert record.__dict__["phase"] == "insert"
        assert record.exc_info
        assert type(record.exc_info[1]).__name__ == "RuntimeError"
        text = logging.Formatter().format(record)
        assert "in do_insert" in text
        assert text.endswith("RuntimeError: do_insert was told to fail")


class TestMail:
    @pytest.fixture(autouse=True)
    def _mail(self, settings: Any) -> None:
        settings.MATVIEWS = {"ALARM_MAIL": True}
        settings.ADMINS = [("Ann", "ann@example.org")]
        settings.EMAIL_SUBJECT_PREFIX = ""
        mail.outbox = []

    def test_it_names_view_and_kind_and_the_error(self, told: Told) -> None:
        told.after(0, FAILED)
        told.after(5, FAILED)
        told.after(1)
        told.after(5)

        raised, ended = mail.outbox
        assert raised.to == ["ann@example.org"]
        assert raised.subject == f"{LABEL}: failed"
        assert ended.subject == f"{LABEL}: failed (ended)"
        lines = str(raised.body).splitlines()
        assert lines[1] == f"{LABEL}: it fails"
        assert lines[-1] == "Error: ValueError: no"
        assert "Ended: " in str(ended.body)

    @pytest.mark.parametrize(("count", "mails"), [(10, 10), (11, 1)])
    def test_many_are_one_mail(self, told: Told, count: int, mails: int) -> None:
        several = [SUSPENDED._replace(view=f"shop.View{number:02}") for number in range(count)]
        told.after(0, *several)

        assert len(mail.outbox) == mails
        if mails == 1:
            assert mail.outbox[0].subject == "matviews: 11 alarms"
            assert "shop.View10: suspended" in str(mail.outbox[0].body)

    def test_to_nobody_is_known_beforehand(self, settings: Any) -> None:
        settings.ADMINS = []
        assert [each.id for each in check_settings()] == ["matviews.W049"]
        settings.ADMINS = [("Ann", "ann@example.org")]
        assert check_settings() == []

    def test_off_by_default(self, told: Told, settings: Any) -> None:
        settings.MATVIEWS = {}
        told.after(0, SUSPENDED)

        assert mail.outbox == []

    def test_a_mail_server_that_refuses_is_asked_again_for_an_hour(
        self, told: Told, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(delivery, "mail_admins", mock.Mock(side_effect=OSError("refused")))
            assert told.after(0, SUSPENDED) == [f"raised {LABEL}: suspended"]
            assert told.after(1, SUSPENDED) == []
        assert caplog.text.count("alarms could not be delivered channel=mail") == 2

        assert told.after(1, SUSPENDED) == []
        assert [each.subject for each in mail.outbox] == [f"{LABEL}: suspended"]
        told.after(1, SUSPENDED)
        assert len(mail.outbox) == 1

    def test_a_mail_that_is_refused_is_sent_again_without_the_others(
        self, told: Told, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        send = mail.mail_admins

        def refuse(subject: str, *args: Any, **kwargs: Any) -> None:
            if subject.startswith(LABEL):
                raise OSError("550 no")
            send(subject, *args, **kwargs)

        several = SUSPENDED, SUSPENDED._replace(view=OTHER)
        with monkeypatch.context() as patch:
            patch.setattr(delivery, "mail_admins", refuse)
            told.after(0, *several)
            told.after(1, *several)
        told.after(1, *several)

        subjects = [each.subject for each in mail.outbox]
        assert subjects == [f"{OTHER}: suspended", f"{LABEL}: suspended"]

    def test_a_mail_server_that_hangs_holds_nothing_up(
        self, told: Told, monkeypatch: pytest.MonkeyPatch, hanging: threading.Event
    ) -> None:
        monkeypatch.setattr(delivery, "mail_admins", lambda *_args, **_kwargs: hanging.wait(60))

        assert told.after(0, SUSPENDED) == [f"raised {LABEL}: suspended"]
        assert Alarm.objects.get().undelivered == "mail"

    def test_a_real_server_that_accepts_and_says_nothing(
        self, told: Told, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(delivery, "MAX_SECONDS", 0.2)
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        with socket.create_server(("127.0.0.1", 0)) as silent:
            settings.EMAIL_HOST, settings.EMAIL_PORT = silent.getsockname()
            assert told.after(0, SUSPENDED) == [f"raised {LABEL}: suspended"]
            time_limits._running["mail"].join(20)

        assert not time_limits._running["mail"].is_alive()
        assert Alarm.objects.get().undelivered == "mail"

    def test_without_a_timeout_of_its_own_the_connection_gets_one(self, settings: Any) -> None:
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        with (
            mock.patch("django.core.mail.backends.smtp.EmailBackend.open"),
            mock.patch.object(delivery, "mail_admins") as sent,
        ):
            delivery._mail([Alarm(kind="failed", since=timezone.now())])

        assert sent.call_args.kwargs["connection"].timeout == delivery.MAX_SECONDS


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What waits for this hangs until the test ends; nobody waits long for it."""
    monkeypatch.setattr(delivery, "MAX_SECONDS", 0.3)
    with until_the_end() as event:
        yield event


class TestHook:
    def test_it_gets_the_alarms_of_a_run(self, told: Told, hook: list[list[Alarm]]) -> None:
        told.after(0, SUSPENDED, SUSPENDED._replace(view=OTHER))

        (found,) = hook
        assert [(each.view, each.event, each.is_open) for each in found] == [
            (LABEL, AlarmEvent.RAISED, True), (OTHER, AlarmEvent.RAISED, True),
        ]  # fmt: skip

    def test_it_hears_of_the_end(self, told: Told, hook: list[list[Alarm]]) -> None:
        told.after(0, SUSPENDED)
        told.after(1)
        told.after(5)

        assert [each.event for found in hook for each in found] == ["raised", "ended"]
        assert hook[1][0].ended_at

    def test_only_the_one_that_failed_is_told_again(
        self, told: Told, hook: list[list[Alarm]], settings: Any
    ) -> None:
        settings.MATVIEWS = {**settings.MATVIEWS, "ALARM_MAIL": True}
        settings.ADMINS = [("Ann", "ann@example.org")]
        mail.outbox = []
        FAULTS.append(lambda: 1 / 0)
        told.after(0, SUSPENDED)
        FAULTS.clear()
        told.after(1, SUSPENDED)

        assert len(mail.outbox) == 1
        assert [each.event for found in hook for each in found] == ["raised"]

    def test_one_that_always_fails_is_tried_each_minute_for_an_hour_then_each_hour(
        self, told: Told, hook: list[list[Alarm]]
    ) -> None:
        fault = mock.Mock(side_effect=OSError("no"))
        FAULTS.append(fault)
        told.after(0, SUSPENDED)
        tried = []
        for _time in range(12):
            fault.reset_mock()
            told.after(19, SUSPENDED)
            tried.append(fault.call_count)

        assert tried == [1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0]
        assert hook == []

    @pytest.mark.parametrize("hours", [1, 30])
    def test_an_end_is_delivered_however_long_that_failed(
        self, told: Told, hook: list[list[Alarm]], hours: int
    ) -> None:
        told.after(0, SUSPENDED)
        told.after(1)
        FAULTS.append(mock.Mock(side_effect=OSError("no")))
        told.after(5)
        for _time in range(hours):
            told.after(60)
        FAULTS.clear()
        told.after(60)
        told.after(60)

        assert [each.event for found in hook for each in found] == ["raised", "ended"]

    def test_what_is_gone_for_now_is_not_repeated_because_it_was_not_delivered(
        self, told: Told, hook: list[list[Alarm]]
    ) -> None:
        FAULTS.append(mock.Mock(side_effect=OSError("no")))
        told.after(0, SUSPENDED)
        told.after(181, SUSPENDED)

        assert told.after(60) == []

    def test_one_that_hangs_is_left_to_itself_and_not_called_meanwhile(
        self, told: Told, hook: list[list[Alarm]], hanging: threading.Event
    ) -> None:
        calls: list[int] = []
        FAULTS.extend([lambda: calls.append(1), lambda: hanging.wait(60)])

        for _time in range(3):
            told.after(1, SUSPENDED)

        assert len(calls) == 1
        assert Alarm.objects.get().undelivered == "hook"

    def test_one_that_ends_late_is_not_told_again(
        self, told: Told, hook: list[list[Alarm]], hanging: threading.Event
    ) -> None:
        FAULTS.append(lambda: hanging.wait(60))
        told.after(0, SUSPENDED)
        assert Alarm.objects.get().undelivered == "hook"
        hanging.set()
        time_limits._running["hook"].join(20)

        assert Alarm.objects.get().undelivered == ""
        told.after(1, SUSPENDED)
        assert len(hook) == 1

    def test_one_that_ends_while_that_is_recorded_is_not_told_again(
        self,
        told: Told,
        hook: list[list[Alarm]],
        hanging: threading.Event,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        mark_notified = alarms._mark_notified

        def and_meanwhile_it_ends(*args: Any) -> None:
            hanging.set()
            time_limits._running["hook"].join(20)
            mark_notified(*args)

        monkeypatch.setattr(alarms, "_mark_notified", and_meanwhile_it_ends)
        FAULTS.append(lambda: hanging.wait(60))
        told.after(0, SUSPENDED)

        assert Alarm.objects.get().undelivered == ""

    def test_its_error_is_logged_without_the_address_that_it_may_name(
        self, told: Told, hook: list[list[Alarm]], caplog: pytest.LogCaptureFixture
    ) -> None:
        FAULTS.append(mock.Mock(side_effect=OSError("no answer from /services/3f2a")))
        told.after(0, SUSPENDED)

        assert 'channel=hook error="OSError: (values left out' in caplog.text
        assert "3f2a" not in caplog.text

    def test_one_that_is_not_there_stops_nobody(
        self, told: Told, settings: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings.MATVIEWS = {"ALARM_HOOK": "nowhere.tell"}

        assert told.after(0, SUSPENDED) == [f"raised {LABEL}: suspended"]
        assert "No module named 'nowhere'" in caplog.text


class TestSignal:
    def test_a_receiver_that_hangs_holds_nothing_up(
        self, told: Told, hanging: threading.Event
    ) -> None:
        def hang(**_kwargs: Any) -> None:
            hanging.wait(60)

        signals.view_alarm.connect(hang)
        try:
            assert told.after(0, SUSPENDED) == [f"raised {LABEL}: suspended"]
            assert not hanging.is_set()
            assert time_limits._running["signal"].is_alive()
        finally:
            signals.view_alarm.disconnect(hang)

        assert Alarm.objects.get().undelivered == "signal"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nowhere.tell", "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        (f"{__name__}.nothing", "cannot be imported: ImportError: "),
        (f"{__name__}.LABEL", "must name a function, not 'sample.Limited'."),
        (f"{__name__}.remember", ""),
    ],
)
def test_a_hook_that_cannot_be_called_is_an_error_of_check(
    settings: Any, path: str, sentence: str
) -> None:
    settings.MATVIEWS = {"ALARM_HOOK": path}
    found = [str(each.msg) for each in check_settings()]

    assert len(found) == bool(sentence)
    assert all(sentence in each for each in found)


def test_maintenance_tells_after_its_work(told: Told) -> None:
    told.problems = (SUSPENDED,)

    tasks.maintain()

    assert told.lines == [f"raised {LABEL}: suspended"]
    assert Heartbeat.objects.get().maintenance_ended_at


@pytest.mark.parametrize("chore", ["rescue", "unclaimed_views", "clear_resends"])
def test_what_fails_before_it_silences_nothing(
    told: Told, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, chore: str
) -> None:
    told.problems = (SUSPENDED,)
    refuses = mock.Mock(side_effect=ValueError("no"))
    monkeypatch.setattr(engine, "rescue", lambda: [mock.Mock()])
    monkeypatch.setattr(tasks, "send", lambda _messages: chore == "unclaimed_views")
    monkeypatch.setattr(engine, chore, refuses)
    checked_in = mock.Mock(__name__="check_in")
    monkeypatch.setattr(tasks.check_in, "check_in", checked_in)

    tasks.maintain()

    assert told.lines == [f"raised {LABEL}: suspended"]
    assert "a maintenance chore failed" in caplog.text
    # It has not run to its end, which the health address and the service of CHECK_IN_URL notice.
    assert not Heartbeat.objects.exclude(maintenance_ended_at=None).exists()
    assert not checked_in.called


def test_what_fails_in_telling_stops_no_maintenance(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(alarms, "check_health", mock.Mock(side_effect=ValueError("no")))

    tasks.maintain()

    assert "a maintenance chore failed chore=notify" in caplog.text
    assert Heartbeat.objects.get().maintenance_ended_at
