"""How views and refreshes stand, as the command and the admin show it."""

from datetime import timedelta
from typing import Any

import pytest
from celery import Celery
from django.db import connection
from django.test import override_settings
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule

from benchmarks.statements import statements
from matviews import engine, tasks
from matviews.engine import ViewStatus, progress_of, row_counts
from matviews.engine.batches.claim import worker_name
from matviews.engine.row_counts import count_rows
from matviews.models import PhaseRun, Refresh, ViewControl, ViewShard
from matviews.phases import Phase
from matviews.registry import registry
from matviews.states import RefreshState, RunState, ViewState
from matviews.tasks import queues
from tests.helpers.engine import held_open, travel, without_sqlite
from tests.helpers.ledger import add_items, fault
from tests.helpers.source_views import LABEL as SOURCED
from tests.helpers.source_views import sourced
from tests.helpers.tables import execute
from tests.helpers.view_classes import defined, make_view, ready, run, six_hooks
from tests.management.test_command import command
from tests.sample.models import Limited, Sharded, Walked

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

LIMITED = "sample.Limited"


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


def status(label: str = LIMITED) -> ViewStatus:
    (found,) = [each for each in engine.view_statuses() if each.label == label]
    return found


def control(label: str = LIMITED) -> Any:
    return ViewControl.objects.filter(label=label)


def due(view: type[Any]) -> engine.Message:
    shard = ViewShard.objects.get(view__label=view._meta.label, number=0)
    message = engine.close_finished(shard.pk).message
    assert message is not None
    return message


def test_a_view_that_waits_for_another_waits_for_no_worker() -> None:
    add_items(3)
    upstream = engine.request(Limited, phases=["insert"], batch_size=1)
    engine.run_batch(due(Limited))
    engine.request(Walked, upstream_refreshes=[upstream], waits_for_upstream=True)
    travel(timedelta(minutes=10))

    waiting = status("sample.Walked")
    assert waiting.state != ViewState.WAITING
    assert waiting.waiting_for is None
    assert str(waiting.wait) == "waits for refreshes of views that it reads"

    Refresh.objects.filter(pk=upstream.pk).update(state=RefreshState.SUCCEEDED)
    assert status("sample.Walked").state == ViewState.WAITING


def test_a_view_goes_from_never_built_to_ready() -> None:
    add_items(3)
    before = status()
    assert (before.state, before.rows, before.age) == (ViewState.NEVER_BUILT, (0, True), None)

    run(Limited)

    now = status()
    assert (now.state, now.rows, now.error) == (ViewState.NO_TARGET, (3, True), "")
    assert (now.running, now.open_refreshes) == ((), ())
    assert now.last_success == min(moment for moment in now.successes.values() if moment)
    assert now.last_success is not None
    assert now.age is not None
    assert timedelta(0) <= now.age < timedelta(minutes=1)


def test_the_phase_that_is_longest_ago_tells_the_lag() -> None:
    run(Limited)
    control().update(last_update=timezone.now() - timedelta(hours=2))

    run(Limited, phases=["insert"])

    assert status().age is not None
    assert status().age >= timedelta(hours=2)  # type: ignore[operator]


def test_a_view_past_its_freshness_target_is_behind() -> None:
    run(Limited)
    control().update(freshness_target=timedelta(microseconds=1))

    assert status().state == "behind"


def test_an_open_refresh_is_told_apart_from_one_that_nobody_is_at() -> None:
    # given a request that nobody has taken
    add_items(30)
    engine.request(Limited, batch_size=10)
    assert status().state == "waiting"
    # when a batch was done a moment ago
    engine.run_batch(due(Limited))
    assert (status().state, status().running) == ("refreshing", ())
    # and when nothing has been heard for a lease
    past = timezone.now() - timedelta(hours=1)
    ViewShard.objects.update(resend_after=past)
    assert status().state == "waiting"
    # and when a worker has claimed its batch, however long ago
    shard = ViewShard.objects.filter(view__label=LIMITED)
    shard.update(claimed_token=shard.get().token, claimed_at=past, worker="vm-1:4711")
    assert status().state == "refreshing"
    assert [(each.worker, each.since) for each in status().running] == [("vm-1:4711", past)]


