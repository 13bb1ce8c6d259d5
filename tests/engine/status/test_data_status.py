"""What `View.status()` promises of a view's rows: never more than is true."""

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.migrations import CreateModel, DeleteModel
from django.template import Context, Template
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

import matviews
from matviews import changes, engine, mark_dirty, tasks
from matviews.apps import _after_migrate
from matviews.databases import triggers_of
from matviews.exceptions import UnknownView
from matviews.models import Heartbeat, PhaseRun, Refresh, ViewControl
from matviews.states import ViewState
from matviews.tasks import inline
from tests.helpers.engine import due, held_open, request_apart, travel, without_sqlite
from tests.helpers.ledger import add_items, fault
from tests.helpers.poison import Poisoned
from tests.helpers.source_views import sourced, staged, windowed
from tests.helpers.tables import alone
from tests.helpers.view_classes import run
from tests.sample.models import Item, Limited, Sharded
from tests.shapes.models.grouped import DayStatus

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

SECOND = timedelta(seconds=1)


@pytest.fixture
def view(own_views: None) -> Iterator[type[Any]]:
    """A tracked view, built once, ten minutes ago."""
    view = sourced()
    changes.install(engine.alias())
    add_items(3)
    run(view)
    travel(timedelta(minutes=10))
    yield view
    changes.remove(engine.alias())


def status(view: type[Any] | str) -> engine.DataStatus:
    return matviews.status(view)


def ago(view: type[Any]) -> timedelta:
    """How old the rows are."""
    as_of = status(view).as_of
    assert as_of is not None
    return engine.now() - as_of


