"""How views and refreshes stand, as the command and the admin show it."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from matviews import engine
from matviews.engine import ViewStatus, progress_of
from matviews.engine.batch import worker_name
from matviews.models import Stripe, ViewControl
from matviews.phases import Phase
from matviews.registry import registry
from matviews.states import RunState
from tests.defining import make_view, ready, run
from tests.ledger import add_items, fault
from tests.sample.models import Limited, Striped, Walked

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

LIMITED = "sample.Limited"


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


def status(label: str = LIMITED) -> ViewStatus:
    (found,) = [each for each in engine.view_statuses() if each.label == label]
    return found


def control(label: str = LIMITED) -> Any:
    return ViewControl.objects.filter(label=label)


def due(view: type[Any]) -> engine.Message:
    stripe = Stripe.objects.get(view__label=view._meta.label, number=0)
    message = engine.settle(stripe.pk).message
    assert message is not None
    return message


def test_a_view_goes_from_never_built_to_ready() -> None:
    add_items(3)
    assert (status().state, status().rows, status().lag) == ("never built", 0, None)

    run(Limited)

    now = status()
    assert (now.state, now.rows, now.error, now.running) == ("ready", 3, "", ())
    assert now.last_success is not None
    assert now.lag is not None
    assert timedelta(0) <= now.lag < timedelta(minutes=1)


def test_the_phase_that_is_longest_ago_tells_the_lag() -> None:
    run(Limited)
    control().update(last_update=timezone.now() - timedelta(hours=2))

    run(Limited, phases=["insert"])

    assert status().lag is not None
    assert status().lag >= timedelta(hours=2)  # type: ignore[operator]


def test_a_view_past_its_freshness_target_is_behind() -> None:
    run(Limited)
    control().update(freshness_target=timedelta(microseconds=1))

    assert status().state == "behind"


def test_an_open_refresh_is_told_apart_from_one_that_nobody_is_at() -> None:
    # given a request that nobody has taken
    add_items(30)
    engine.request(Limited, batch_size=10)
    assert status().state == "waiting"
    # when a batch was done a moment ago
    engine.run_batch(due(Limited))
    assert (status().state, status().running) == ("refreshing", ())
    # and when nothing has been heard for a lease
    past = timezone.now() - timedelta(hours=1)
    Stripe.objects.update(watch_after=past)
    assert status().state == "waiting"
    # and when a worker has announced itself, however long ago
    stripe = Stripe.objects.filter(view__label=LIMITED)
    stripe.update(announced_token=stripe.get().token, announced_at=past, worker="vm-1:4711")
    assert status().state == "refreshing"
    assert [(each.worker, each.since) for each in status().running] == [("vm-1:4711", past)]


def test_a_failed_view_shows_its_error_until_it_succeeds() -> None:
    add_items(3)
    with fault(Limited, "do_insert", "raise"):
        run(Limited)
    assert status().state == "failed"
    assert status().error == "insert: RuntimeError: do_insert was told to fail"

    run(Limited)

    assert (status().state, status().error) == ("ready", "")


def test_what_an_operator_has_set_is_shown() -> None:
    control().update(enabled=False, include_in_batch=False)

    now = status()

    assert (now.state, now.enabled, now.include_in_batch) == ("disabled", False, False)


def test_views_without_rows_without_code_or_with_errors_are_listed() -> None:
    # given a view whose code is gone, one that migrate has not seen, and one with errors
    ViewControl.objects.create(label="shop.Gone")
    with registry.preserved():
        ready(make_view(name="Hookless"))
        control().delete()
        # then all are listed, and none of them stops the list
        assert status("shop.Gone").state == "not in the code"
        assert status().state == "no rows yet"
        broken = status("sample.Hookless")
        assert (broken.state, broken.rows) == ("invalid", None)


def states(refresh: Any) -> list[tuple[Any, ...]]:
    return [(each.phase, each.stripe, each.run.rows, each.current) for each in progress_of(refresh)]


def test_progress_is_known_before_the_first_batch_and_after_the_last() -> None:
    add_items(25)
    refresh = engine.request(Limited, batch_size=10, phases=["insert", "delete"])
    assert states(refresh) == [("insert", None, 0, True), ("delete", None, 0, False)]

    engine.run_batch(due(Limited))
    assert states(refresh) == [("insert", None, 10, True), ("delete", None, 0, False)]
    assert progress_of(refresh)[0].run.estimate == 25

    run(Limited)
    assert states(refresh) == [("insert", None, 25, False), ("delete", None, 0, False)]


def test_progress_is_told_by_phase_and_stripe() -> None:
    add_items(4)
    refresh = run(Striped, phases=["insert", "update"])

    assert [(each.phase, each.stripe, each.run.rows) for each in progress_of(refresh)] == [
        ("insert", 0, 2), ("insert", 1, 2), ("update", 0, 0), ("update", 1, 0),
    ]  # fmt: skip


def test_a_merged_refresh_shows_the_run_that_does_the_work() -> None:
    # given a refresh under way, which another joins
    add_items(25)
    first = engine.request(Limited, batch_size=10, phases=["insert"])
    engine.run_batch(due(Limited))
    second = engine.request(Limited, phases=["insert"])
    # then the second shows the work of the first, before and after it has joined
    before = progress_of(second)[0]
    engine.run_batch(due(Limited))
    after = progress_of(second)[0]
    assert (before.run.rows, before.other) == (10, first.pk)
    assert (after.run.rows, after.other, after.ahead) == (20, first.pk, False)
    # and its end is theirs
    engine.run_batch(due(Limited))
    assert progress_of(second)[0].run.state == RunState.SUCCEEDED


def test_a_run_that_must_wait_for_an_older_one_shows_that() -> None:
    # given a walk over the keys that was left half way
    add_items(25)
    first = engine.request(Walked, batch_size=10, phases=["insert"])
    engine.run_batch(due(Walked))
    # when a second is asked for
    second = engine.request(Walked, batch_size=10, phases=["insert"])
    engine.run_batch(due(Walked))
    # then it shows the first as long as that goes on, and then itself
    waiting = progress_of(second)[0]
    assert (waiting.run.rows, waiting.other, waiting.ahead) == (20, first.pk, True)
    for _batch in range(2):
        engine.run_batch(due(Walked))
    own = progress_of(second)[0]
    assert (own.run.refresh_id, own.other, own.ahead) == (second.pk, None, False)


def test_progress_names_the_other_process_that_is_at_work() -> None:
    add_items(3)
    refresh = engine.request(Limited)
    stripe = Stripe.objects.filter(view__label=LIMITED)
    since = timezone.now()
    stripe.update(announced_token=stripe.get().token, announced_at=since, worker="vm-1:4711")

    insert, update, _delete = progress_of(refresh)

    assert (insert.announced, update.announced) == (("vm-1:4711", since), None)


def test_progress_names_this_process_only_where_it_lost_its_batch() -> None:
    add_items(3)
    refresh = engine.request(Limited)
    stripe = Stripe.objects.filter(view__label=LIMITED)
    token = stripe.get().token
    stripe.update(announced_token=token, announced_at=timezone.now(), worker=worker_name())

    insert = progress_of(refresh)[0]

    assert (insert.announced, insert.lost, insert.phase) == (None, True, Phase.INSERT)