def test_what_no_worker_takes_waits_however_often_it_is_sent_and_names_the_queue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # given a request whose message is lost, and sent again
    add_items(3)
    engine.request(Limited)
    tasks.maintain()
    assert "listens to" not in caplog.text
    # when it is sent once more, for no worker has taken it
    ViewShard.objects.update(resend_after=timezone.now() - timedelta(hours=1))
    tasks.maintain()
    # then the log, the state and the command say where a worker has to listen
    queue = f"listens to {queues.queues_in_words(*queues.BATCHES)}"
    assert "no worker has taken a re-sent message" in caplog.text
    assert f"listens to its queue queue=celery views={LIMITED}" in caplog.text
    assert status().state == "waiting"
    for option in ("--list", "--check"):
        assert queue in command(option, "--models", "Limited").out
    # and no more, once one is at it
    engine.run_batch(due(Limited))
    assert status().state != "waiting"
    assert queue not in command("--check", "--models", "Limited").out


@pytest.mark.parametrize(
    ("routes", "own", "said"),
    [
        ({}, None, "the queue 'usual'"),
        ({}, "mine", "the queue 'mine'"),
        (
            {"matviews.insert_batch": {"queue": "long"}},
            None,
            "the queues 'long' and 'usual'",
        ),
        ({"matviews.*": "long"}, None, "the queue 'long'"),
        ({"matviews.*": "long"}, "mine", "the queue 'mine'"),
    ],
)
def test_the_queue_is_that_which_messages_go_to(
    routes: dict[str, Any], own: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Celery("shop", set_as_current=False)
    app.conf.update(task_routes=routes, task_default_queue="usual")
    monkeypatch.setattr(queues, "current_app", app)
    with override_settings(MATVIEWS={"CELERY_QUEUE": own}):
        assert queues.queues_in_words(*queues.BATCHES) == said


def test_a_failed_view_shows_its_error_until_it_succeeds() -> None:
    add_items(3)
    with fault(Limited, "do_insert", "raise"):
        run(Limited)
    assert status().state == "failed"
    assert status().error == "insert: RuntimeError: do_insert was told to fail"

    # a refresh that is stopped before it has tried says nothing of that
    refresh = engine.request(Limited)
    engine.request_stop(refresh.pk)
    engine.close_finished_in_view(refresh.view_id)
    assert status().state == "failed"

    run(Limited)

    assert (status().state, status().error) == ("ok, no target", "")


def test_a_view_whose_definition_changed_tells_which_phases_are_of_the_old_one() -> None:
    # given a view that was built from its source
    with registry.preserved():
        sourced(options={"tracking": False})
        add_items(3)
        run(SOURCED)
        assert (status(SOURCED).state, status(SOURCED).definition_changed) == (
            ViewState.NO_TARGET,
            (),
        )
        # when two phases last succeeded with another source
        fingerprints = control(SOURCED).get().fingerprints
        older = {**fingerprints, "insert": "an older one", "update": "an older one"}
        control(SOURCED).update(fingerprints=older)
        # then it says so
        changed = status(SOURCED)
        assert changed.state == "definition changed"
        assert changed.definition_changed == ("insert", "update")
        # also of a view of which something else comes first
        control(SOURCED).update(paused=True)
        assert (status(SOURCED).state, len(status(SOURCED).definition_changed)) == (
            ViewState.PAUSED,
            2,
        )
        control(SOURCED).update(paused=False)
        # and no more once each has succeeded again
        run(SOURCED, phases=["insert"])
        assert status(SOURCED).definition_changed == ("update",)
        run(SOURCED)
        assert (status(SOURCED).state, status(SOURCED).definition_changed) == (
            ViewState.NO_TARGET,
            (),
        )


def test_the_progress_of_a_derived_phase_is_that_of_the_keys_it_has_looked_through() -> None:
    with registry.preserved():
        # given a view whose last refresh has scanned its keys, and few rows to write
        sourced()
        add_items(40)
        run(SOURCED, phases=["insert"], batch_size=10)
        Limited.objects.order_by("pk")[0].delete()
        # when another has scanned the first ten
        engine.request(SOURCED, phases=["insert"], batch_size=10)
        engine.run_batch(due(registry.find(SOURCED).model))
        # then it is as far as the last one was then
        newest = PhaseRun.objects.latest("pk")
        assert (newest.keys_scanned, newest.rows) == (10, 1)
        assert newest.estimate == PhaseRun.objects.earliest("pk").keys_scanned
        assert status(SOURCED).progress == pytest.approx(10 / newest.estimate)


def test_what_needs_hooks_estimate_in_rows_says_nothing_of_keys() -> None:
    with registry.preserved():
        sourced(needs_insert=classmethod(lambda cls: 7))
        add_items(40)
        engine.request(SOURCED, phases=["insert"], batch_size=10)

        engine.run_batch(due(registry.find(SOURCED).model))

        assert PhaseRun.objects.get().estimate is None


def test_what_an_operator_has_set_is_shown() -> None:
    control().update(enabled=False, include_in_refresh_all=False)

    now = status()

    assert (now.state, now.enabled, now.include_in_refresh_all) == ("disabled", False, False)

    control().update(enabled=True, paused=True)

    now = status()
    assert (now.state, now.enabled, now.paused) == ("paused", True, True)


def test_views_without_rows_without_code_or_with_errors_are_listed() -> None:
    # given a view whose code is gone, one that migrate has not seen, and one with errors
    ViewControl.objects.create(label="shop.Gone")
    with registry.preserved():
        ready(make_view(name="Hookless"))
        control().delete()
        # then all are listed, and none of them stops the list
        assert status("shop.Gone").state == "removed from the code"
        assert status().state == "not migrated"
        broken = status("sample.Hookless")
        assert (broken.state, broken.rows) == ("invalid", None)


def test_a_view_without_a_target_is_behind_when_it_has_missed_two_intervals() -> None:
    run(Limited)
    schedules = control().get().schedules
    schedules.create(every=10, period="seconds", phases=["insert"])
    schedules.create(every=1, period="minutes")
    schedules.create(every=1, period="days", enabled=False)
    now = status()
    assert (now.state, now.target) == (ViewState.ON_TIME, timedelta(minutes=2))

    control().update(last_update=timezone.now() - timedelta(minutes=3))
    assert status().state == ViewState.BEHIND

    # a target of its own comes first
    control().update(freshness_target=timedelta(hours=1))
    now = status()
    assert (now.state, now.target) == (ViewState.ON_TIME, timedelta(hours=1))


@pytest.mark.usefixtures("own_views")
def test_each_phase_is_measured_by_its_own_target() -> None:
    targets = {"insert": timedelta(minutes=5), "delete": timedelta(days=1)}
    made = ready(make_view("Promised", options={"freshness_target": targets}, **six_hooks()))
    run(made)
    ours = ViewControl.objects.filter(label=made._meta.label)

    def now() -> engine.ViewStatus:
        (found,) = engine.view_statuses([made._meta.label])
        return found

    hour = timedelta(hours=1)
    assert (now().state, now().target) == (ViewState.ON_TIME, timedelta(minutes=5))
    # a phase without a target may be as old as it likes, and a day is long
    ours.update(last_update=timezone.now() - 99 * hour, last_delete=timezone.now() - 20 * hour)
    assert (now().state, now().target) == (ViewState.ON_TIME, timedelta(days=1))
    assert hour < (now().staleness or 0 * hour) < 21 * hour
    # each is late by its own
    ours.update(last_insert=timezone.now() - hour)
    assert (now().state, now().target) == (ViewState.BEHIND, timedelta(minutes=5))
    ours.update(last_insert=timezone.now(), last_delete=timezone.now() - 25 * hour)
    assert (now().state, now().target) == (ViewState.BEHIND, timedelta(days=1))
    # an operator's target is for all
    ours.update(freshness_target=100 * hour)
    assert (now().state, now().target) == (ViewState.ON_TIME, 100 * hour)


def test_a_crontab_says_nothing_of_how_old_a_view_may_be() -> None:
    run(Limited)
    schedules = control().get().schedules
    schedules.create(every=1, period="minutes")
    schedules.create(every=None, crontab=CrontabSchedule.objects.create(hour="3"))

    assert (status().state, status().target) == (ViewState.NO_TARGET, None)


def test_the_oldest_open_refresh_tells_the_progress_where_all_of_it_is_known() -> None:
    # given a refresh of which nobody knows how much it is
    add_items(20)
    first = engine.request(Limited, batch_size=5, phases=["insert"])
    second = engine.request(Limited, batch_size=5, phases=["delete"])
    now = status()
    assert (now.open_refreshes, now.progress) == ((first.pk, second.pk), None)
    # when its first batch has told
    engine.run_batch(due(Limited))
    # then
    assert status().progress == 0.25


def test_progress_is_unknown_until_every_shard_has_told() -> None:
    add_items(20)
    engine.request(Sharded, batch_size=2, phases=["insert"])
    engine.run_batch(due(Sharded))
    runs = PhaseRun.objects.all()
    runs.update(estimate=8)
    assert status("sample.Sharded").progress is None

    other = ViewShard.objects.get(view__label="sample.Sharded", number=1)
    runs.create(refresh_id=runs.get().refresh_id, shard=other, phase="insert", estimate=8)
    assert status("sample.Sharded").progress == 0.125


def test_views_are_told_of_by_label() -> None:
    some = engine.view_statuses(label for label in [LIMITED, "sample.Walked", "shop.Unknown"])

    assert [each.label for each in some] == [LIMITED, "sample.Walked"]
    assert engine.view_statuses([]) == []


def test_twenty_views_cost_as_many_statements_as_three() -> None:
    def cost() -> int:
        with statements() as found:
            engine.view_statuses()
        return len(found)

    def busy(views: list[Any]) -> None:
        for view in views:
            shard = view.shards.create(number=0)
            view.schedules.create(every=5)
            refresh = view.refreshes.create(
                phases=["insert"], origin="api", requested_at=timezone.now()
            )
            refresh.runs.create(shard=shard, phase="insert")

    # given views with schedules and open refreshes
    busy([ViewControl.objects.create(label=f"shop.View{number}") for number in range(3)])
    few = cost()
    # when there are many more
    busy([ViewControl.objects.create(label=f"shop.View{number}") for number in range(3, 20)])
    # then
    assert cost() == few <= (20 if connection.vendor == "mysql" else 15)


@pytest.mark.parametrize("name", ["UpperCase", "with space", "select", "per%cent", "apo'strophe"])
def test_rows_are_counted_whatever_the_table_is_called(name: str) -> None:
    quoted = connection.ops.quote_name(name)
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {quoted} (id integer)")
        try:
            cursor.execute(f"INSERT INTO {quoted} VALUES (1), (2)")
            counted = count_rows([defined(meta={"db_table": name}, **six_hooks())])
        finally:
            cursor.execute(f"DROP TABLE {quoted}")

    assert counted == {"sample.Made": (2, True)}


@without_sqlite
def test_a_locked_table_is_taken_at_the_databases_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_counts, "MAX_SECONDS", 1.0)
    lock = "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE"
    if connection.vendor == "mysql":
        lock = "LOCK TABLES {} WRITE"

    with held_open(lambda: execute(lock.format(Limited._meta.db_table))):
        counted = status().rows

    assert counted is not None
    assert not counted.exact
    assert counted.rows >= 0


