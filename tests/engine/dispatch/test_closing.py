"""What a worker knows of the refreshes that its batch has ended need not be read again."""

import pytest

from benchmarks.statements import statements
from matviews import engine
from matviews.models import PhaseRun, Refresh
from matviews.phases import Phase
from matviews.states import RefreshState
from tests.helpers.engine import due, items, shard_of
from tests.sample.models import Limited

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def ended() -> tuple[Refresh, engine.BatchReport]:
    """A refresh whose only batch has committed, and the report of its worker."""
    engine.sync_controls()
    items(1)
    refresh = engine.request(Limited, phases=[Phase.INSERT])
    return refresh, engine.run_batch(due(Limited))


def test_a_refresh_is_closed_without_reading_its_runs(
    ended: tuple[Refresh, engine.BatchReport],
) -> None:
    refresh, report = ended
    shard = shard_of(Limited).pk

    with statements() as found:
        step = engine.close_finished(shard, report)

    assert (step.closed, step.messages) == ((refresh,), [])
    assert Refresh.objects.get().state == RefreshState.SUCCEEDED
    assert not any(PhaseRun._meta.db_table in sql for sql in found)
    # and a second worker, or the same one again, has nothing to close
    assert engine.close_finished(shard, report).closed == ()


def test_a_request_that_came_meanwhile_is_not_missed(
    ended: tuple[Refresh, engine.BatchReport],
) -> None:
    refresh, report = ended
    engine.request(Limited, phases=[Phase.INSERT])

    step = engine.close_finished(shard_of(Limited).pk, report)

    assert step.closed == (refresh,)
    assert [message.phase for message in step.messages] == [Phase.INSERT]
