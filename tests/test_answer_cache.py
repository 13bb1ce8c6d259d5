"""Answers that are kept: for how long, and when the function is called again."""

from types import SimpleNamespace
from typing import Any

import pytest

from matviews import answer_cache
from matviews.answer_cache import CachedAnswer


class Clock:
    def __init__(self) -> None:
        self.now, self.took, self.calls = 0.0, 0.0, 0

    def find(self) -> int:
        self.now += self.took
        self.calls += 1
        return self.calls


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(answer_cache, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.mark.parametrize(
    ("took", "lasting"), [(0.0, 5.0), (0.004, 5.0), (0.03, 30.0), (30.0, 60.0)]
)
def test_it_lasts_as_many_seconds_or_longer_if_it_took_long(
    clock: Clock, took: float, lasting: float
) -> None:
    clock.took, answer = took, CachedAnswer(clock.find, 5.0)
    answer()
    clock.now = took + lasting - 0.01
    assert answer() == 1
    clock.now += 0.02
    assert answer() == 2


def test_an_error_is_not_kept(clock: Clock) -> None:
    answers: list[Any] = [7, ValueError("no")]

    def find() -> int:
        if isinstance(found := answers.pop(), Exception):
            raise found
        return int(found)

    answer = CachedAnswer(find, 5.0)
    with pytest.raises(ValueError, match="no"):
        answer()
    assert answer() == 7


def test_nor_does_an_error_keep_the_answer_before_it(clock: Clock) -> None:
    answers: list[Any] = [7, ValueError("no"), 8]

    def find() -> int:
        if isinstance(found := answers.pop(0), Exception):
            raise found
        return int(found)

    answer = CachedAnswer(find, 5.0)
    answer()
    clock.now = 10.0
    with pytest.raises(ValueError, match="no"):
        answer()
    assert answer() == 8


def test_who_asks_while_it_is_called_again_gets_the_last_answer(clock: Clock) -> None:
    meanwhile: list[int] = []

    def find() -> int:
        if clock.calls:
            meanwhile.append(answer())
        return clock.find()

    answer = CachedAnswer(find, 5.0)
    answer()
    clock.now = 10.0

    assert (answer(), meanwhile) == (2, [1])


def test_it_can_be_forgotten(clock: Clock) -> None:
    answer = CachedAnswer(clock.find, 5.0)
    assert (answer(), answer()) == (1, 1)
    answer.forget()
    assert answer() == 2
