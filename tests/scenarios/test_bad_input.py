"""What cannot be is refused in a sentence, or is a failed run that says so; nothing is lost."""

import json
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import celery
import pytest
from celery import Celery
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.db.models import QuerySet
from django.dispatch import Signal
from django.test import override_settings
from django.utils import timezone

from matviews import Batch, Phase, engine, is_fresh, refresh, signals, tasks
from matviews.engine import BatchReport, Message, Outcome
from matviews.exceptions import (
    HookError,
    InvalidRequest,
    MatviewsError,
    UnknownView,
    ViewDisabled,
    ViewNotReady,
)
from matviews.models import PhaseRun, Refresh, ViewControl, ViewShard
from matviews.registry import registry
from matviews.states import RefreshState, RunState
from matviews.tasks import inline
from tests import ROOT
from tests.helpers import forked, services
from tests.helpers.ledger import fault
from tests.helpers.view_classes import INSERT_ONLY, make_view, only_run, ready, run, six_hooks
from tests.sample.models import Fault, Item, Ledger, Limited

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _controls(db: None) -> Iterator[None]:
    with registry.preserved():
        engine.sync_controls()
        yield


def shard_of(view: type[Any]) -> ViewShard:
    return ViewShard.objects.get(view__label=view._meta.label)


def inserting(needs: Any, do: Any, **members: Any) -> type[Any]:
    """A registered view with an insert phase of these two hooks."""
    hooks: dict[str, Any] = {"needs_insert": classmethod(needs), "do_insert": classmethod(do)}
    return ready(make_view(options=INSERT_ONLY, **hooks, **members))


