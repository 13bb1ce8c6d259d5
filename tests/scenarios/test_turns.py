"""One worker, many long refreshes, and a short one that must not wait for all of them."""

import pytest

from matviews import engine
from matviews.models import Refresh, ViewControl
from matviews.states import RefreshState
from tests.helpers.ledger import add_items, fault
from tests.helpers.processes import Workers
from tests.sample.models import Item, Sharded, Walked

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

LONG = 16  # shards, each of which has messages of its own, as a view has
SHORT = "sample.Walked"


def build_all(workers: Workers) -> None:
    """A worker that takes messages in advance, and long refreshes that have begun."""
    ViewControl.objects.filter(label="sample.Sharded").update(shard_count=LONG)
    engine.sync_shards()
    workers.start(1, children=1)
    add_items(LONG * 12)
    Sharded.refresh()
    workers.wait_for(lambda: len(batches(workers)) >= LONG + 4)


def batches(workers: Workers) -> list[str]:
    return workers.lines("batch finished view=sample.Sharded")


def batches_before_the_end_of_a_short_one(workers: Workers) -> int:
    before = len(batches(workers))
    workers.send_by_name("matviews.refresh", SHORT, ["delete"])
    ended = Refresh.objects.filter(view__label=SHORT, state=RefreshState.SUCCEEDED)
    workers.wait_for(ended.exists)
    return len(batches(workers)) - before


@pytest.mark.parametrize(
    "broker", ["workers", pytest.param("rabbitmq_workers", marks=pytest.mark.long)]
)
def test_a_short_refresh_waits_for_few_batches_of_long_ones(
    broker: str, request: pytest.FixtureRequest, settings: object
) -> None:
    settings.MATVIEWS = {  # type: ignore[attr-defined]
        "BATCH_SIZE_INITIAL": 3, "BATCH_SIZE_MIN": 1, "BATCH_SIZE_MAX": 3,
    }  # fmt: skip
    workers: Workers = request.getfixturevalue(broker)
    with fault(Sharded, "do_insert", "sleep", seconds=0.1):
        build_all(workers)
        waited = batches_before_the_end_of_a_short_one(workers)
    # the two messages of the short one each wait for the running batch and one behind it
    assert waited <= LONG // 2
    workers.wait_until_quiet()
    assert Sharded.objects.count() == Item.objects.count()
    assert workers.lines("ERROR") == []
    assert not Walked.objects.exists()
