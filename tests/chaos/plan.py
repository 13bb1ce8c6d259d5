"""Which fault comes when: a plan that a seed makes, the same each time."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Kind", "Step", "make_plan"]

FIRST = 3.0  # seconds until the first fault
GAP = (0.5, 4.0)  # seconds between two faults
QUIET_AFTER = 8  # faults, for a while in which everything may recover
QUIET = 12.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: as reports have it.
        targets: what it may be done to. A target beginning with another is part of it.
        seconds: how long it lasts, from and to.
    """

    name: str
    targets: tuple[str, ...]
    seconds: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A fault of the plan.

    Attributes:
        at: when it begins, in seconds after the start.
        kind: its name.
        target: what it is done to.
        seconds: how long it lasts.
        choice: a number that chooses whatever else there is to choose.
    """

    at: float
    kind: str
    target: str
    seconds: float
    choice: int

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.at:7.1f} s  {self.kind}: {self.target}{lasting}"


def make_plan(seed: int, seconds: float, kinds: Iterable[Kind]) -> list[Step]:
    """Steps over so many seconds. Each kind comes once before one comes again.

    At any time, at most one fault is done to a target or its parts.
    """
    chance, kinds = random.Random(seed), list(kinds)
    steps: list[Step] = []
    deck: list[Kind] = []
    at = FIRST
    while at < seconds:
        deck = deck or chance.sample(kinds, len(kinds))
        if step := _drawn(chance, deck, at, steps):
            steps.append(step)
        at += chance.uniform(*GAP)
        if steps and len(steps) % QUIET_AFTER == 0 and steps[-1] is step:
            at += QUIET
    return steps


def _drawn(
    chance: random.Random, deck: list[Kind], at: float, steps: Sequence[Step]
) -> Step | None:
    """The first kind of the deck that has a free target; it leaves the deck."""
    busy = {step.target for step in steps if step.at + step.seconds + 1 > at}
    for kind in deck:
        free = [each for each in kind.targets if not any(_overlap(each, other) for other in busy)]
        if free:
            deck.remove(kind)
            return Step(
                at=at,
                kind=kind.name,
                target=chance.choice(free),
                seconds=chance.uniform(*kind.seconds),
                choice=chance.randrange(2**16),
            )
    return None


def _overlap(target: str, other: str) -> bool:
    return target.startswith(other) or other.startswith(target)