def test_a_large_table_is_taken_at_the_databases_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    add_items(300)
    run(Limited)
    vendor, table = connection.vendor, Limited._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {'TABLE ' if vendor == 'mysql' else ''}{table}")
    monkeypatch.setattr(row_counts, "MAX_ROWS_COUNTED", 100)

    counted = status().rows

    assert counted is not None
    assert counted.exact == (vendor == "sqlite")  # which has no estimate
    assert 200 <= counted.rows <= 400


@pytest.mark.only_on("postgres", reason="others have no search path")
def test_the_table_that_the_search_path_leads_to_is_counted() -> None:
    add_items(2)
    run(Limited)
    table = Limited._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA other CREATE TABLE {table} (id integer)")
        try:
            assert status().rows == (2, True)
            cursor.execute("SET search_path TO other, public")
            assert status().rows == (0, True)
        finally:
            cursor.execute("SET search_path TO DEFAULT; DROP SCHEMA other CASCADE")


def states(refresh: Any) -> list[tuple[Any, ...]]:
    return [(each.phase, each.shard, each.run.rows, each.current) for each in progress_of(refresh)]


def test_progress_is_known_before_the_first_batch_and_after_the_last() -> None:
    add_items(25)
    refresh = engine.request(Limited, batch_size=10, phases=["insert", "delete"])
    assert states(refresh) == [("insert", None, 0, True), ("delete", None, 0, False)]

    engine.run_batch(due(Limited))
    assert states(refresh) == [("insert", None, 10, True), ("delete", None, 0, False)]
    assert progress_of(refresh)[0].run.estimate == 25

    run(Limited)
    assert states(refresh) == [("insert", None, 25, False), ("delete", None, 0, False)]