class TestRequests:
    """A request that cannot be is refused with a sentence, and nothing is recorded."""

    @pytest.fixture(autouse=True)
    def _nothing_is_recorded(self) -> Iterator[None]:
        yield
        assert not Refresh.objects.exists()

    @pytest.mark.parametrize("ask", [engine.request, refresh, is_fresh])
    @pytest.mark.parametrize("view", ["sample.Limitd", "Limitd", None, 5, [], Item])
    def test_an_unknown_view(self, ask: Any, view: Any) -> None:
        with pytest.raises(UnknownView) as error:
            ask(view)

        known = "is not a view" if view is Item else "sample.Limited"
        assert known in str(error.value)

    @pytest.mark.parametrize("ask", [engine.request, refresh, is_fresh])
    @pytest.mark.parametrize(
        ("phases", "named"),
        [
            (["upsert"], "upsert"),
            ("upsert", "upsert"),
            (["insert", "upsert", "merge"], "merge, upsert"),
            ([None], "None"),
            ([["insert"]], "['insert']"),
            (5, "5"),
            ({"upsert": "insert"}, "upsert"),
        ],
    )
    def test_an_unknown_phase(self, ask: Any, phases: Any, named: str) -> None:
        with pytest.raises(InvalidRequest) as error:
            ask(Limited, phases=phases)

        assert str(error.value) == (
            f"sample.Limited has no phase {named}; it has insert, update, delete."
        )

    def test_a_phase_that_the_view_lacks(self) -> None:
        with pytest.raises(InvalidRequest) as error:
            Ledger.refresh(phases=["insert", Phase.DELETE])

        assert str(error.value) == "sample.Ledger has no phase delete; it has insert."

    def test_no_phase(self) -> None:
        with pytest.raises(InvalidRequest, match=r"Name at least one phase of sample\.Limited"):
            refresh(Limited, phases=[])

    @pytest.mark.parametrize("size", [0, -1, 2**31, 10**30, "10", 1.5, True])
    def test_a_size_that_cannot_be(self, size: Any) -> None:
        with pytest.raises(InvalidRequest) as error:
            engine.request(Limited, batch_size=size)

        assert str(error.value) == (
            f"A batch size must be a whole number of rows from 1 to 2,147,483,647, not {size!r}."
        )

    def test_a_disabled_view(self) -> None:
        ViewControl.objects.filter(label="sample.Limited").update(enabled=False)

        with pytest.raises(ViewDisabled) as error:
            Limited.refresh()

        assert str(error.value) == (
            "sample.Limited is disabled: enable it first, in the admin or through its ViewControl."
        )

    def test_a_view_without_a_control_row(self) -> None:
        ViewControl.objects.filter(label="sample.Limited").delete()

        with pytest.raises(ViewNotReady) as error:
            Limited.refresh()

        assert str(error.value) == (
            "sample.Limited has no bookkeeping rows yet: run `manage.py migrate`. It creates them "
            "after the last migration, so a migration cannot refresh a new view."
        )
        call_command("migrate", verbosity=0)
        assert ViewControl.objects.filter(label="sample.Limited").exists()

    def test_a_request_that_is_rolled_back_leaves_nothing(self) -> None:
        with transaction.atomic():
            engine.request(Limited)
            transaction.set_rollback(True)

    def test_the_scheduled_task_takes_only_what_is_in_the_registry(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        wrong: list[list[Any]] = [["Nothing"], ["Limited", ["upsert"]], [None], [{}], [[1], 5]]
        for arguments in wrong:
            tasks.refresh(*arguments)

        assert not Refresh.objects.exists()
        assert caplog.text.count("refresh refused") == len(wrong)


class TestCommand:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (["--models", "sample.Limitd"], "Did you mean sample.Limited"),
            (["--phases", "upsert"], "upsert"),
            (["--models", "Ledger", "--phases", "delete"], "delete"),
            (["--batch-size", "0"], "from 1"),
            (["--batch-size", "-5"], "from 1"),
            (["--batch-size", "99999999999999999999"], "from 1"),
            (["--batch-size", "ten"], "ten"),
            (["--format", "xml"], "xml"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(CommandError) as error:
            call_command("update_materialized_views", *options)

        assert sentence in str(error.value) + capsys.readouterr().err
        assert not Refresh.objects.exists()

    def test_a_view_without_a_control_row_fails_and_says_run_migrate(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ViewControl.objects.filter(label="sample.Limited").delete()

        with pytest.raises(CommandError) as error:
            call_command("update_materialized_views", models=["Limited", "Whole"])

        assert error.value.returncode == 1
        assert "run `manage.py migrate`" in capsys.readouterr().err
        assert list(Refresh.objects.values_list("view__label", "state")) == [
            ("sample.Whole", RefreshState.SUCCEEDED)
        ]

    @pytest.mark.parametrize(
        "options",
        [[], ["--list"], ["--check"], ["--enqueue"], ["--models", "Limited"]],
        ids=" ".join,
    )
    def test_without_tables_it_says_run_migrate(self, options: list[str], tmp_path: Path) -> None:
        database = {
            "sqlite": str(tmp_path / "empty.sqlite3"),
            "postgres": urlsplit(services.url("postgres")).path.lstrip("/"),
            "mariadb": "mysql",
        }[services.selected_database()]
        environment = services.worker_environment("memory://", "unused", key_prefix="")

        done = forked.run(
            ["-m", "django", "update_materialized_views", *options],
            cwd=ROOT,
            env={**environment, "MATVIEWS_TEST_DB_NAME": database},
        )

        assert done.returncode == 1
        assert "run `manage.py migrate`" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.database
class TestMessages:
    def test_of_an_unknown_shard_touches_nothing(self) -> None:
        report = engine.run_batch(Message(Phase.INSERT, 10**6, 1))

        assert report.outcome is Outcome.UNKNOWN
        assert engine.close_finished(10**6) == engine.NextStep()

    @pytest.mark.parametrize("number", [-1, 0, 2**31, 2**63, 2**200, -(2**200)])
    def test_with_numbers_that_cannot_be_touches_nothing(self, number: int) -> None:
        before = list(ViewShard.objects.values())
        shard = shard_of(Limited)

        for arguments in ((number, 1), (shard.pk, number), (number, number)):
            tasks.insert_batch(*arguments)

        assert list(ViewShard.objects.values()) == before

    @pytest.mark.parametrize("nonsense", ["1", "x", None, 1.0, True, [], {}, b"1"])
    @pytest.mark.parametrize("task", [tasks.insert_batch, tasks.update_batch, tasks.delete_batch])
    def test_with_nonsense_is_logged_and_touches_nothing(
        self, task: Any, nonsense: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = list(ViewShard.objects.values())
        shard = shard_of(Limited)

        task(nonsense, shard.token)
        task(shard.pk, nonsense)

        assert list(ViewShard.objects.values()) == before
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert ["message is invalid" in record.getMessage() for record in errors] == [True, True]
        assert repr(nonsense) in caplog.text

    @pytest.mark.parametrize("arguments", [(), (1,), (1, 2, 3)])
    def test_with_missing_arguments_fails_as_a_task(self, arguments: tuple[int, ...]) -> None:
        with pytest.raises(TypeError, match="argument"):
            tasks.insert_batch(*arguments)

    def test_with_a_phase_that_the_view_lacks_does_what_is_due(self) -> None:
        Item.objects.create(value=1)
        engine.request(Ledger)
        shard = shard_of(Ledger)

        report = engine.run_batch(Message(Phase.DELETE, shard.pk, shard.token))

        assert report.outcome is Outcome.DONE
        message = engine.close_finished(shard.pk).message
        assert message == Message(Phase.INSERT, shard.pk, shard.token + 1)

    def test_when_nobody_has_asked_does_nothing(self) -> None:
        Item.objects.create(value=1)
        shard = shard_of(Ledger)

        report = engine.run_batch(Message(Phase.INSERT, shard.pk, shard.token))

        assert (report.outcome, report.rows) == (Outcome.DONE, 0)
        assert not Ledger.objects.exists()


class TestViewsThatChange:
    """The code has moved on, and rows and messages are left."""

    def test_a_deleted_view_fails_its_refresh_with_a_sentence(self) -> None:
        Item.objects.create(value=1)
        asked = engine.request(Limited)
        shard = shard_of(Limited)
        message = engine.close_finished(shard.pk).message
        assert message is not None

        registry.unregister("sample.Limited")
        report = engine.run_batch(message)
        engine.close_finished(shard.pk)

        asked.refresh_from_db()
        assert report.outcome is Outcome.DONE
        assert asked.state == RefreshState.FAILED
        sentence = "The code no longer defines the view sample.Limited."
        assert asked.error == f"insert, update, delete: {sentence}"
        assert not Limited.objects.exists()

    def test_a_deleted_view_keeps_its_history_and_is_shown(self) -> None:
        run(Limited)
        registry.unregister("sample.Limited")

        engine.sync_controls()

        status = next(each for each in engine.view_statuses() if each.label == "sample.Limited")
        assert status.state == "removed from the code"
        assert Refresh.objects.count() == 1
        assert "sample.Limited" not in engine.views_to_refresh()

    def test_a_view_that_comes_back_goes_on(self) -> None:
        Item.objects.create(value=1)
        with registry.preserved():
            registry.unregister("sample.Limited")
            engine.sync_controls()

        assert run(Limited).state == RefreshState.SUCCEEDED
        assert Limited.objects.count() == 1

    def test_a_phase_that_is_gone_fails_and_the_others_go_on(self) -> None:
        ready(make_view(**six_hooks()))
        asked = engine.request("Made")
        ready(make_view(options={"phases": ["insert", "delete"]}, **six_hooks()))

        asked = inline.run_to_end(asked)

        assert asked.error == "update: sample.Made no longer has the phase update."
        assert list(asked.runs.order_by("pk").values_list("state", flat=True)) == [
            RunState.SUCCEEDED,
            RunState.FAILED,
            RunState.SUCCEEDED,
        ]

    def test_a_view_that_now_has_errors_fails_and_names_them(self) -> None:
        ready(make_view(**six_hooks()))
        asked = engine.request("Made", phases=["insert"])
        ready(make_view(**six_hooks(do_insert=None)))

        asked = inline.run_to_end(asked)

        assert asked.error == "insert: The view has errors: sample.Made.do_insert is missing."

    def test_a_view_that_is_disabled_meanwhile_is_left_open_and_goes_on_later(self) -> None:
        Item.objects.create(value=1)
        asked = engine.request(Ledger)
        control = ViewControl.objects.filter(label="sample.Ledger")
        control.update(enabled=False)

        assert inline.run_to_end(asked).state == RefreshState.OPEN
        control.update(enabled=True)

        assert inline.run_to_end(asked).state == RefreshState.SUCCEEDED
        assert Ledger.objects.count() == 1


class Unspeakable(Exception):
    """An exception whose message cannot be had."""

    def __str__(self) -> str:
        raise ValueError


@pytest.mark.database
class TestHooksThatReturnNonsense:
    @pytest.mark.parametrize("answer", [None, -1, "yes", 1.5, [], Batch(1), timedelta(1)], ids=repr)
    def test_needs(self, answer: Any) -> None:
        view = inserting(lambda cls: answer, lambda cls, limit: 0)

        failed = only_run(run(view))

        assert failed.state == RunState.FAILED
        assert failed.error == (
            f"HookError: sample.Made.needs_insert must return True, False or an estimate of the "
            f"rows, not {answer!r}."
        )
        with pytest.raises(HookError, match="needs_insert must return True"):
            is_fresh(view)

    def test_needs_with_a_queryset(self) -> None:
        """Which is what `return Item.objects.filter(...)` without `exists()` gives."""

        def needs(cls: type) -> QuerySet[Item]:
            return Item.objects.all()

        failed = only_run(run(inserting(needs, lambda cls, limit: 0)))

        assert failed.error.startswith("HookError: sample.Made.needs_insert must return True, Fals")

    @pytest.mark.parametrize("answer", [-1, "5", 1.5, True, [1, 2], Batch(1)], ids=repr)
    @pytest.mark.parametrize("hook", [lambda cls, a: a, lambda cls, a, limit: a])
    def test_do(self, hook: Any, answer: Any) -> None:
        whole = hook.__code__.co_argcount == 2
        do = (lambda cls: answer) if whole else (lambda cls, limit: answer)
        view = inserting(lambda cls: True, do)

        failed = only_run(run(view))

        assert failed.state == RunState.FAILED
        assert failed.error == (
            f"HookError: sample.Made.do_insert must return the number of rows written, or None, "
            f"not {answer!r}."
        )

    @pytest.mark.parametrize("answer", [None, 5, (1, 2), {"rows": 1}], ids=repr)
    def test_do_with_a_cursor_but_without_a_batch(self, answer: Any) -> None:
        failed = only_run(run(inserting(lambda cls: True, lambda cls, cursor: answer)))

        assert failed.error == (
            f"HookError: sample.Made.do_insert declares cursor, so it must return a Batch, "
            f"not {answer!r}."
        )

    @pytest.mark.parametrize("rows", [None, -1, "1", True])
    def test_a_batch_with_rows_that_are_no_number(self, rows: Any) -> None:
        failed = only_run(run(inserting(lambda cls: True, lambda cls, cursor: Batch(rows))))

        assert "must return a Batch with the number of rows written" in failed.error

    @pytest.mark.parametrize(
        "cursor", [timezone.now(), {1, 2}, float("nan"), b"1", object()], ids=type
    )
    def test_a_cursor_that_json_cannot_hold(self, cursor: Any) -> None:
        answer = cursor

        def walk(cls: type, cursor: Any) -> Batch:
            return Batch(1, answer)

        failed = only_run(run(inserting(lambda cls: True, walk)))

        assert failed.state == RunState.FAILED
        assert "returned a cursor that JSON cannot hold" in failed.error
        assert "Use strings, numbers, lists and dicts." in failed.error
        assert failed.cursor is None

    @pytest.mark.parametrize("number", [2**63, 10**30])
    def test_numbers_that_no_column_holds(self, number: int) -> None:
        needs = inserting(lambda cls: number, lambda cls, limit: 1)
        assert only_run(run(needs)).state == RunState.FAILED

        do = inserting(lambda cls: True, lambda cls, limit: number)
        assert only_run(run(do)).state == RunState.FAILED


@pytest.mark.database
class TestHooksThatRaise:
    @pytest.mark.parametrize(
        "error",
        [
            ValueError("one\ntwo"),
            RuntimeError(),
            AssertionError("no"),
            KeyError("key"),
            StopIteration(5),
            RecursionError("deep"),
            MemoryError(),
            OSError(2, "gone"),
            TimeoutError("late"),
            Item.DoesNotExist("none"),
            DatabaseError("of the hook's own"),
            CommandError("said a command"),
            ExceptionGroup("many", [ValueError("a"), KeyError("b")]),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            celery.exceptions.Ignore(),
            celery.exceptions.Retry("again"),
            celery.exceptions.SoftTimeLimitExceeded(),
            ValueError("NUL \0 and half a character \ud800"),
            ValueError("long " * 10**6),
            ValueError("🦆"),
            Unspeakable(),
        ],
        ids=lambda error: type(error).__name__,
    )
    @pytest.mark.parametrize("hook", ["needs_insert", "do_insert"])
    def test_fail_the_run_with_class_message_and_traceback(
        self, hook: str, error: Exception
    ) -> None:
        def fail(cls: type, limit: int = 0) -> int:
            raise error

        hooks: dict[str, Any] = {
            "needs_insert": classmethod(lambda cls: True),
            hook: classmethod(fail),
        }
        view = ready(make_view(**six_hooks(**hooks)))

        ended = run(view)

        failed = ended.runs.get(phase=Phase.INSERT)
        assert failed.state == RunState.FAILED
        assert failed.error.startswith(type(error).__name__)
        assert "in fail" in failed.traceback
        assert len(failed.error) + len(failed.traceback) < 50_000
        assert ended.state == RefreshState.FAILED
        assert ended.runs.exclude(state=RunState.SUCCEEDED).get() == failed
        assert ended.error == f"insert: {failed.error}"

    def test_the_message_is_kept(self) -> None:
        def fail(cls: type) -> int:
            raise ValueError("half \ud800, NUL \0, ü, 🦆")

        failed = only_run(run(inserting(lambda cls: True, fail)))

        assert failed.error == r"ValueError: half \ud800, NUL \0, ü, 🦆"

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_what_ends_a_process_goes_through_and_nothing_is_committed(
        self, error: type[BaseException]
    ) -> None:
        def stop(cls: type) -> int:
            Item.objects.create(value=1)
            raise error

        view = inserting(lambda cls: True, stop)
        asked = engine.request(view)

        with pytest.raises(error):
            inline.run_to_end(asked)

        asked.refresh_from_db()
        assert asked.state == RefreshState.OPEN
        assert not Item.objects.exists()
        assert not connection.in_atomic_block

    def test_a_keyboard_interrupt_fails_the_refresh_where_no_key_can_cause_it(self) -> None:
        def interrupt(cls: type) -> int:
            raise KeyboardInterrupt

        asked = engine.request(inserting(lambda cls: True, interrupt))

        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a process of Celery's pool
        try:
            asked = inline.run_to_end(asked)
        finally:
            signal.signal(signal.SIGINT, before)

        assert asked.state == RefreshState.FAILED
        assert "do_insert raised KeyboardInterrupt" in asked.error

    def test_a_hook_that_always_exits_ends_as_one_that_takes_its_worker_down(self) -> None:
        view = inserting(lambda cls: True, lambda cls: sys.exit(1))
        asked = engine.request(view)

        for _ in range(3):
            with pytest.raises(SystemExit):
                inline.run_to_end(asked)
            # the lease runs out
            ViewShard.objects.update(claimed_at=timezone.now() - timedelta(days=1))
        asked = inline.run_to_end(asked)

        assert asked.state == RefreshState.FAILED
        assert "killed its worker 3 times" in asked.error


class TestPhasesThatDoNotEnd:
    def test_a_whole_phase_hook_runs_once_whatever_its_needs_says(self) -> None:
        calls = []
        view = inserting(lambda cls: 7, lambda cls: calls.append(1))

        done = only_run(run(view))

        assert calls == [1]
        assert (done.state, done.batches, done.estimate) == (RunState.SUCCEEDED, 1, 7)

    @pytest.mark.parametrize("answer", [0, None])
    def test_a_limit_hook_that_writes_nothing_is_not_looped_on(self, answer: int | None) -> None:
        calls = []

        def do(cls: type, limit: int) -> int | None:
            calls.append(limit)
            return answer

        ended = run(inserting(lambda cls: True, do))

        stuck = only_run(ended)
        assert len(calls) == 1
        assert stuck.state == RunState.NOT_CONVERGING
        assert stuck.error == (
            "Not converging: sample.Made.do_insert wrote no row (or returned None instead of their "
            "number), yet needs_insert still says that work is pending."
        )
        assert ended.state == RefreshState.FAILED
        assert ended.error == f"insert: {stuck.error}"

    @pytest.mark.parametrize("stay", [5, [1, 2], (1, 2), {"a": (1,)}, {1: 2}, "x"], ids=repr)
    def test_a_cursor_that_stays_is_not_looped_on(self, stay: Any) -> None:
        calls = []

        def do(cls: type, cursor: Any) -> Batch:
            calls.append(cursor)
            return Batch(0, stay)

        stuck = only_run(run(inserting(lambda cls: True, do)))

        assert stuck.state == RunState.NOT_CONVERGING
        assert calls == [None, json.loads(json.dumps(stay))]
        assert stuck.error == (
            "Not converging: sample.Made.do_insert wrote no row and returned the cursor it was "
            "given."
        )

    def test_a_cursor_that_moves_on_over_empty_ground_is_followed(self) -> None:
        def do(cls: type, cursor: int | None) -> Batch:
            place = (cursor or 0) + 1
            return Batch(0, place if place < 10 else None)

        done = only_run(run(inserting(lambda cls: True, do)))

        assert (done.state, done.batches, done.rows) == (RunState.SUCCEEDED, 10, 0)

    def test_a_cursor_that_stays_while_rows_are_written_is_followed(self) -> None:
        left = [3, 2, 1, 0]

        def do(cls: type, cursor: Any) -> Batch:
            return Batch(1, "same" if left.pop(0) else None)

        done = only_run(run(inserting(lambda cls: True, do)))

        assert (done.state, done.batches) == (RunState.SUCCEEDED, 4)


class TestBrokerDown:
    """The request is recorded and the caller told; `maintain` sends it once the broker is back."""

    @pytest.fixture(
        autouse=True, params=["redis://127.0.0.1:{port}/0", "amqp://guest@127.0.0.1:{port}//"]
    )
    def _app(self, request: pytest.FixtureRequest) -> Iterator[None]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        before = celery.current_app._get_current_object()
        app = Celery("down", broker=request.param.format(port=port), set_as_current=True)
        app.conf.broker_transport_options = {"socket_timeout": 2, "socket_connect_timeout": 2}
        try:
            yield
        finally:
            app.close()
            before.set_current()

    def assert_maintain_sends(self, asked: Refresh) -> None:
        asked.refresh_from_db()
        shard = shard_of(Limited)
        assert asked.state == RefreshState.OPEN
        sent = [*engine.grant_all_turns(), *engine.rescue()]
        assert sent == [Message(Phase.INSERT, shard.pk, shard.token)]

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("atomic", [False, True])
    def test_asking_in_python(self, atomic: bool, caplog: pytest.LogCaptureFixture) -> None:
        if atomic:
            with transaction.atomic():
                asked = Limited.refresh()
                assert "not sent" not in caplog.text
        else:
            asked = Limited.refresh()

        assert (
            "message not sent; matviews.maintain will send it when the broker is back"
            in caplog.text
        )
        self.assert_maintain_sends(asked)

    def test_asking_on_the_command_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        call_command("update_materialized_views", enqueue=True, models=["Limited"])

        printed = capsys.readouterr()
        assert "sample.Limited: refresh" in printed.out
        assert "recorded, but the broker is unreachable (" in printed.err
        assert "refused" in printed.err
        self.assert_maintain_sends(Refresh.objects.get())

    def test_between_two_batches(self) -> None:
        Item.objects.bulk_create([Item(value=1), Item(value=2)])
        asked = engine.request(Limited, batch_size=1)
        shard = shard_of(Limited)

        tasks.insert_batch(shard.pk, shard.token)

        assert Limited.objects.count() == 1
        assert engine.rescue() == []
        ViewShard.objects.update(resend_after=timezone.now())  # the lease runs out
        shard.refresh_from_db()
        self.assert_maintain_sends(asked)


@pytest.mark.database
class TestSignals:
    @pytest.fixture
    def heard(self) -> Iterator[list[tuple[Signal, dict[str, Any]]]]:
        heard: list[tuple[Signal, dict[str, Any]]] = []

        def listen(signal: Signal, **arguments: Any) -> None:
            heard.append((signal, arguments))

        every = [getattr(signals, name) for name in signals.__all__]
        for each in every:
            each.connect(listen)
        yield heard
        for each in every:
            assert each.disconnect(listen)

    def test_of_a_refresh_from_request_to_end(
        self, heard: list[tuple[Signal, dict[str, Any]]]
    ) -> None:
        Item.objects.create(value=1)

        asked = run(Ledger)

        (first, requested), (second, batch), (third, finished) = heard
        assert [first, second, third] == [
            signals.refresh_requested,
            signals.batch_finished,
            signals.refresh_finished,
        ]
        assert requested == {"sender": Ledger, "refresh": asked}
        assert batch.keys() == {"sender", "report"}
        assert batch["sender"] is Ledger
        report: BatchReport = batch["report"]
        assert (report.label, report.rows, report.outcome) == ("sample.Ledger", 1, Outcome.DONE)
        assert finished == {"sender": Ledger, "refresh": asked}
        assert finished["refresh"].state == RefreshState.SUCCEEDED

    def test_of_a_batch_that_failed(self, heard: list[tuple[Signal, dict[str, Any]]]) -> None:
        Item.objects.create(value=1)
        Fault.objects.create(view="Ledger", hook="do_insert", action="raise")

        run(Ledger)

        [report] = [args["report"] for signal, args in heard if signal is signals.batch_finished]
        [ended] = [args["refresh"] for signal, args in heard if signal is signals.refresh_finished]
        assert report.outcome is Outcome.FAILED
        assert report.error == "RuntimeError: do_insert was told to fail"
        assert [done.state for done in report.runs] == [RunState.FAILED]
        assert (ended.state, ended.error) == (RefreshState.FAILED, f"insert: {report.error}")

    def test_of_a_message_that_is_refused(self, heard: list[tuple[Signal, dict[str, Any]]]) -> None:
        shard = shard_of(Ledger)
        message = Message(Phase.INSERT, shard.pk, shard.token + 1)

        engine.run_batch(message)

        assert heard == [
            (
                signals.message_refused,
                {"sender": None, "message": message, "outcome": Outcome.STALE},
            )
        ]

    def test_of_a_view_that_is_gone_have_no_sender(
        self, heard: list[tuple[Signal, dict[str, Any]]]
    ) -> None:
        asked = engine.request(Ledger)
        registry.unregister("sample.Ledger")

        inline.run_to_end(asked)

        assert [arguments["sender"] for _signal, arguments in heard] == [Ledger, None, None]

    @pytest.mark.django_db(transaction=True)
    def test_are_sent_after_the_commit(self) -> None:
        seen = []

        def look(report: BatchReport, **_arguments: Any) -> None:
            seen.append((connection.in_atomic_block, PhaseRun.objects.get().state))

        Item.objects.create(value=1)
        signals.batch_finished.connect(look)
        try:
            run(Ledger)
        finally:
            signals.batch_finished.disconnect(look)

        assert seen == [(False, RunState.SUCCEEDED)]

    @pytest.mark.parametrize(
        "name", [name for name in signals.__all__ if not name.startswith("view_alarm")]
    )
    def test_a_receiver_that_fails_changes_nothing(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(**_arguments: Any) -> None:
            raise RuntimeError("the receiver is broken")

        Item.objects.create(value=1)
        soon = {"SUSPEND_AFTER_FAILURES": 1, "SUSPEND_AFTER": timedelta(microseconds=1)}
        shard = shard_of(Ledger)
        signal: Signal = getattr(signals, name)
        signal.connect(fail)
        try:
            engine.run_batch(Message(Phase.INSERT, shard.pk, 10**6))
            with override_settings(MATVIEWS=soon), fault(Ledger, "do_insert", "raise"):
                run(Ledger), run(Ledger)
            ended = run(Ledger)
        finally:
            signal.disconnect(fail)

        assert ended.state == RefreshState.SUCCEEDED
        assert Ledger.objects.count() == 1
        assert "the receiver is broken" in caplog.text


@override_settings(MATVIEWS={"LEASE": -1})
def test_settings_that_cannot_be_are_told_by_the_check_and_refuse_the_batch() -> None:
    asked = engine.request(Ledger)

    with pytest.raises(MatviewsError, match=r"MATVIEWS\['LEASE'\]"):
        inline.run_to_end(asked)

    asked.refresh_from_db()
    assert asked.state == RefreshState.OPEN
