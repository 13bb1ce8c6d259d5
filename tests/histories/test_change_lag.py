"""Random histories of one tracked view: the oldest change is told to the minute, whatever happens.

The number that operators alert on. An oracle knows the time of each change, what each phase run has
seen and how it ended, and so which changes no successful run of each phase has processed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import DateTimeField, QuerySet, Value
from django.utils import timezone
from hypothesis import Phase as Stage
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from matviews import changes, engine, untracked
from matviews.changes import change_log, long_queues
from matviews.databases import triggers_of
from matviews.engine.batches import checkpoints
from matviews.engine.tracking import dirty_keys, pending_drains
from matviews.engine.tracking.pending_drains import add_drain
from matviews.json_fields import Drain
from matviews.models import Change, PhaseRun, Refresh, ViewChange, ViewControl, ViewShard
from matviews.phases import Phase
from matviews.queryset.sql.windows import BatchRunner
from matviews.registry import registry
from matviews.states import RefreshState, RunState
from tests.helpers.source_views import sourced, staged, windowed
from tests.helpers.state_machines import FOUND, MailboxMachine, run_machine
from tests.histories.conftest import RunRandom
from tests.sample.models import Item, Limited

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning"),
]

PHASES = st.lists(st.sampled_from(list(Phase)), min_size=1, unique=True)
KILLS = st.none() | st.integers(1, 25)
STEP = timedelta(minutes=1)  # of the clock of a history
TABLE = Item._meta.db_table


def dated() -> QuerySet[Any, Any]:
    """The source is of a new moment each time, so a full pass of several batches is of several."""
    now = Value(timezone.now(), DateTimeField())
    source: QuerySet[Any, Any] = windowed().alias(now=now)
    return source.filter(now__gte=timezone.now() - timedelta(days=1))


SOURCES: list[Callable[[], QuerySet[Any, Any]]] = [windowed, staged, dated]


@dataclass
class Seen:
    """A change, as the oracle knows it."""

    at: datetime
    processed: bool = False


class Oracle:
    """Which changes each phase has passed, by what its runs saw when they began."""

    def __init__(self) -> None:
        self.changes: list[Seen] = []
        self.begun: dict[int, int] = {}  # how many changes there were, by phase run
        self.of_keys: set[int] = set()  # the runs that look at dirty keys alone
        self.ended: set[int] = set()
        self.passed = dict.fromkeys(Phase, 0)

    def batch(self, before: int) -> None:
        """After a batch, before which there were so many changes."""
        runs = list(PhaseRun.objects.filter(merged_into=None).order_by("pk"))
        for run in runs:
            began = run.batches or run.failures or run.state == RunState.SUCCEEDED
            if run.pk not in self.begun and began:
                self.begun[run.pk] = before
                self._build_on_others(run)
            if run.dirty_after is not None:
                self.of_keys.add(run.pk)
            elif run.pk in self.of_keys:  # its keys are all by now
                self.of_keys.remove(run.pk)
                self._build_on_others(run)
        ended = [each for each in runs if each.finished_at and each.pk not in self.ended]
        for run in sorted(ended, key=lambda each: (each.finished_at, each.phase)):
            self.ended.add(run.pk)
            if run.state == RunState.SUCCEEDED:
                self._pass(run)

    def _build_on_others(self, run: PhaseRun) -> None:
        """A full refresh leaves out what its other runs read: it has seen no more than they."""
        if run.dirty_after is None and run.fingerprint:
            others = PhaseRun.objects.filter(refresh=run.refresh_id).select_related("merged_into")
            leaders = [each.merged_into or each for each in others]
            seen = [self.begun.get(each.pk) for each in leaders if each.fingerprint]
            self.begun[run.pk] = min(each for each in seen if each is not None)

    def _pass(self, run: PhaseRun) -> None:
        """Rows of a staging table are older, and are written until its refresh has ended."""
        staged = PhaseRun.objects.filter(refresh__state=RefreshState.OPEN).exclude(stage="")
        older = [self.begun[each.merged_into_id or each.pk] for each in staged]
        self.passed[Phase(run.phase)] = min([self.begun[run.pk], *older])
        for each in self.changes[: min(self.passed.values())]:
            each.processed = True

    @property
    def oldest(self) -> datetime | None:
        return min((each.at for each in self.changes if not each.processed), default=None)


class ChangeLag(MailboxMachine):
    """A view over `Item`, whose log entries get times of the history's own clock."""

    def __init__(self) -> None:
        super().__init__()
        self.oracle = Oracle()
        self.clock = timezone.now() - timedelta(days=30)
        self.next_key = 1
        self.known: dict[type[Any], int] = {Change: 0, ViewChange: 0}
        self.failing = False
        self.lost = False

    @initialize(source=st.sampled_from(SOURCES), few=st.sampled_from([None, 2]))
    def begin(self, source: Callable[[], QuerySet[Any, Any]], few: int | None) -> None:
        models: list[type[Any]] = [
            PhaseRun, Refresh, ViewShard, ViewChange, ViewControl, Item, Limited, Change,
        ]  # fmt: skip
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(dirty_keys, "max_worthwhile_keys", lambda _work: few)
        for each in list(registry):
            registry.unregister(each.label)
        for model in models:
            model._base_manager.all().delete()
        self.view = sourced(source)
        changes.install(engine.alias())
        self.control = ViewControl.objects.get()
        self._observe()

    # The source, and whoever changes it.

    @rule(count=st.integers(1, 4), late=st.integers(0, 5))
    def add_items(self, count: int, late: int) -> None:
        new = range(self.next_key, self.next_key + count)
        Item.objects.bulk_create([Item(pk=key, value=key) for key in new])
        self.next_key += count
        self._observe(late)

    @rule(which=st.integers(0, 2), late=st.integers(0, 5))
    def change_items(self, which: int, late: int) -> None:
        keys = [pk for pk in Item.objects.values_list("pk", flat=True) if pk % 3 == which]
        Item.objects.filter(pk__in=keys).update(value=self.next_key)
        self.next_key += 1
        self._observe(late)

    @rule(which=st.integers(0, 4))
    def delete_items(self, which: int) -> None:
        keys = [pk for pk in Item.objects.values_list("pk", flat=True) if pk % 5 == which]
        Item.objects.filter(pk__in=keys).delete()
        self._observe()

    @precondition(lambda self: not self.lost)
    @rule()
    def load(self) -> None:
        with untracked(Item):
            Item.objects.create(pk=self.next_key, value=0)
        self.next_key += 1
        self._observe()

    @precondition(lambda self: connection.vendor == "postgresql")
    @rule()
    def truncate(self) -> None:
        self._execute(f'TRUNCATE "{TABLE}"')
        self._observe()

    @rule(keys=st.none() | st.lists(st.integers(1, 5), min_size=1))
    def mark(self, keys: list[int] | None) -> None:
        engine.mark_dirty(self.view, keys)
        self._observe()

    # What becomes of the log and of the triggers.

    @rule(few=st.sampled_from([0, 100]))
    def move_the_log(self, few: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(change_log, "FEW_ENTRIES", few)
            engine.move_log()
        self._ignore_moved()

    @rule()
    def move_a_long_log(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(change_log, "MAX_MOVED_ENTRIES", 1)
            patch.setattr(change_log, "MAX_DISTINCT_CHANGES", 1)
            engine.move_log()
        self._ignore_moved()

    @rule()
    def shorten_the_queue(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(long_queues, "MAX_QUEUED_CHANGES", 1)
            engine.collapse_long_queues()
        self._ignore_moved()

    @precondition(lambda self: not self.lost)
    @rule()
    def lose_the_triggers(self) -> None:
        names = triggers_of(engine.alias()).installed_triggers()[TABLE]
        dialect = triggers_of(engine.alias())
        for statement in dialect.drop(TABLE, names):
            self._execute(statement)
        self.lost = True

    @precondition(lambda self: self.lost)
    @rule()
    def install_the_triggers(self) -> None:
        changes.install(engine.alias())
        self.lost = False
        self._observe()

    # Requests, brokers and workers.

    @rule(phases=PHASES, batch_size=st.sampled_from([1, 2, 50]), kill=KILLS)
    def ask(self, phases: list[Phase], batch_size: int, kill: int | None) -> None:
        with self.mortal(kill):
            engine.request(self.view, phases=phases, batch_size=batch_size)
            for each in engine.close_finished_in_view(self.control.pk):
                self.send(each.message)

    @precondition(lambda self: self.mailbox)
    @rule(position=st.integers(0, 100), again=st.booleans(), kill=KILLS)
    def deliver(self, position: int, again: bool, kill: int | None) -> None:
        self.work_on(position, again=again, kill=kill)

    @rule()
    def fail_the_next_batch(self) -> None:
        self.failing = True

    @rule(kill=KILLS)
    def maintain(self, kill: int | None) -> None:
        self.send_again(kill)

    @rule()
    def refresh_all(self) -> None:
        self.ask([*Phase], 50, None)
        self.work_until_quiet()

    @precondition(lambda self: Refresh.objects.filter(state=RefreshState.OPEN).exists())
    @rule()
    def stop(self) -> None:
        engine.request_stop(Refresh.objects.filter(state=RefreshState.OPEN).earliest("pk").pk)
        for each in engine.close_finished_in_view(self.control.pk):
            self.send(each.message)

    def work_on(self, position: int, *, again: bool, kill: int | None) -> None:
        before = len(self.oracle.changes)
        super().work_on(position, again=again, kill=kill)
        self._ignore_moved()
        self.oracle.batch(before)

    @contextmanager
    def mortal(self, kill: int | None) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch, super().mortal(kill):
            for name in ("run_window", "run_keys"):
                patch.setattr(BatchRunner, name, self._misbehaving(getattr(BatchRunner, name)))
            yield

    def _misbehaving(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def misbehave(*given: Any) -> Any:
            failing, self.failing = self.failing, False
            if failing:
                raise RuntimeError("the batch was told to fail")
            return work(*given)

        return misbehave

    def _execute(self, statement: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)

    def _observe(self, late: int = 0) -> None:
        """Give what was logged a time, minutes in the past for a transaction that commits late."""
        self.clock += STEP
        at = self.clock - late * STEP
        new = [
            model.objects.filter(pk__gt=last, **({"table": ""} if model is ViewChange else {}))
            for model, last in self.known.items()
        ]
        if sum(each.update(logged_at=at) for each in new):
            note(f"change {len(self.oracle.changes)} at {at}")
            self.oracle.changes.append(Seen(at))
        self._ignore_moved()

    def _ignore_moved(self) -> None:
        for model in self.known:
            newest = model.objects.order_by("-pk").values_list("pk", flat=True).first()
            self.known[model] = max(newest or 0, self.known[model])

    @invariant()
    def the_oldest_change_is_told(self) -> None:
        if not hasattr(self, "view"):
            return
        [status] = engine.view_statuses()
        oldest = self.oracle.oldest
        assert status.not_logged == ((TABLE,) if self.lost else ())
        if self.lost or oldest is None:
            assert status.change_lag is None
        else:
            assert status.change_lag is not None
            told = timezone.now() - status.change_lag
            assert abs(told - oldest) < STEP / 2, f"told {told}, oldest {oldest}"

    @invariant()
    def what_is_kept_is_short(self) -> None:
        for shard in ViewShard.objects.all() if hasattr(self, "view") else ():
            runs = PhaseRun.objects.filter(refresh__state=RefreshState.OPEN)
            assert len(shard.pending_drains) <= len(Phase) + runs.count() + 1

    def check_after_work(self) -> None:
        self.the_oldest_change_is_told()

    def teardown(self) -> None:
        if not hasattr(self, "view"):
            return
        try:
            self._come_to_rest()
        finally:
            self.patch.undo()

    def _come_to_rest(self) -> None:
        """After a refresh in which nothing fails, no change is pending."""
        self.failing = False
        if self.lost:
            self.install_the_triggers()
        self.work_until_quiet()
        engine.try_now(ViewControl.objects.values_list("pk", flat=True))
        self.refresh_all()
        self.the_oldest_change_is_told()
        assert self.oracle.oldest is None


def run(examples: int, *, steps: int = 20, **options: Any) -> None:
    run_machine(ChangeLag, examples, steps=steps, database=None, **options)


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    with registry.preserved():
        yield
    changes.remove(engine.alias())


def test_the_oldest_change_is_right_after_any_history(run_random: RunRandom) -> None:
    run_random(run, long=2_000)


def one_mark_for_all(shard: ViewShard, logged_at: datetime, runs: Any) -> None:
    """As it once was: the time of the first change stays as long as later ones are pending."""
    add_drain(shard, logged_at, runs)
    first = min(moment for _number, moment in shard.pending_drains)
    shard.pending_drains = [Drain(shard.drain_number, first)]


def now_is_when(enqueue: Callable[..., None]) -> Callable[..., None]:
    return lambda views, dirty, _logged_at=None: enqueue(views, dirty)


@pytest.mark.finds_fault
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("one mark", marks=pytest.mark.long),  # found only after many histories
        pytest.param("shortened", marks=pytest.mark.long),
        "any phase",
    ],
)
def test_the_machine_finds_a_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "one mark":
        monkeypatch.setattr(checkpoints, "add_drain", one_mark_for_all)
    elif fault == "shortened":
        monkeypatch.setattr(change_log, "enqueue", now_is_when(change_log.enqueue))
        monkeypatch.setattr(change_log, "keep_oldest", lambda *_given: None)
    else:
        monkeypatch.setattr(
            pending_drains,
            "processed",
            lambda shard, _phases: max(
                (n for n, _fingerprint in shard.checkpoints.values()), default=-1
            ),
        )
    with pytest.raises(FOUND):
        # Some faults take a history of more steps, or ten times as many histories.
        run(300, steps=40, phases=[Stage.generate], derandomize=True, report_multiple_bugs=False)