def test_progress_is_told_by_phase_and_shard() -> None:
    add_items(4)
    refresh = run(Sharded, phases=["insert", "update"])

    assert [(each.phase, each.shard, each.run.rows) for each in progress_of(refresh)] == [
        ("insert", 0, 2), ("insert", 1, 2), ("update", 0, 0), ("update", 1, 0),
    ]  # fmt: skip


def test_a_merged_refresh_shows_the_run_that_does_the_work() -> None:
    # given a refresh under way, which another joins
    add_items(25)
    first = engine.request(Limited, batch_size=10, phases=["insert"])
    engine.run_batch(due(Limited))
    second = engine.request(Limited, phases=["insert"])
    # then the second shows the work of the first, before and after it has joined
    before = progress_of(second)[0]
    engine.run_batch(due(Limited))
    after = progress_of(second)[0]
    assert (before.run.rows, before.other) == (10, first.pk)
    assert (after.run.rows, after.other, after.ahead) == (20, first.pk, False)
    # and its end is theirs
    engine.run_batch(due(Limited))
    assert progress_of(second)[0].run.state == RunState.SUCCEEDED


def test_a_run_that_must_wait_for_an_older_one_shows_that() -> None:
    # given a walk over the keys that was left half way
    add_items(25)
    first = engine.request(Walked, batch_size=10, phases=["insert"])
    engine.run_batch(due(Walked))
    # when a second is asked for
    second = engine.request(Walked, batch_size=10, phases=["insert"])
    engine.run_batch(due(Walked))
    # then it shows the first as long as that goes on, and then itself
    waiting = progress_of(second)[0]
    assert (waiting.run.rows, waiting.other, waiting.ahead) == (20, first.pk, True)
    for _batch in range(2):
        engine.run_batch(due(Walked))
    own = progress_of(second)[0]
    assert (own.run.refresh_id, own.other, own.ahead) == (second.pk, None, False)


def test_progress_names_the_other_process_that_is_at_work() -> None:
    add_items(3)
    refresh = engine.request(Limited)
    shard = ViewShard.objects.filter(view__label=LIMITED)
    since = timezone.now()
    shard.update(claimed_token=shard.get().token, claimed_at=since, worker="vm-1:4711")

    insert, update, _delete = progress_of(refresh)

    assert (insert.claim, update.claim) == (("vm-1:4711", since), None)


def test_progress_names_this_process_only_where_it_lost_its_batch() -> None:
    add_items(3)
    refresh = engine.request(Limited)
    shard = ViewShard.objects.filter(view__label=LIMITED)
    token = shard.get().token
    shard.update(claimed_token=token, claimed_at=timezone.now(), worker=worker_name())

    insert = progress_of(refresh)[0]

    assert (insert.claim, insert.lost, insert.phase) == (None, True, Phase.INSERT)
