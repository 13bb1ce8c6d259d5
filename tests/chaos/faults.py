"""What is done to the processes: each fault begins here, and returns what ends it."""

import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress

from .plan import Kind, Step
from .processes import Process
from .world import BEATS, FOLLOWERS, SHUTDOWN, WORKERS, World

__all__ = ["FAULTS", "End", "Fault"]

#: What ends a fault; it may be called again if it has failed.
End = Callable[[], None]
Fault = Callable[[World, Step], End]

OFFSETS = (-86_400, -3_600, -300, -20, 20, 300, 3_600, 86_400)  # seconds


def _nothing() -> None:
    """There is nothing to end."""


def _kill(world: World, step: Step) -> End:
    return _down(_programs(world, step.target), Process.kill)


def _stop(world: World, step: Step) -> End:
    return _down(
        _programs(world, step.target), lambda each: each.ask_to_end(signal.SIGTERM, SHUTDOWN)
    )


def _down(programs: list[Process], end: Callable[[Process], None]) -> End:
    for program in programs:
        program.held = True
        end(program)

    def start() -> None:
        for program in programs:
            program.held = False
            program.start()

    return start


def _kill_child(world: World, step: Step) -> End:
    (worker,) = _programs(world, step.target)
    if children := worker.children:
        with suppress(ProcessLookupError):
            os.kill(children[step.choice % len(children)], signal.SIGKILL)
    return _nothing


def _freeze(world: World, step: Step) -> End:
    programs = _programs(world, step.target)
    for program in programs:
        program.send(signal.SIGSTOP)

    def thaw() -> None:
        for program in programs:
            program.send(signal.SIGCONT)

    return thaw


def _programs(world: World, target: str) -> list[Process]:
    if target == "broker":
        return [world.broker]
    return [program for name, program in world.programs.items() if name.startswith(target)]


def _shift_clock(world: World, step: Step) -> End:
    """A beat has to be started again when its clock has been ahead, as the documentation says."""
    clock = world.clocks[step.target]
    clock.set(OFFSETS[step.choice % len(OFFSETS)])

    def correct() -> None:
        clock.set(0)
        if step.target in BEATS:
            world.restart(step.target)

    return correct


def _deploy(world: World, step: Step) -> End:
    """Half of the processes run the next version at once, the others at the end."""
    names = random.Random(step.choice).sample(list(world.programs), len(world.programs))
    world.use_version(world.version + 1)
    half = len(names) // 2
    for name in names[:half]:
        world.restart(name)
    left = names[half:]

    def finish() -> None:
        while left:
            world.restart(left[-1])
            left.pop()

    return finish


def _stop_database(world: World, step: Step) -> End:
    world.reachable = False
    world.database_server.stop_at_once()
    return lambda: _start_database(world)


def _kill_database(world: World, step: Step) -> End:
    world.reachable = False
    world.database_server.kill()
    return lambda: _start_database(world)


def _start_database(world: World) -> None:
    world.database_server.start()
    world.reachable = True


def _freeze_database(world: World, step: Step) -> End:
    server = world.database_server
    world.reachable = False  # or this process would wait for an answer, and could not end it
    server.send(signal.SIGSTOP)

    def end() -> None:
        server.send(signal.SIGCONT)
        world.reachable = True

    return end


#: What is done to processes, by kind. Those to rows and messages are in `row_faults`.
FAULTS: dict[Kind, Fault] = {
    Kind(name="worker killed", targets=WORKERS, seconds=(0, 5)): _kill,
    Kind(name="worker killed again", targets=WORKERS, seconds=(0, 1)): _kill,
    Kind(name="all workers killed", targets=("worker",), seconds=(1, 5)): _kill,
    Kind(name="worker stopped", targets=WORKERS, seconds=(0, 3)): _stop,
    Kind(name="child of a pool killed", targets=WORKERS[-1:]): _kill_child,
    Kind(name="worker frozen", targets=WORKERS, seconds=(1, 12)): _freeze,
    Kind(name="worker frozen again", targets=WORKERS, seconds=(6, 12)): _freeze,
    Kind(name="all workers frozen", targets=("worker",), seconds=(2, 9)): _freeze,
    Kind(name="beat killed", targets=BEATS, seconds=(0, 8)): _kill,
    Kind(name="beat frozen", targets=BEATS, seconds=(2, 10)): _freeze,
    Kind(name="both beats killed", targets=("beat",), seconds=(2, 6)): _kill,
    Kind(name="follower killed", targets=FOLLOWERS, seconds=(0, 5)): _kill,
    Kind(name="follower frozen", targets=FOLLOWERS, seconds=(1, 12)): _freeze,
    Kind(name="both followers killed", targets=("follower",), seconds=(1, 8)): _kill,
    Kind(name="follower stopped", targets=FOLLOWERS, seconds=(0, 3)): _stop,
    Kind(name="clock wrong", targets=(*WORKERS, *BEATS, *FOLLOWERS), seconds=(4, 20)): _shift_clock,
    Kind(name="beat's clock wrong", targets=BEATS, seconds=(4, 15)): _shift_clock,
    Kind(name="deploy", targets=("worker",), seconds=(3, 10)): _deploy,
    Kind(name="database stopped", targets=("database",), seconds=(0, 4)): _stop_database,
    Kind(name="database killed", targets=("database",), seconds=(0, 4)): _kill_database,
    Kind(name="database frozen", targets=("database",), seconds=(1, 8)): _freeze_database,
    Kind(name="broker killed", targets=("broker",), seconds=(0, 5)): _kill,
    Kind(name="broker frozen", targets=("broker",), seconds=(1, 8)): _freeze,
}
