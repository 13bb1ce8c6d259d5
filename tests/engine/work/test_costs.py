"""By keys or in full: what the last refreshes took decides, and a statement that takes too long."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import pytest
from django.db import OperationalError, connection, models
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from matviews import engine
from matviews.engine import transactions
from matviews.engine.batches import batch, derived, full_refreshes
from matviews.engine.tracking import dirty_keys, resolve
from matviews.engine.work import costs
from matviews.json_fields import Cost
from matviews.models import PhaseRun, ViewControl, ViewShard
from matviews.phases import Phase
from matviews.queryset import BatchRunner
from matviews.queryset.sql import windows
from matviews.states import RefreshState, RefreshStrategy
from tests.helpers import services, view_classes
from tests.helpers.keyed_views import Kept
from tests.helpers.tables import derived_view, made, model

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]
VENDOR = services.selected_database()
SLEEP = {
    "postgres": "SELECT pg_sleep(20)",
    "mariadb": "SELECT SLEEP(20)",
    "sqlite": (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000) "
        "SELECT COUNT(*) FROM n"
    ),
}[VENDOR]
NEVER_SUCCEEDED = "it has not succeeded since tracking began"
TOO_SLOW = "dirty keys would take longer than a full refresh"

not_on_sqlite = pytest.mark.only_on("postgres", "mariadb", reason="SQLite has no STATEMENT_TIMEOUT")


@pytest.fixture
def kept() -> Iterator[Kept]:
    """A view of three keys that has been built, and whose changes are tracked."""
    kept = Kept(models.IntegerField, grouped=True)
    with kept.tracked():
        kept.insert((1, 1), (2, 2), (3, 3))
        assert kept.refresh() == {NEVER_SUCCEEDED}
        yield kept


def shard() -> ViewShard:
    return ViewShard.objects.get(view__label="shapes.Made")


def learnt(name: str) -> dict[str, Any]:
    """What is known of each phase."""
    return {phase: getattr(cost, name) for phase, cost in shard().costs.items()}


def learn(cost: Cost) -> None:
    """As if each phase had cost this."""
    ViewShard.objects.update(costs=dict.fromkeys(Phase, cost))


def slow(monkeypatch: pytest.MonkeyPatch, *, fits: int) -> list[tuple[Phase, int]]:
    """A batch of more keys than `fits` begins with a long statement; what batches there were."""
    tried: list[tuple[Phase, int]] = []
    run_keys = BatchRunner.run_keys

    def slowly(self: Any, phase: Phase, keys: Any, *others: Any) -> int:
        tried.append((phase, len(keys)))
        if len(keys) > fits:
            with connection.cursor() as cursor:
                cursor.execute(SLEEP)
        return run_keys(self, phase, keys, *others)

    monkeypatch.setattr(BatchRunner, "run_keys", slowly)
    return tried


class TestLearning:
    def test_a_full_refresh_and_its_keys_are_measured(self, kept: Kept) -> None:
        built = shard().costs
        assert built.keys() == set(Phase)
        assert all(cost.full is not None and not cost.keys for cost in built.values())

        kept.sql("UPDATE ROWS SET n = 5 WHERE k <> 1")
        kept.change()

        assert [set(keys) for keys in learnt("keys").values()] == [{0}] * len(Phase)
        assert learnt("full") == {phase: cost.full for phase, cost in built.items()}

    def test_nothing_to_do_teaches_nothing(self, kept: Kept) -> None:
        before = shard().costs
        kept.refresh()
        assert shard().costs == before

    def test_what_keys_cost_is_forgotten_by_and_by(self, kept: Kept) -> None:
        learn(Cost(1.0, {0: 10.0}))
        ViewShard.objects.update(checkpoints={})
        kept.refresh()
        assert list(learnt("keys").values()) == [{0: 9.0}] * len(Phase)


class TestChoice:
    @pytest.fixture(autouse=True)
    def _cheap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(costs, "CHEAP_SECONDS", 0.05)

    def test_expensive_keys_are_refreshed_in_full(self, kept: Kept) -> None:
        kept.insert((4, 4), (5, 5))
        kept.refresh()
        learn(Cost(0.1, {0: 0.01, 1: 0.2}))  # of one to three keys, of four to fifteen
        kept.sql("UPDATE ROWS SET n = 5 WHERE k < 4")
        kept.change()
        kept.sql("UPDATE ROWS SET n = 6")

        [reason] = kept.refresh()
        assert reason == f"more than 3 {TOO_SLOW} (0.6 s, not 0.3 s)"
        assert kept.rows == dict.fromkeys("12345", 6)

    def test_cheap_keys_are_not_however_many(
        self, kept: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dirty_keys, "FULL_REFRESH_MIN_KEYS", 0)
        learn(Cost(1.0, {4: 0.001}))
        kept.sql("UPDATE ROWS SET n = 6")
        kept.change()
        assert kept.rows == {"1": 6, "2": 6, "3": 6}

    @pytest.mark.parametrize(
        ("keys", "most"),
        [
            ({}, None),
            ({0: 0.04}, None),  # mostly what any refresh takes
            ({0: 0.04, 3: 0.05}, None),
            ({0: 0.04, 4: 0.05}, 5_120),
            ({0: 0.04, 4: 1.1}, 255),
            ({0: 1.1}, 0),
        ],
    )
    def test_few_keys_do_not_tell_what_many_cost(
        self, keys: dict[int, float], most: int | None
    ) -> None:
        work = Mock(
            shard=Mock(costs={"insert": Cost(1.0, keys)}, view=Mock(pinned_strategy=None)),
            definition=Mock(derived=["insert"]),
        )
        assert costs.max_worthwhile_keys(work) == most

    @pytest.mark.only_on("sqlite", "postgres", reason="MariaDB's statistics may lag")
    def test_a_tenth_of_a_new_view_is_known_before_its_statistics_are(
        self, kept: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a view of thirteen keys, just built, and nothing known of the cost of keys
        kept.insert(*((k, k) for k in range(4, 14)))
        kept.refresh()
        learn(Cost())
        monkeypatch.setattr(dirty_keys, "FULL_REFRESH_MIN_KEYS", 0)
        # when a tenth of them changes, the refresh goes by keys
        kept.sql("UPDATE ROWS SET n = 0 WHERE k = 4")
        kept.change()
        learn(Cost())
        # when more do, it is full
        kept.sql("UPDATE ROWS SET n = 0 WHERE k < 4")
        assert kept.refresh() == {"more than 1 keys are dirty"}

    def test_too_many_keys_of_unknown_cost_are_looked_up_once(
        self, kept: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looked_up: list[int] = []
        look_up = resolve.resolve

        def counting(plan: Any, queued: Any, most: int, *others: Any) -> Any:
            looked_up.append(most)
            return look_up(plan, queued, most, *others)

        monkeypatch.setattr(dirty_keys, "resolve", counting)
        monkeypatch.setattr(dirty_keys, "FULL_REFRESH_MIN_KEYS", 2)
        learn(Cost(None))
        kept.sql("UPDATE ROWS SET n = 5")
        assert kept.refresh() == {"more than 2 keys are dirty"}
        assert looked_up == [2]
        assert kept.rows == {"1": 5, "2": 5, "3": 5}

    def test_a_refresh_that_takes_no_time_is_never_worth_a_choice(self, kept: Kept) -> None:
        learn(Cost(0.0001, {0: 0.005}))
        kept.sql("UPDATE ROWS SET n = 6")
        kept.change()


class TestTimeouts:
    @pytest.fixture(autouse=True)
    def _impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(costs, "CHEAP_SECONDS", 0.05)
        monkeypatch.setattr(costs, "MIN_BUDGET_SECONDS", 0.3)

    def test_keys_that_take_longer_become_a_full_refresh(
        self, kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        # given a view whose keys have never been refreshed by themselves
        tried = slow(monkeypatch, fits=0)
        kept.sql("UPDATE ROWS SET n = 5")
        # when they take too long, then the same refresh does everything, and it is right
        assert kept.refresh() == {TOO_SLOW}
        assert tried == [(Phase.INSERT, 3)]
        assert (PhaseRun.objects.filter(phase=Phase.INSERT).latest("pk").batch_size or 0) > 100
        assert "This batch of 3 dirty keys was limited to 0.3 s, a little more than" in caplog.text
        assert kept.rows == {"1": 5, "2": 5, "3": 5}
        # and the view remembers it
        kept.sql("UPDATE ROWS SET n = 6")
        assert kept.refresh() == {TOO_SLOW}
        assert len(tried) == 1

    @not_on_sqlite
    def test_where_everything_takes_longer_still_the_keys_are_halved(
        self, kept: Kept, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.MATVIEWS = {**settings.MATVIEWS, "STATEMENT_TIMEOUT": 1.0, "BATCH_SIZE_MIN": 1}
        learn(Cost(100.0))
        tried = slow(monkeypatch, fits=1)
        kept.sql("UPDATE ROWS SET n = 5")

        kept.change()

        assert tried.count((Phase.INSERT, 3)) == 1
        assert kept.rows == {"1": 5, "2": 5, "3": 5}

    @not_on_sqlite
    def test_keys_that_never_fit_become_a_full_refresh_in_the_end(
        self, kept: Kept, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given keys that time out however few, and no idea of what a full refresh takes
        settings.MATVIEWS = {**settings.MATVIEWS, "STATEMENT_TIMEOUT": 0.3, "BATCH_SIZE_MIN": 1}
        learn(Cost(None))
        slow(monkeypatch, fits=0)
        kept.sql("UPDATE ROWS SET n = 5")
        # when they have been tried, then the next refresh is full
        assert view_classes.run(kept.View).state == RefreshState.FAILED
        assert any("took longer than" in reason for reason in kept.refresh())
        assert kept.rows == {"1": 5, "2": 5, "3": 5}

    @not_on_sqlite
    def test_a_staging_table_that_takes_too_long_is_filled_once(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.MATVIEWS = {**settings.MATVIEWS, "STATEMENT_TIMEOUT": 0.3}
        tried: list[str] = []

        def fill(name: str, *_arguments: Any) -> int:
            tried.append(name)
            with connection.cursor() as cursor:
                cursor.execute(SLEEP)
            return 0

        monkeypatch.setattr(full_refreshes, "fill_stage", fill)
        row = model("Row", k=models.IntegerField(), n=models.IntegerField())
        view = derived_view(
            lambda cls: row._base_manager.order_by("pk").values("n", ref=F("k"))[:10],
            ref=models.IntegerField(unique=True),
            n=models.IntegerField(),
        )
        with made(row, view):
            refresh = view_classes.run(view, phases=[Phase.INSERT])
        assert refresh.state == RefreshState.FAILED
        assert len(tried) == 1
        assert (
            "Statements of shapes.Made are limited to 0.3 s, and a full refresh should take 0.6 s "
            "or more; raise MatviewMeta.statement_timeout" in refresh.error
        )

    def test_keys_may_take_a_little_longer_than_a_full_refresh(
        self, kept: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limits: list[float] = []
        budget = transactions.statement_budget

        def limited(seconds: float, allowed: float) -> Any:
            limits.append(seconds)
            return budget(seconds, allowed)

        monkeypatch.setattr(derived, "statement_budget", limited)
        learn(Cost(1.0))  # in each of three phases
        kept.sql("UPDATE ROWS SET n = 5")
        kept.change()
        assert limits == [pytest.approx(3.6)]

    @not_on_sqlite
    def test_what_is_known_to_be_quick_has_no_limit_of_its_own(self, kept: Kept) -> None:
        learn(Cost(1.0, {0: 0.001}))
        kept.sql("UPDATE ROWS SET n = 5")
        with CaptureQueriesContext(connection) as quick:
            kept.change()
        learn(Cost(1.0))
        kept.sql("UPDATE ROWS SET n = 6")
        with CaptureQueriesContext(connection) as unknown:
            kept.change()
        assert len(unknown) > len(quick)


class TestPin:
    """The control or the code says which strategy; the choice by cost says another one."""

    @pytest.fixture(autouse=True)
    def _dear(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(costs, "CHEAP_SECONDS", 0.05)
        monkeypatch.setattr(costs, "MIN_BUDGET_SECONDS", 0.3)

    def last(self) -> dict[str, str]:
        runs = PhaseRun.objects.filter(shard=shard()).order_by("-pk")[:3]
        return {run.phase: run.strategy for run in runs}

    def test_to_keys_that_cost_more(self, kept: Kept) -> None:
        learn(Cost(0.001, {0: 9.0}))
        ViewControl.objects.update(strategy=RefreshStrategy.BY_KEYS)
        kept.sql("UPDATE ROWS SET n = 5")
        kept.change()
        assert self.last() == dict.fromkeys(Phase, "by_keys")
        assert kept.rows == {"1": 5, "2": 5, "3": 5}

    def test_gives_keys_all_the_time_there_is(
        self, kept: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learn(Cost(0.001, {0: 9.0}))
        monkeypatch.setattr(derived, "statement_budget", None)
        ViewControl.objects.update(strategy=RefreshStrategy.BY_KEYS)
        kept.sql("UPDATE ROWS SET n = 5")
        kept.change()

    @pytest.mark.parametrize("pinned", [RefreshStrategy.FULL, RefreshStrategy.FULL_STAGED])
    def test_to_full_refreshes(self, kept: Kept, pinned: RefreshStrategy) -> None:
        learn(Cost(9.0, {0: 0.001}))
        ViewControl.objects.update(strategy=pinned)
        kept.sql("DELETE FROM ROWS WHERE k = 1")
        kept.sql("UPDATE ROWS SET n = 5 WHERE k = 2")
        kept.insert((4, 4))
        assert kept.refresh() == {"the view is pinned to full refreshes"}
        assert self.last() == dict.fromkeys(Phase, pinned)
        assert kept.rows == {"2": 5, "3": 3, "4": 4}

    def test_to_full_refreshes_does_nothing_where_nothing_changed(self, kept: Kept) -> None:
        ViewControl.objects.update(strategy=RefreshStrategy.FULL)
        PhaseRun.objects.all().delete()
        kept.refresh()
        assert not PhaseRun.objects.exclude(strategy="").exists()

    def test_to_staging_where_the_key_could_be_walked(self) -> None:
        row = model("Row", k=models.IntegerField(unique=True), n=models.IntegerField())
        view = derived_view(
            lambda cls: row._base_manager.values("n", ref=F("k")),
            options={"strategy": "full_staged", "key": "ref"},
            ref=models.IntegerField(unique=True),
            n=models.IntegerField(),
        )
        with made(row, view):
            row._base_manager.bulk_create(row(k=number, n=number) for number in range(5))
            refresh = view_classes.run(view)
            assert refresh.state == RefreshState.SUCCEEDED
            assert {run.strategy for run in refresh.runs.all()} == {"full_staged"}
            assert view._base_manager.count() == 5
            ViewControl.objects.update(strategy=RefreshStrategy.FULL)  # the row comes first
            refresh = view_classes.run(view)
            assert {run.strategy for run in refresh.runs.all()} == {"full"}


class TestWhatIsTold:
    def test_a_run_knows_what_each_strategy_should_take(self, kept: Kept) -> None:
        learn(Cost(0.3, {0: 0.1, 2: 0.16}))
        kept.sql("UPDATE ROWS SET n = 5 WHERE k = 1")
        kept.change()
        expected = [run.expected_seconds for run in PhaseRun.objects.order_by("-pk")[:3]]
        assert expected == [{"by_keys": 0.1, "full": 0.3}] * 3

    @pytest.mark.parametrize(
        ("keys", "seconds"), [(1, 0.1), (3, 0.1), (4, 0.16), (16, 0.16), (64, 0.64), (640, 6.4)]
    )
    def test_unmeasured_numbers_of_keys_are_estimated(self, keys: int, seconds: float) -> None:
        work = Mock(shard=Mock(costs={"insert": Cost(0.3, {0: 0.1, 2: 0.16})}))
        found = costs.expected_seconds(work, ["insert"], keys)
        assert found == {"by_keys": seconds, "full": 0.3}

    @pytest.mark.parametrize(
        ("cost", "expensive"),
        [
            (Cost(0.1, {0: 0.001}), False),
            (Cost(0.001, {0: 0.1}), True),
            (Cost(0.1), True),
            (Cost(), False),
        ],
    )
    def test_keys_of_unknown_cost_are_taken_for_a_full_refresh(
        self, cost: Cost, expensive: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(costs, "TEMPORARY_TABLE_SECONDS", 0.02)
        work = Mock(shard=Mock(costs={"insert": cost}), definition=Mock(derived=["insert"]))
        assert costs.is_expensive(work, 1) is expensive

    def test_what_is_not_known_is_left_out(self) -> None:
        work = Mock(shard=Mock(costs={"insert": Cost(0.3), "update": Cost(None, {0: 0.1})}))
        assert costs.expected_seconds(work, ["insert"], 1) == {"full": 0.3}
        assert costs.expected_seconds(work, ["insert", "update"], 1) == {}
        assert costs.expected_seconds(work, ["delete"], None) == {}


class TestOneEvaluation:
    @pytest.fixture(autouse=True)
    def _expensive(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(derived, "is_expensive", lambda _work, _keys: True)

    def evaluations(self, kept: Kept, captured: CaptureQueriesContext) -> int:
        """How many statements have read the source to write something."""
        read = f"FROM {connection.ops.quote_name(kept.Row._meta.db_table)}"
        return sum(
            read in each["sql"] and ("INSERT INTO" in each["sql"] or "DELETE" in each["sql"]
            or "UPDATE" in each["sql"] or "CREATE" in each["sql"])
            for each in captured.captured_queries
        )  # fmt: skip

    @pytest.mark.parametrize(("batch_size", "at_once"), [(None, True), (3, True), (2, False)])
    def test_feeds_a_full_refresh_of_few_keys(
        self, kept: Kept, batch_size: int | None, at_once: bool
    ) -> None:
        # given a view whose last full refresh found three keys
        kept.sql("DELETE FROM ROWS WHERE k = 1")
        kept.sql("UPDATE ROWS SET n = 5 WHERE k = 2")
        kept.insert((4, 4))
        ViewShard.objects.update(checkpoints={})
        # when another one may process so many at once, then it is one statement
        with CaptureQueriesContext(connection) as captured:
            assert kept.refresh(batch_size=batch_size) == {NEVER_SUCCEEDED}
        together = any("matviews_evaluated" in each["sql"] for each in captured.captured_queries)
        assert together == at_once
        assert kept.rows == {"2": 5, "3": 3, "4": 4}
        runs = PhaseRun.objects.filter(refresh__view=shard().view).order_by("-pk")[:3]
        assert {run.phase: run.rows for run in runs} == dict.fromkeys(Phase, 1)

    def test_a_view_of_keys_alone_has_nothing_to_update(self) -> None:
        row = model("Row", k=models.IntegerField(unique=True), n=models.IntegerField())
        view = derived_view(
            lambda cls: row._base_manager.values(ref=F("k")), ref=models.IntegerField(unique=True)
        )
        with made(row, view):
            row._base_manager.create(k=1, n=1)
            for _ in range(2):
                refresh = view_classes.run(view)
                assert refresh.state == RefreshState.SUCCEEDED
                refresh = view_classes.run(view, phases=[Phase.UPDATE])
                assert refresh.state == RefreshState.SUCCEEDED

    def test_feeds_all_phases(self, kept: Kept) -> None:
        kept.sql("DELETE FROM ROWS WHERE k = 1")
        kept.sql("UPDATE ROWS SET n = 5 WHERE k = 2")
        kept.insert((4, 4))
        with CaptureQueriesContext(connection) as captured:
            kept.change()
        assert self.evaluations(kept, captured) == 1
        assert kept.rows == {"2": 5, "3": 3, "4": 4}
        rows = PhaseRun.objects.filter(refresh__view=shard().view).order_by("-pk")[:3]
        assert {run.phase: run.rows for run in rows} == dict.fromkeys(Phase, 1)

    def test_a_phase_that_has_processed_other_changes_has_its_own(self, kept: Kept) -> None:
        kept.sql("UPDATE ROWS SET n = 5 WHERE k = 2")
        kept.refresh(phases=[Phase.UPDATE])
        kept.insert((4, 4))
        with CaptureQueriesContext(connection) as captured:
            kept.change()
        assert self.evaluations(kept, captured) == 2
        assert kept.rows == {"1": 1, "2": 5, "3": 3, "4": 4}
        runs = PhaseRun.objects.filter(shard=shard()).order_by("-pk")[:3]
        assert {run.phase: run.rows for run in runs} == {"insert": 1, "update": 0, "delete": 0}

    def test_a_lost_connection_is_tried_once(
        self, kept: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a statement of all phases that finds the server gone, and stays without it
        attempts: list[int] = []
        begin = transactions.batch_transaction

        def lost(*_arguments: Any) -> Any:
            raise OperationalError("the connection is lost")

        @contextmanager
        def counted(seconds: float) -> Iterator[None]:
            attempts.append(1)
            if len(attempts) > 1:
                lost()
            with begin(seconds):
                yield

        monkeypatch.setattr(batch, "batch_transaction", counted)
        monkeypatch.setattr(windows, "do_keys_together", lost)
        kept.sql("UPDATE ROWS SET n = 5 WHERE k = 2")
        engine.request(kept.View)
        message = engine.close_finished(shard().pk).message
        assert message is not None
        # then it does not try for ever
        assert engine.run_batch(message).outcome is not engine.Outcome.DONE
        assert len(attempts) <= 3

    def test_its_error_is_that_of_the_phase_that_failed(
        self, kept: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batch, "may_split", lambda *_arguments: False)
        check = models.CheckConstraint(condition=~models.Q(total=5), name="not_five")
        kept.View._meta.constraints = [check]  # SQLite rebuilds the table from these
        with connection.schema_editor() as editor:
            editor.add_constraint(kept.View, check)
        kept.sql("UPDATE ROWS SET n = 5 WHERE k = 2")
        kept.insert((4, 4))

        refresh = view_classes.run(kept.View)

        states = {run.phase: run.state for run in refresh.runs.all()}
        assert states == {"insert": "succeeded", "update": "failed", "delete": "succeeded"}
        assert kept.rows == {"1": 1, "2": 2, "3": 3, "4": 4}
