"""A run: everything is started, the plan is carried out, everything comes to rest and is judged."""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from django.core.management import call_command
from django.db import Error, connection
from redis import RedisError

from . import celery_app, faults, judgement, row_faults, writers
from .faults import End
from .logs import batches_done_twice
from .plan import Kind, Step, make_plan
from .recovery import Recoveries
from .report import print_plan, print_report
from .row_faults import StillLocked
from .world import FOLLOWERS, WORKERS, World

__all__ = ["run"]

TICK = 0.1  # seconds
FAULTS = {kind.name: fault for kind, fault in [*faults.FAULTS.items(), *row_faults.FAULTS.items()]}
KINDS: list[Kind] = [*faults.FAULTS, *row_faults.FAULTS]
#: What may go wrong for a fault of ours because of another: it is tried again, or left out.
EXPECTED = (Error, RedisError, OSError, StillLocked)
PATIENCE = 60.0  # seconds until what ends a fault must have succeeded
REST_LEASES = 24  # how long everything may take to come to rest, in leases
MIN_REST = 120.0  # seconds


def run(world: World, *, seed: int, seconds: float, lease: float) -> list[str]:
    """Carry out the plan of a seed.

    Returns:
        What is wrong at the end, a line each.
    """
    steps = make_plan(seed, seconds, KINDS)
    print_plan(seed, steps)
    _prepare(world, seed, lease)
    actor = _Actor(world, steps)
    actor.act()
    print("\nThe faults end, everything is up again, and nobody writes.", flush=True)
    actor.end_all()
    since = time.monotonic()
    wrong = _come_to_rest(world, max(MIN_REST, REST_LEASES * lease), actor.recoveries)
    print(f"At rest after {time.monotonic() - since:.1f} s.", flush=True)
    wrong += judgement.verdict()
    logs = [world.programs[name].log for name in (*WORKERS, *FOLLOWERS)]
    if twice := batches_done_twice(logs):
        wrong.append(f"{len(twice)} batches were done twice by the logs, as {twice[:5]}")
    print_report(world, actor.recoveries, actor.done, actor.skipped)
    return wrong


def _prepare(world: World, seed: int, lease: float) -> None:
    """Tables, triggers, rows, and everybody at work."""
    logging.basicConfig(filename=world.folder / "chaos.log", level=logging.WARNING)
    celery_app.app.set_default()  # this process sends messages too
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    call_command("migrate", run_syncdb=True, verbosity=0)
    every = IntervalSchedule.objects.create(every=max(1, round(lease)), period="seconds")
    PeriodicTask.objects.create(name="chaos: maintain", task="matviews.maintain", interval=every)
    writers.fill(random.Random(seed))
    world.reachable = True
    world.start_programs()
    for writer in world.writers:
        writer.start()


@dataclass
class _Actor:
    """Begins and ends the faults of a plan, each at its time."""

    world: World
    steps: list[Step]
    recoveries: Recoveries = field(default_factory=Recoveries)
    #: How many faults there were, and how many could not be, by kind.
    done: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    #: The faults under way, with what ends them.
    _active: list[tuple[Step, End]] = field(default_factory=list)

    def act(self) -> None:
        """Until the plan is done."""
        started = time.monotonic()
        for step in self.steps:
            while True:
                now = time.monotonic() - started
                self._end_due(now)
                if now >= step.at:
                    break
                self._look_after()
                time.sleep(TICK)
            self._begin(step)

    def end_all(self) -> None:
        """End what is under way, and have an operator do what only a person does."""
        self._insist(lambda: self._end_due(float("inf")), lambda: not self._active)
        for clock in self.world.clocks.values():
            clock.set(0)
        self.world.end_writers()
        self.world.start_programs()
        connection.close()
        self._insist(row_faults.heal)

    def _begin(self, step: Step) -> None:
        needs_database = step.kind in {kind.name for kind in row_faults.FAULTS}
        try:
            if needs_database and not self.world.reachable:
                raise OSError("the database is down")
            end = FAULTS[step.kind](self.world, step)
        except EXPECTED as error:
            self.skipped[step.kind] += 1
            print(f"      {step.kind} was left out: {_short(error)}", flush=True)
            self._forget_connection()
            return
        self.done[step.kind] += 1
        print(step, flush=True)
        self._active.append((step, end))

    def _end_due(self, now: float) -> None:
        for step, end in list(self._active):
            if now < step.at + step.seconds or not self._can_end(step):
                continue
            try:
                end()
            except EXPECTED as error:
                print(f"      {step.kind} cannot be ended yet: {_short(error)}", flush=True)
                self._forget_connection()
                continue
            self._active.remove((step, end))
            self.recoveries.ended(step.kind)

    def _can_end(self, step: Step) -> bool:
        return self.world.reachable or step.kind not in {kind.name for kind in row_faults.FAULTS}

    def _look_after(self) -> None:
        self.world.revive()
        if self.world.reachable:
            try:
                self.recoveries.sample()
            except EXPECTED:
                self._forget_connection()

    def _insist(self, work: Callable[[], object], done: Callable[[], bool] = lambda: True) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                work()
                if done():
                    return
            except EXPECTED as error:
                self._forget_connection()
                if time.monotonic() > deadline:
                    raise
                print(f"      again: {_short(error)}", flush=True)
            if time.monotonic() > deadline:
                raise RuntimeError("the faults could not be ended")
            time.sleep(1)

    @staticmethod
    def _forget_connection() -> None:
        try:
            connection.close()
        except Error:
            connection.connection = None


def _come_to_rest(world: World, patience: float, recoveries: Recoveries) -> list[str]:
    """Wait until nothing is left to do, which beats, workers and maintenance do by themselves.

    Returns:
        What is left when patience is over.
    """
    deadline = time.monotonic() + patience
    while left := judgement.left_over():
        if time.monotonic() > deadline:
            return [f"not at rest after {patience:.0f} s: {each}" for each in left]
        world.revive()
        recoveries.sample()
        time.sleep(TICK)
    recoveries.sample()
    return []


def _short(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip().splitlines()[0][:150]