class TestTrackedView:
    def test_it_is_as_of_its_last_refresh_until_maintenance_has_seen_the_triggers(
        self, view: type[Any]
    ) -> None:
        assert ago(view) > timedelta(minutes=9)

        tasks.maintain()

        assert ago(view) < timedelta(minutes=1)
        assert status(view).pending is False

    def test_a_change_that_waits_is_not_included(self, view: type[Any]) -> None:
        tasks.maintain()
        with transaction.atomic():
            before = engine.now()
            Item.objects.create(value=7)
        tasks.maintain()  # which moves it from the log to the queue

        found = status(view)

        assert found.pending is True
        assert found.as_of is not None
        assert found.as_of <= before + SECOND
        assert found.as_of > before - timedelta(minutes=1)
        inline.run_to_end(engine.request(view))
        tasks.maintain()
        assert status(view).as_of > found.as_of  # type: ignore[operator]
        assert status(view).pending is False

    def test_it_stays_in_place_wherever_the_change_waits(self, view: type[Any]) -> None:
        """In the log, in the queue, among the dirty keys, and while one phase has processed it."""
        before = engine.now()
        add_items(5)
        later = engine.now() + SECOND
        Heartbeat.objects.create(maintenance_ended_at=later, triggers_seen_at=later)
        seen = [status(view).as_of]
        engine.move_log()
        seen.append(status(view).as_of)
        run(view, phases=["delete"])
        seen.append(status(view).as_of)
        assert status(view).pending is True

        tasks.maintain()
        seen.append(status(view).as_of)

        [as_of] = set(seen)
        assert as_of is not None
        assert before - SECOND < as_of <= engine.now()

    @without_sqlite
    def test_a_transaction_that_commits_late_was_not_promised(self, view: type[Any]) -> None:
        with held_open(lambda: Item.objects.create(value=70)):
            tasks.maintain()
            promised = status(view)
            assert promised.pending is False
        # it commits now, later than what was promised
        assert promised.as_of is not None
        now = status(view)
        assert now.pending is True
        # it was logged before it committed, so that less is promised than could be
        assert now.as_of is not None
        assert now.as_of <= promised.as_of
        run(view)
        assert status(view).as_of > promised.as_of  # type: ignore[operator]

    def test_what_no_trigger_logged_is_not_promised(self, view: type[Any]) -> None:
        tasks.maintain()
        built = ViewControl.objects.get(label=view._meta.label).insert_as_of
        dialect = triggers_of(engine.alias())
        table = Item._meta.db_table
        dialect.execute(dialect.drop(table, dialect.installed_triggers()[table]))
        last_seen = Heartbeat.objects.get().triggers_seen_at
        add_items(1)

        assert status(view).as_of <= last_seen  # type: ignore[operator]
        tasks.maintain()
        assert status(view).as_of == built
        assert status(view).pending is None
        assert status(view).state == ViewState.NOT_LOGGED
        # nor once they are back, before a full refresh
        changes.install(engine.alias())
        tasks.maintain()
        assert status(view).as_of == built
        assert status(view).pending is True
        run(view)
        tasks.maintain()
        assert ago(view) < timedelta(minutes=1)

    def test_a_failed_look_at_the_triggers_promises_nothing(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine, "mark_missing_triggers", lambda: False)

        tasks.maintain()

        assert Heartbeat.objects.get().triggers_seen_at is None
        assert ago(view) > timedelta(minutes=9)

    @pytest.mark.parametrize("some", [True, False])
    def test_marked_keys_were_changed_before_they_were_marked(
        self, view: type[Any], some: bool
    ) -> None:
        built = status(view).as_of
        tasks.maintain()
        assert status(view).as_of > built  # type: ignore[operator]

        mark_dirty(view, view.objects.values_list("key", flat=True)[:1] if some else None)

        assert status(view).pending is True
        assert status(view).as_of == built

    def test_a_changed_definition_has_no_moment(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(view, "source", classmethod(lambda cls: windowed().filter(value__lt=2)))

        assert (status(view).as_of, status(view).state) == (None, ViewState.CHANGED)
        assert status(view).on_time is False

    def test_rows_of_another_definition_leave_no_moment_even_if_it_is_gone_again(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a refresh of another definition that got no further than its first batch
        with monkeypatch.context() as deployed:
            deployed.setattr(view, "source", classmethod(lambda cls: windowed().filter(value=1)))
            request = engine.request(view, batch_size=1)
            engine.run_batch(due(view))
        # when the code is as before
        assert status(view).as_of is None
        # then a refresh by it ends that
        engine.request_stop(request.pk)
        engine.close_finished(engine_shard(view))
        run(view)
        assert status(view).as_of is not None

    @pytest.mark.parametrize("backwards", [True, False])
    def test_a_table_that_was_recreated_has_no_moment(
        self, view: type[Any], backwards: bool
    ) -> None:
        tasks.maintain()
        with connection.schema_editor() as editor:
            editor.delete_model(view)
            editor.create_model(view)
        operation = DeleteModel(view.__name__) if backwards else CreateModel(view.__name__, [])
        plan = [(SimpleNamespace(app_label="sample", operations=[operation]), backwards)]

        _after_migrate(using=engine.alias(), plan=plan)
        tasks.maintain()

        assert status(view).as_of is None
        run(view)
        assert status(view).as_of is not None

    def test_rows_that_are_known_to_differ_have_no_moment_until_they_are_repaired(
        self, view: type[Any]
    ) -> None:
        tasks.maintain()
        view.objects.filter(pk=view.objects.earliest("pk").pk).update(value=99)

        for repair in (False, True):
            message = engine.request_verification(view, repair=repair)
            while message:
                message = engine.verify_slice(message)
            found = status(view)

            assert (found.as_of is not None) is repair
            assert (found.state == ViewState.DIFFERS) is not repair

    def test_an_idle_refresh_moves_it_on(self, view: type[Any]) -> None:
        refresh = run(view)

        assert not refresh.runs.exists()
        assert ago(view) < timedelta(minutes=1)

    def test_it_takes_two_statements(self, view: type[Any]) -> None:
        status(view)
        with CaptureQueriesContext(connection) as captured:
            status(view)

        assert len(captured) == 2
        assert not any("trigger_name" in each["sql"].lower() for each in captured)


def engine_shard(view: type[Any]) -> int:
    return int(ViewControl.objects.get(label=view._meta.label).shards.get().pk)


class TestWithoutTracking:
    def test_a_view_that_was_never_built_has_no_moment(self, own_views: None) -> None:
        found = status(Limited)

        assert found == engine.DataStatus(
            as_of=None, pending=None, state=ViewState.NEVER_BUILT, on_time=False
        )

    def test_hooks_are_as_of_the_start_of_their_last_refresh(self, own_views: None) -> None:
        before = timezone.now() - SECOND
        add_items(3)
        with fault(Limited, "do_insert", "sleep", seconds=0.1):
            run(Limited)
        ended = PhaseRun.objects.get(phase="insert").finished_at

        found = status(Limited)

        assert found.as_of is not None
        assert ended is not None
        assert before < found.as_of <= ended - timedelta(seconds=0.1)
        assert found.pending is None
        assert found.state == ViewState.NO_TARGET

    def test_a_failed_phase_holds_it_back(self, own_views: None) -> None:
        run(Limited)
        before = status(Limited).as_of
        add_items(1)
        with fault(Limited, "do_insert", "raise"):
            run(Limited)

        assert status(Limited).as_of == before
        assert status(Limited).state == ViewState.FAILED

    def test_phases_build_on_each_other(self, own_views: None) -> None:
        """The update begins later, but skips what the insert has read earlier."""
        view = sourced(staged, options={"tracking": False})
        add_items(3)
        request = engine.request(view)
        engine.run_batch(due(view))
        begun = PhaseRun.objects.get(refresh=request, phase="insert").as_of
        travel(timedelta(minutes=5))
        inline.run_to_end(request)

        assert status(view).as_of == begun - timedelta(minutes=5)  # type: ignore[operator]

    def test_a_later_refresh_begins_when_no_staging_table_is_in_use(self, own_views: None) -> None:
        # given a refresh that has staged its source
        view = sourced(staged, options={"tracking": False})
        add_items(30)
        run(view)
        old = engine.request(view, batch_size=1)
        engine.run_batch(due(view))
        engine.run_batch(due(view))
        begun = PhaseRun.objects.get(refresh=old, phase="insert").as_of
        travel(timedelta(minutes=5))
        # when a later refresh of one phase ends
        late = request_apart(view, phases=["insert"])
        for _turn in range(100):
            late.refresh_from_db()
            if late.finished_at:
                break
            engine.run_batch(due(view))
            engine.close_finished(engine_shard(view))
        # then the first has ended before it, and brings no older rows back
        assert not Refresh.objects.filter(pk=old.pk, finished_at=None).exists()
        reached = ViewControl.objects.get(label=view._meta.label).insert_as_of
        assert reached is not None
        assert begun is not None
        assert reached > begun

    def test_of_shards_the_one_that_began_first_counts(self, own_views: None) -> None:
        add_items(7)
        run(Sharded)
        begun = PhaseRun.objects.values_list("as_of", flat=True)

        assert status(Sharded).as_of == min(filter(None, begun))

    def test_one_statement_is_enough(self, own_views: None) -> None:
        run(Limited)
        with CaptureQueriesContext(connection) as captured:
            status(Limited)

        assert len(captured) == 1


def test_parked_keys_hold_it_where_it_was_before_them() -> None:
    with alone():
        poisoned = Poisoned()
        with poisoned.ready():
            # given a view that was right
            poisoned.fill(5)
            run(poisoned.View)
            right = status(poisoned.View).as_of
            # when a row cannot be written any more
            poisoned.poison("null", 3)
            run(poisoned.View)
            tasks.maintain()
            # then no later moment is promised, not even by what happens to others
            poisoned.add(7)
            run(poisoned.View)
            assert status(poisoned.View).as_of == right
            assert status(poisoned.View).pending is True
            assert status(poisoned.View).state == ViewState.PARKED
            # until it can
            poisoned.heal(3)
            run(poisoned.View)
            assert status(poisoned.View).as_of > right  # type: ignore[operator]


def test_the_schedule_gives_the_target(view: type[Any]) -> None:
    control = ViewControl.objects.get(label=view._meta.label)
    for every in (1, 2):
        control.schedules.create(every=every, period="minutes")
    tasks.maintain()

    assert status(view).state == ViewState.ON_TIME
    add_items(1)
    travel(timedelta(minutes=10))
    assert status(view).state == ViewState.BEHIND
    assert status(view).on_time is False


def test_an_open_refresh_is_shown_as_in_the_admin(view: type[Any]) -> None:
    add_items(1)
    engine.request(view)
    listed = {each.label: each.state for each in engine.view_statuses()}

    assert status(view).state == listed[view._meta.label] == ViewState.WAITING


def test_the_template_tag_gives_the_same(view: type[Any]) -> None:
    template = Template(
        "{% load matviews %}{% view_status 'sample.Sourced' as status %}"
        "{{ status.as_of|date:'c' }} {{ status.pending }} {{ status.state.label }}"
    )

    as_of = status(view).as_of

    assert as_of is not None
    moment = timezone.localtime(as_of).isoformat()
    assert template.render(Context()) == f"{moment} False ok, no target"


def test_a_field_called_status_takes_the_place_of_the_method(own_views: None) -> None:
    assert isinstance(Limited.status(), engine.DataStatus)
    assert not callable(DayStatus.status)
    assert isinstance(matviews.status(DayStatus), engine.DataStatus)


def test_an_unknown_view_is_named() -> None:
    with pytest.raises(UnknownView, match=r"There is no view 'shop.Nothing'"):
        status("shop.Nothing")
