"""Processes that change a row and then request, while workers are killed: every commit arrives.

`python -m tests.scenarios.test_joining_processes KEY` is one that asks whenever it reads a line.
"""

import random
import subprocess
import sys
from typing import Any

import pytest
from django.db.models import Sum

from tests import ROOT
from tests.helpers.processes import Workers

ASKERS = 4
ROUNDS = 4
TIMES = 3  # in a round
ITEMS = 30

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("postgres", "mariadb", reason="SQLite has one writer at a time"),
]


class Asker:
    """A process that changes one item and asks for a refresh, once a round."""

    def __init__(self, key: int, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(key)],
            cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def begin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Wait until it has asked, or is ready for the first time."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "done\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def test_each_change_arrives_by_the_request_that_followed_it(
    workers: Workers, redis_environment: dict[str, str], settings: Any
) -> None:
    from matviews.models import Refresh  # not before `_main` has set Django up
    from tests.sample.models import Item, Walked

    settings.MATVIEWS = {
        "LEASE": 1.0,
        "BATCH_SIZE_MIN": 1,
        "BATCH_SIZE_INITIAL": 4,
        "BATCH_SIZE_MAX": 8,
    }
    Item.objects.bulk_create([Item(pk=key, value=0) for key in range(1, ITEMS + 1)])
    Walked.objects.bulk_create([Walked(key=key, value=0) for key in range(1, ITEMS + 1)])
    chance = random.Random(20)
    workers.start(2)
    # Spread over the keys, so that a walk under way has passed some of them.
    keys = [1 + each * (ITEMS - 1) // (ASKERS - 1) for each in range(ASKERS)]
    askers = [Asker(key, redis_environment) for key in keys]
    try:
        for each in askers:
            each.end()
        for number in range(1, ROUNDS + 1):
            for each in askers:
                each.begin()
            if number % 2:
                chance.choice(workers.all).kill()
                workers.revive()
            for each in askers:
                each.end()
            workers.wait_until_quiet(meanwhile=workers.maintain)
            wanted = dict.fromkeys(range(1, ITEMS + 1), 0) | dict.fromkeys(keys, number * TIMES)
            assert dict(Walked.objects.values_list("key", "value")) == wanted
    finally:
        for each in askers:
            each.kill()
    assert Refresh.objects.aggregate(all=Sum("requests"))["all"] == ASKERS * ROUNDS * TIMES
    assert set(Refresh.objects.values_list("state", flat=True)) <= {"succeeded", "merged"}
    assert Refresh.objects.count() < ASKERS * ROUNDS * TIMES


def _main(key: int) -> None:
    import django

    django.setup()
    from django.db.models import F

    from tests import celery_app  # noqa: F401 - the app that it sends through
    from tests.sample.models import Item, Walked

    print("done", flush=True)
    for _line in sys.stdin:
        for _time in range(TIMES):
            Item.objects.filter(pk=key).update(value=F("value") + 1)
            Walked.refresh(phases=["update"])
        print("done", flush=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
