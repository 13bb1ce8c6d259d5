"""Random histories of views on change that read each other, whatever happens to who refreshes them.

At rest, every row of every view is right, and every refresh that a follower has requested for a
view of views says which refreshes it follows.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from matviews import engine
from matviews.engine.on_change import waves
from matviews.engine.work import loader
from matviews.models import Change, Origin, PhaseRun, Refresh, ViewChange, ViewControl, ViewShard
from matviews.tasks import polling
from tests.helpers import state_machines, tables
from tests.helpers.engine import travel
from tests.helpers.state_machines import MailboxMachine, run_machine
from tests.helpers.view_graphs import DIAMOND, built, label
from tests.histories.conftest import RunRandom

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

# Before one of the statements of what is killed, of which MariaDB and MySQL take twice as many.
KILLS = st.none() | st.none() | st.integers(1, 40 if connection.vendor == "mysql" else 20)
NAMES = "ABCDE"
MANY_ROUNDS = 40


@st.composite
def graphs(draw: Any) -> tuple[dict[str, str], str]:
    """Views, each with those that it reads, and which of them have hooks."""
    reads: dict[str, str] = {}
    hooks = ""
    for name in NAMES[: draw(st.integers(2, len(NAMES)))]:
        if draw(st.integers(0, 4)) == 0:
            hooks += name
            reads[name] = draw(st.sampled_from(sorted(reads) or [""]))
        else:
            above = st.sets(st.sampled_from(sorted(reads)), max_size=3) if reads else st.just(set())
            reads[name] = "".join(sorted(draw(above)))
    return reads, hooks


class Waves(MailboxMachine):
    """Two followers, workers, maintenance and people; any of the processes may be killed."""

    names = st.integers(0, len(NAMES) - 1)

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()

    @initialize(graph=graphs(), delay=st.sampled_from([0, 0, 5]))
    def begin(self, graph: tuple[dict[str, str], str], delay: int) -> None:
        models: list[type[Any]] = [Change, ViewChange, PhaseRun, Refresh, ViewShard, ViewControl]
        for model in models:
            model._base_manager.all().delete()
        reads, self.hooks = graph
        self.stack.enter_context(tables.alone())
        self.views = self.stack.enter_context(built(reads, delay, hooks=self.hooks))
        self.followers = [engine.ChangePoller(), engine.ChangePoller()]
        self.followed, self.begun = set[int](), set[int]()

    def name(self, number: int) -> str:
        return sorted(self.views.reads)[number % len(self.views.reads)]

    @rule(key=st.integers(1, 3))
    def change(self, key: int) -> None:
        self.views.change(key)

    @rule(value=st.integers(0, 9))
    def add(self, value: int) -> None:
        self.views.base.objects.create(n=value)

    @rule(key=st.integers(1, 3))
    def delete(self, key: int) -> None:
        self.views.base.objects.filter(pk=key).delete()

    @rule(number=names, paused=st.booleans())
    def pause(self, number: int, paused: bool) -> None:
        self.views.set(self.name(number), paused=paused)

    @precondition(lambda self: self.hooks)
    @rule(number=names, broken=st.booleans())
    def break_hooks(self, number: int, broken: bool) -> None:
        self.views.models[self.hooks[number % len(self.hooks)]].broken = broken

    @rule(number=names, upstream=st.booleans(), downstream=st.booleans(), kill=KILLS)
    def request(self, number: int, upstream: bool, downstream: bool, kill: int | None) -> None:
        with self.mortal(kill):
            requested = engine.request_with_neighbours(
                label(self.name(number)), upstream=upstream, downstream=downstream
            )
            for each in requested:
                self.send_due(each.view_id)

    @rule(number=st.integers(0, 1), kill=KILLS)
    def look(self, number: int, kill: int | None) -> None:
        before = set(Refresh.objects.values_list("pk", flat=True))
        done = False
        with self.mortal(kill):
            for view_id in polling.request_due(self.followers[number]):
                self.send_due(view_id)
            done = True
        if not done:  # another process begins in its place
            self.followers[number] = engine.ChangePoller()
        self.followed |= set(Refresh.objects.values_list("pk", flat=True)) - before

    @precondition(lambda self: self.mailbox)
    @rule(position=st.integers(0, 100), again=st.booleans(), kill=KILLS)
    def deliver(self, position: int, again: bool, kill: int | None) -> None:
        self.work_on(position, again=again, kill=kill)

    @rule(kill=KILLS)
    def maintain(self, kill: int | None) -> None:
        with self.mortal(kill):
            for view_id in polling.request_without_change():
                self.send_due(view_id)
        self.send_again(kill)

    @rule(seconds=st.sampled_from([1, 20]))
    def wait(self, seconds: int) -> None:
        travel(timedelta(seconds=seconds))

    def send_due(self, view_id: int) -> None:
        for each in engine.close_finished_in_view(view_id):
            for message in each.messages:
                self.send(message)

    @invariant()
    def who_waits_for_others_begins_after_them(self) -> None:
        if not hasattr(self, "views"):
            return
        waited = Refresh.objects.filter(waits_for_upstream=True, runs__isnull=False)
        begun = waited.exclude(pk__in=self.begun)
        for each in begun.distinct():
            self.begun.add(each.pk)
            still_open = Refresh.objects.filter(pk__in=each.upstream_refreshes, finished_at=None)
            for other in still_open.select_related("view"):
                held = other.view.paused or not other.view.enabled
                assert held or engine.is_waiting(other.view_id), (
                    f"{each.pk} did not wait for {other.pk}"
                )

    def check_after_work(self) -> None:
        self.who_waits_for_others_begins_after_them()

    def check_failures(self) -> None:
        """A view below one that fails is never shown as fresh."""
        failing = ViewControl.objects.filter(failures__gt=0).values_list("label", flat=True)
        graph = engine.view_graph()
        for name in self.views.reads:
            above = graph.part([label(name)]).views_read.keys() - {label(name)}
            if found := sorted(above & set(failing)):
                status = engine.data_status(label(name))
                assert set(found) <= {*status.upstream_failed, *status.upstream_paused}
                assert not status.on_time
                assert not engine.is_fresh(label(name))

    def check_upstream(self) -> None:
        """What a follower has requested for a view of views follows earlier refreshes of these."""
        for each in Refresh.objects.filter(pk__in=self.followed).select_related("view"):
            read = self.views.reads[each.view.label.removeprefix("shapes.")]
            found = Refresh.objects.filter(pk__in=each.upstream_refreshes).select_related("view")
            if read:
                assert each.origin == Origin.DEPENDENCY, f"nothing has caused {each.pk}"
            assert bool(each.upstream_refreshes) == (each.origin == Origin.DEPENDENCY)
            assert {other.view.label for other in found} <= set(map(label, read))
            assert all(other < each.pk for other in each.upstream_refreshes)

    def teardown(self) -> None:
        with self.stack:
            if hasattr(self, "views"):
                self.check_failures()
                self.rest()
                assert self.views.is_right()
                self.check_upstream()

    def rest(self) -> None:
        """Everything is mended; whoever has been killed has a successor; then all come to rest."""
        ViewControl.objects.update(paused=False, retry_at=None, suspended_at=None)
        for name in self.hooks:
            self.views.models[name].broken = False
        for _round in range(MANY_ROUNDS):
            travel(timedelta(seconds=20))
            self.followers = [engine.ChangePoller(), engine.ChangePoller()]
            self.look(0, kill=None)
            self.maintain(kill=None)
            for name in self.hooks:  # as a schedule by time
                self.send_due(engine.request(label(name)).view_id)
            self.work_until_quiet()
            assert not Refresh.objects.filter(finished_at=None).exists()
            if self.views.is_right() and not self.followers[1].poll():
                return
        raise AssertionError("no rest")


@pytest.fixture
def diamond(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waves]:
    """A history by hand."""
    monkeypatch.setattr(state_machines, "note", lambda _text: None)
    written = Waves()
    written.begin(graph=(DIAMOND, ""), delay=0)
    with written.stack:
        yield written


def test_at_rest_every_row_is_right(run_random: RunRandom) -> None:
    run_random(partial(run_machine, Waves), long=100)


class TestSeededFaults:
    def test_a_refresh_that_does_not_wait(
        self, diamond: Waves, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loader, "waits_for_others", lambda _refreshes: set())
        diamond.change(1)
        diamond.request(0, upstream=False, downstream=True, kill=None)
        diamond.deliver(len(diamond.mailbox) - 1, again=False, kill=None)

        with pytest.raises(AssertionError, match="did not wait"):
            diamond.who_waits_for_others_begins_after_them()
        diamond.teardown()

    def test_a_refresh_without_upstream(
        self, diamond: Waves, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waves, "_upstream_refreshes", lambda _schedule, _read: [])
        diamond.change(1)

        with pytest.raises(AssertionError, match="nothing has caused"):
            diamond.teardown()
