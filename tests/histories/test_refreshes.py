"""Random histories of one view: whatever happens to messages and workers, the end is right.

A history mixes source changes, requests, stops, pauses, batches, messages that are lost, doubled,
late or out of order, hooks that fail, and workers that are killed before any statement. The machine
stands for broker and workers; engine and database are the real ones.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from django.db import InterfaceError, transaction
from django.db.models import F, Q, Sum
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from matviews import engine
from matviews.engine import BatchReport, Outcome
from matviews.engine.batches import claim
from matviews.models import PhaseRun, Refresh, ViewControl, ViewShard
from matviews.phases import Phase
from matviews.states import RefreshState, RunState
from tests.helpers.engine import let_time_pass, shards_of
from tests.helpers.state_machines import MailboxMachine, run_machine
from tests.histories.conftest import RunRandom
from tests.sample.models import Copy, Fault, Item, Ledger, Limited, Sharded, Walked, Whole

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

VIEWS: list[type[Any]] = [Limited, Walked, Whole, Sharded, Ledger]
PHASES = st.lists(st.sampled_from(list(Phase)), min_size=1, unique=True)
KILLS = st.none() | st.integers(1, 14)
HOOK_ERRORS = st.sampled_from([RuntimeError, InterfaceError])


class History(MailboxMachine):
    """One view, its source, and a mailbox of messages that anything may happen to."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: Counter[tuple[int, int]] = Counter()
        self.tokens: dict[int, int] = {}
        self.changes = 0
        self.next_key = 1
        self.requests: list[tuple[int, int]] = []
        self.hook_error: type[Exception] | None = None

    @initialize(view=st.sampled_from(VIEWS), items=st.integers(0, 6))
    def begin(self, view: type[Any], items: int) -> None:
        models: list[type[Any]] = [PhaseRun, Refresh, ViewShard, ViewControl, Item, *VIEWS]
        for model in models:
            model._base_manager.all().delete()
        engine.sync_controls()
        self.view = view
        self.control = ViewControl.objects.get(label=view._meta.label)
        self.add_items(items)

    # What users of the source do.

    @rule(count=st.integers(1, 5))
    def add_items(self, count: int) -> None:
        # Keys of our own, not the database's: a history must be the same when it is run again.
        new = range(self.next_key, self.next_key + count)
        Item.objects.bulk_create([Item(pk=key, value=key) for key in new])
        self.next_key += count
        self.changes += 1

    @precondition(lambda self: self.view is not Ledger)
    @rule(which=st.integers(0, 4))
    def change_items(self, which: int) -> None:
        Item.objects.filter(pk__in=self._some_items(which)).update(value=F("value") + 1)
        self.changes += 1

    @precondition(lambda self: self.view is not Ledger)
    @rule(which=st.integers(0, 4))
    def delete_items(self, which: int) -> None:
        Item.objects.filter(pk__in=self._some_items(which)).delete()
        self.changes += 1

    def _some_items(self, which: int) -> list[int]:
        return [pk for pk in Item.objects.values_list("pk", flat=True) if pk % 5 == which]

    # What operators, schedules and programs do.

    @rule(phases=PHASES, batch_size=st.integers(1, 4), sent=st.booleans(), kill=KILLS)
    def ask(self, phases: list[Phase], batch_size: int, sent: bool, kill: int | None) -> None:
        has = engine.check_phases(engine_definition(self.view), None)
        wanted = [phase for phase in phases if phase in has] or has
        if not ViewControl.objects.get(pk=self.control.pk).enabled:
            return
        with self.mortal(kill):
            refresh = engine.request(self.view, phases=wanted, batch_size=batch_size)
            self.requests.append((refresh.pk, self.changes))
            for shard_id in shards_of(self.control.pk) if sent else ():
                self.send(engine.close_finished(shard_id).message)

    @rule(apart=st.booleans(), sent=st.booleans(), kill=KILLS)
    def ask_alike(self, apart: bool, sent: bool, kill: int | None) -> None:
        """A request that joins or is merged into another, where that is right."""
        if not ViewControl.objects.get(pk=self.control.pk).enabled:
            return
        with self.mortal(kill):
            with transaction.atomic() if apart else nullcontext():
                refresh = engine.request(self.view, batch_size=1)
            self.requests.append((refresh.pk, self.changes))
            for settled in engine.close_finished_in_view(self.control.pk) if sent else ():
                for message in settled.messages:
                    self.send(message)

    @rule(enabled=st.booleans(), paused=st.booleans())
    def switch(self, enabled: bool, paused: bool) -> None:
        ViewControl.objects.filter(pk=self.control.pk).update(enabled=enabled, paused=paused)

    @precondition(lambda self: self.requests)
    @rule(position=st.integers(0, 100), settled=st.booleans(), kill=KILLS)
    def stop(self, position: int, settled: bool, kill: int | None) -> None:
        refresh, _changes = self.requests[-1 - position % len(self.requests)]
        with self.mortal(kill):
            engine.request_stop(refresh)
            for each in engine.close_finished_in_view(self.control.pk) if settled else ():
                self.send(each.message)

    # What brokers do.

    @precondition(lambda self: self.mailbox)
    @rule(position=st.integers(0, 100))
    def lose_message(self, position: int) -> None:
        self.mailbox.pop(position % len(self.mailbox))

    # What workers do.

    @precondition(lambda self: self.mailbox)
    @rule(position=st.integers(0, 100), again=st.booleans(), kill=KILLS)
    def deliver(self, position: int, again: bool, kill: int | None) -> None:
        self.work_on(position, again=again, kill=kill)

    def worked(self, report: BatchReport) -> None:
        if report.outcome in (Outcome.DONE, Outcome.FAILED):
            self.passed[report.message.shard_id, report.message.token] += 1

    @rule(error=HOOK_ERRORS)
    def let_the_next_hook_fail(self, error: type[Exception]) -> None:
        self.hook_error = error

    @rule()
    def time_passes(self) -> None:
        let_time_pass()

    @rule(kill=KILLS)
    def maintain(self, kill: int | None) -> None:
        self.send_again(kill)

    @contextmanager
    def mortal(self, kill: int | None) -> Iterator[None]:
        def misbehave(_view: type[Any], _hook: str) -> None:
            error, self.hook_error = self.hook_error, None
            if error is not None:
                raise error("the hook was told to fail")

        with pytest.MonkeyPatch.context() as patch, super().mortal(kill):
            patch.setattr(Fault, "commit", misbehave)
            yield

    # What must hold at every moment.

    @invariant()
    def every_token_passes_once(self) -> None:
        assert all(times == 1 for times in self.passed.values()), self.passed
        now = dict(ViewShard.objects.values_list("pk", "token"))
        assert all(now[shard] >= token for shard, token in self.tokens.items())
        self.tokens = now

    @invariant()
    def rows_and_bookkeeping_agree(self) -> None:
        if not hasattr(self, "view") or self.view is Whole:  # a whole-phase hook counts no rows
            return
        rows = dict(PhaseRun.objects.values_list("phase").annotate(total=Sum("rows")).order_by())
        written = rows.get(Phase.INSERT, 0) - rows.get(Phase.DELETE, 0)
        assert self.view._base_manager.count() == written

    @invariant()
    def bookkeeping_is_consistent(self) -> None:
        closed = ~Q(refresh__state=RefreshState.OPEN)
        active = Q(state__in=(RunState.PENDING, RunState.RUNNING))
        runs = PhaseRun.objects
        assert not runs.filter(closed, active).exists()
        assert not runs.filter(active, finished_at__isnull=False).exists()
        assert not runs.filter(~active, finished_at=None).exists()
        assert (
            not runs.exclude(merged_into=None)
            .exclude(
                merged_into__phase=F("phase"),
                merged_into__shard=F("shard"),
                merged_into__state=F("state"),
                merged_into__merged_into=None,
            )
            .filter(~active)
            .exists()
        )
        waiting = Q(state__in=(RefreshState.OPEN, RefreshState.MERGED))
        assert not Refresh.objects.filter(waiting, finished_at__isnull=False).exists()
        assert not Refresh.objects.filter(~waiting, finished_at=None).exists()
        merged = Refresh.objects.filter(state=RefreshState.MERGED)
        assert not merged.exclude(merged_into__state=RefreshState.OPEN).exists()
        assert not merged.filter(runs__isnull=False).exists()

    @invariant()
    def nothing_is_stopped_but_what_a_person_stops(self) -> None:
        stopped = PhaseRun.objects.filter(state=RunState.STOPPED)
        assert not stopped.filter(refresh__stop_requested=False).exists()
        assert not stopped.exclude(merged_into=None).exists()
        assert not Refresh.objects.filter(state=RefreshState.STOPPED, stop_requested=False).exists()

    # At rest.

    def teardown(self) -> None:
        if not hasattr(self, "view"):
            return
        self.hook_error = None
        self.switch(enabled=True, paused=False)
        self.work_until_quiet()
        assert not Refresh.objects.filter(finished_at=None).exists()
        self._whatever_was_promised_is_kept()
        engine.request(self.view, batch_size=2)
        self.work_until_quiet()
        self._equals_a_recomputation(list(engine_definition(self.view).hooks))
        self.rows_and_bookkeeping_agree()
        self.bookkeeping_is_consistent()

    def check_after_work(self) -> None:
        self.every_token_passes_once()

    def _whatever_was_promised_is_kept(self) -> None:
        """A request that succeeded covers every change that was committed before it."""
        covering = [pk for pk, changes in self.requests if changes == self.changes]
        succeeded = Refresh.objects.filter(pk__in=covering, state=RefreshState.SUCCEEDED)
        phases = {Phase(phase) for refresh in succeeded for phase in refresh.phases}
        self._equals_a_recomputation(sorted(phases))

    def _equals_a_recomputation(self, phases: list[Phase]) -> None:
        source = dict(Item.objects.values_list("pk", "value"))
        if self.view is Ledger:
            keys = sorted(Ledger.objects.values_list("key", flat=True))
            assert not phases or keys == sorted(source)
            return
        table = dict(self.view._base_manager.values_list("key", "value"))
        if Phase.INSERT in phases:
            assert not source.keys() - table.keys()
        if Phase.DELETE in phases:
            assert not table.keys() - source.keys()
        if Phase.UPDATE in phases:
            assert all(table[key] == source[key] for key in source.keys() & table.keys())


def engine_definition(view: type[Copy]) -> Any:
    from matviews.registry import registry

    return registry.find(view)


def run(examples: int, **options: Any) -> None:
    run_machine(History, examples, steps=25, **options)


def test_any_history_ends_with_the_right_table(run_random: RunRandom) -> None:
    run_random(run, long=3_000)


@pytest.mark.finds_fault
def test_the_machine_finds_a_token_that_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an engine that claims a shard whatever its token
    def whatever_the_token(shard_id: int, _token: int, *_fits: Q, **changes: Any) -> bool:
        return bool(ViewShard.objects.filter(pk=shard_id).update(**changes))

    monkeypatch.setattr(claim, "update_if_current", whatever_the_token)
    # Then some history shows a message that passed twice
    with pytest.raises(AssertionError):
        run(500, phases=[Stage.generate], derandomize=True)
