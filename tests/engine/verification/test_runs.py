"""Verifications in the background: what they count while the source changes, and who runs them."""

import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection
from django.db.models import F

from matviews import changes, engine, mark_dirty, tasks
from matviews.databases import Load
from matviews.engine import VerifyMessage
from matviews.engine.dispatch import governor
from matviews.engine.verification import comparison, key_parts, runs
from matviews.exceptions import InvalidRequest
from matviews.health import check_health
from matviews.models import Origin, TrackedTable, VerifyRun, ViewControl
from matviews.phases import Phase
from matviews.states import ViewState
from matviews.tasks import inline, verifications
from tests.helpers.engine import LONG_AGO, in_another_connection, travel
from tests.helpers.processes import DEADLINE
from tests.helpers.view_classes import run
from tests.shapes.models import Customer, Order, Product, Region
from tests.shapes.models.grouped import CustomerTotal, Overall, RegionTotal
from tests.shapes.query import Query
from tests.shapes.tracking import track_for

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

CUSTOMERS, ORDERS = 12, 40
QUIET = 1000  # a customer whose orders nobody changes
NOBODY = 7777
PAUSE = 0.02 if connection.vendor == "sqlite" else 0.002  # seconds: SQLite has one writer
ATTEMPTS = 5
VIEW = CustomerTotal
LABEL = VIEW._meta.label


@pytest.fixture(autouse=True)
def _shop(tracked: None) -> Iterator[None]:
    Product.objects.create(sku="a", name="a", price=1)
    for number in (1, 2, 3):
        Region.objects.create(pk=number, name=str(number))
    Customer.objects.bulk_create(
        Customer(pk=number, name=str(number), region_id=1 + number % 3)
        for number in (*range(1, CUSTOMERS + 1), QUIET)
    )
    owners = [*(1 + number % CUSTOMERS for number in range(1, ORDERS + 1)), QUIET]
    Order.objects.bulk_create(
        Order(pk=pk, customer_id=owner, product_id="a", price=1, paid=False)
        for pk, owner in enumerate(owners, 1)
    )
    run(VIEW)
    yield
    VIEW.query = Query()


def control() -> Any:
    return ViewControl.objects.get(label=LABEL)


def verified(**options: Any) -> dict[str, Any]:
    """Verify in the background, slice by slice, and return what is stored."""
    message = engine.request_verification(LABEL, **options)
    while message:
        message = engine.verify_slice(message)
    found: dict[str, Any] = control().verification
    return found


def counted(found: dict[str, Any]) -> tuple[int, int, int]:
    return found["missing"], found["differing"], found["surplus"]


def row_of(customer: int) -> Any:
    return VIEW.objects.filter(customer_id=customer)


def plant(customer: int = QUIET) -> None:
    """A wrong value in the view that no change explains."""
    assert row_of(customer).update(orders=F("orders") + 1000) == 1


def change(customer: int) -> None:
    Order.objects.filter(customer_id=customer).update(price=F("price") + 1)


# What counts


def test_a_wrong_row_counts_and_a_pending_change_does_not() -> None:
    change(1)
    plant()

    found = verified()

    assert counted(found) == (0, 1, 0)
    assert (found["pending"], found["untracked"], found["error"]) == (1, "", "")
    assert found["examples"] == [{"kind": "differing", "key": {"customer": QUIET}}]
    assert found["rows_compared"] == CUSTOMERS + 1


@pytest.mark.parametrize("stage", ["logged", "queued", "dirty"])
def test_a_change_is_pending_wherever_it_is(stage: str) -> None:
    # given a change of each kind: in the log, in the queue, or drained by another phase alone
    Order.objects.filter(customer_id=1).delete()
    change(2)
    Order.objects.create(pk=900, customer_id=None, product_id="a", price=1, paid=False)
    if stage != "logged":
        engine.move_log()
    if stage == "dirty":
        inline.run_to_end(engine.request(VIEW, phases=[Phase.INSERT]))
    # then none of them counts, and the wrong row does
    assert counted(verified()) == (0, 0, 0)
    plant()
    assert counted(verified()) == (0, 1, 0)
    # and the refresh that processes them mends no other row
    run(VIEW)
    found = verified()
    assert (counted(found), found["pending"]) == ((0, 1, 0), 0)


def test_missing_and_surplus_rows_count() -> None:
    row_of(1).delete()
    row_of(2).update(customer_id=5000)
    change(3)

    assert counted(verified()) == (2, 0, 1)


def test_where_any_key_may_be_dirty_nothing_counts_until_it_is_refreshed() -> None:
    plant()
    mark_dirty(VIEW)

    found = verified()

    assert (counted(found), found["pending"]) == ((0, 0, 0), 1)
    run(VIEW)
    assert counted(verified()) == (0, 0, 0)


def test_a_key_that_was_pending_is_compared_again_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a wrong row that also has a pending change, which concerns another column
    change(1)
    compared = vars(runs)["compare_without_pending"]
    parts: list[Any] = []

    def refresh_between(*args: Any) -> Any:
        found = compared(*args)
        if not parts:
            run(VIEW)
            plant(1)
        parts.append(args)
        return found

    monkeypatch.setattr(runs, "compare_without_pending", refresh_between)

    found = verified()

    assert len(parts) == 2
    assert (counted(found), found["pending"]) == ((0, 1, 0), 0)


def test_more_differences_than_are_read_are_counted_as_at_least_so_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "MAX_FOUND", 3)
    VIEW.objects.update(orders=-5)
    change(1)

    found = verified()

    assert found["differing"] == CUSTOMERS
    assert found["pending"] == 1


def test_without_triggers_every_difference_counts_and_the_result_says_why() -> None:
    TrackedTable.objects.update(views=[], view_columns={})
    change(1)

    found = verified()

    assert counted(found) == (0, 1, 0)
    assert found["untracked"].startswith("no triggers log all changes of shapes_order")
    assert control().differing is None


@pytest.mark.parametrize(
    "rounds", [9, pytest.param(150, marks=pytest.mark.long)], ids=["short", "long"]
)
@pytest.mark.parametrize("view", [VIEW, RegionTotal])
def test_under_a_writer_nothing_but_the_planted_row_is_found(view: type[Any], rounds: int) -> None:
    # given a writer and a refresher that never pause
    run(view)
    over = threading.Event()
    written: list[int] = []
    threads = [
        in_another_connection(lambda: write_until(over, written)),
        in_another_connection(lambda: refresh_until(over, view)),
    ]
    try:
        for number in range(rounds):
            planted = number % 3 == 2
            if planted:
                plant_surplus(view)
            await_another(written)
            found = verified_of(view)
            # then a planted row is found each time, and nothing else ever is
            assert (counted(found), found["error"]) == ((0, 0, int(planted)), "")
            if planted:
                remove_surplus(view)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def await_another(written: list[int]) -> None:
    """Wait until the writer has committed once more: SQLite has one writer, perhaps another."""
    count, deadline = len(written), time.monotonic() + DEADLINE
    while len(written) == count:
        assert time.monotonic() < deadline, "the writer does not get on"
        time.sleep(0.001)


def plant_surplus(view: type[Any]) -> None:
    """A row of a key that no source has, as no change explains."""
    values = {"orders": 1, **({"unpaid": 0} if view is RegionTotal else {})}
    patiently(lambda: view._base_manager.create(**{key_of(view): NOBODY}, **values))


def remove_surplus(view: type[Any]) -> None:
    patiently(lambda: view._base_manager.filter(**{key_of(view): NOBODY}).delete())


def key_of(view: type[Any]) -> str:
    return "customer_id" if view is VIEW else "region_id"


def verified_of(view: type[Any]) -> dict[str, Any]:
    """Verify; after an error that passes, a slice is sent again, as maintenance does."""
    message: VerifyMessage | None = patiently(lambda: engine.request_verification(view))
    assert message
    while VerifyRun.objects.exists():
        if message is None:
            VerifyRun.objects.update(resend_after=None)
            (message,) = engine.rescue_verifications()
        message = engine.verify_slice(message)
    found: Any = ViewControl.objects.get(label=view._meta.label).verification
    assert isinstance(found, dict)
    return found


def patiently(work: Any) -> Any:
    """Try again after a deadlock, or when SQLite's one writer took too long."""
    for _attempt in range(ATTEMPTS - 1):
        with suppress(OperationalError):
            return work()
    return work()


def write_until(over: threading.Event, written: list[int]) -> None:
    chance, new = random.Random(5), 10_000
    while not over.is_set():
        order = Order.objects.filter(pk=chance.randint(1, ORDERS))
        new += 1
        try:
            match chance.randrange(6):
                case 0 | 1 | 2:
                    order.update(price=F("price") + 1)
                case 3:
                    order.update(customer_id=chance.randint(1, CUSTOMERS))
                case 4:
                    Customer.objects.filter(pk=chance.randint(1, CUSTOMERS)).update(
                        region_id=chance.randint(1, 3)
                    )
                case _:
                    Order.objects.create(
                        pk=new, customer_id=1 + new % CUSTOMERS, product_id="a", price=2, paid=True
                    )
                    Order.objects.filter(pk=new - 3, paid=True).delete()
        except DatabaseError:  # a deadlock, or SQLite's one writer
            continue
        written.append(new)
        time.sleep(PAUSE)


def refresh_until(over: threading.Event, view: type[Any]) -> None:
    while not over.is_set():
        try:
            inline.run_to_end(engine.request(view, force=True), stop=over.is_set)
            time.sleep(PAUSE)
        except DatabaseError:
            continue


@pytest.mark.parametrize("side", [0, 1])
def test_a_sample_reaches_the_last_key_of_source_and_view(
    monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    # given a source with many rows for each key, and a view that has other keys at its end
    monkeypatch.setattr(random, "choice", lambda sides: sides[side])
    monkeypatch.setattr(random, "randint", lambda _first, last: last)
    row_of(QUIET).delete()
    if side:
        VIEW.objects.create(customer_id=NOBODY, orders=1, total=1)
        Order.objects.filter(customer_id__gt=4).delete()
        tasks.maintain()
    # when the last range is drawn
    found = verified(sample=3)
    # then it has them
    assert counted(found) == ((0, 0, 1) if side else (1, 0, 0))


# What follows from it


def test_rows_that_differ_are_a_problem_until_a_repair(caplog: pytest.LogCaptureFixture) -> None:
    # given a wrong row
    plant()
    with caplog.at_level(logging.INFO, "matviews"):
        verified(requested_by="ann", origin=Origin.ADMIN)
    # then the log, the status and the health say so
    (record,) = (each for each in caplog.records if each.levelno == logging.ERROR)
    assert record.getMessage() == (
        f"rows differ from their source view={LABEL} rows_compared={CUSTOMERS + 1} missing=0 "
        f"differing=1 surplus=0 repaired=None pending=0 sums=None"
    )
    (status,) = engine.view_statuses([LABEL])
    assert (status.state, status.fault) == (ViewState.DIFFERS, ViewState.DIFFERS)
    assert (status.verification or {})["requested_by"] == "ann"
    assert "rows differ" in [each.kind for each in check_health().problems if each.view == LABEL]
    # and a sample that finds none does not change that
    since = control().differing["since"]
    row_of(QUIET).update(orders=F("orders") - 1000)
    verified(sample=3)
    counts = {"missing": 0, "differing": 1, "surplus": 0, "sums": 0}
    assert control().differing == {"since": since, **counts}
    # but a full verification does
    verified()
    assert control().differing is None
    # and so does a repair, which the first one that finds it again is not
    plant()
    verified()
    assert control().differing is not None
    assert verified(repair=True)["repaired"] == 1
    assert control().differing is None
    assert counted(verified()) == (0, 0, 0)


def test_a_verify_in_the_foreground_clears_it_but_never_sets_it() -> None:
    change(1)
    assert VIEW.verify().differing == 1
    assert control().differing is None
    plant()
    verified()
    assert control().differing is not None
    VIEW.verify(repair=True)
    assert control().differing is None


# Who runs it


def test_a_second_request_joins_and_a_wider_one_begins_again() -> None:
    first = engine.request_verification(LABEL, sample=5)
    assert engine.request_verification(LABEL, sample=5) is None
    assert engine.request_verification(LABEL, sample=3) is None
    wider = engine.request_verification(LABEL, repair=True, requested_by="ann")
    assert first
    assert wider
    assert (wider.run_id, wider.token) == (first.run_id, first.token + 1)
    kept = VerifyRun.objects.get()
    assert (kept.sample, kept.repair, kept.requested_by) == (None, True, "ann")
    assert engine.verify_slice(first) is None
    assert VerifyRun.objects.exists()
    assert engine.verify_slice(wider) is None
    assert not VerifyRun.objects.exists()


def test_a_message_that_comes_twice_is_obeyed_once() -> None:
    message = engine.request_verification(LABEL)
    assert message
    engine.verify_slice(message)
    VerifyRun.objects.all().delete()

    assert engine.verify_slice(message) is None


def test_it_goes_on_in_slices_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SLICE", -1.0)
    monkeypatch.setattr(key_parts, "KEYS_PER_RANGE", 4)
    plant(3)
    plant()
    message, slices = engine.request_verification(LABEL), 0
    while message:
        message, slices = engine.verify_slice(message), slices + 1

    found = control().verification
    assert slices >= 4
    assert (found["rows_compared"], counted(found)) == (CUSTOMERS + 1, (0, 2, 0))


def test_a_worker_that_dies_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a worker that died in a part: its lease runs
    class Killed(BaseException): ...

    def die(*_args: Any) -> Any:
        raise Killed

    message = engine.request_verification(LABEL)
    assert message
    with monkeypatch.context() as patch:
        patch.setattr(runs, "compare_without_pending", die)
        with pytest.raises(Killed):
            engine.verify_slice(message)
    (status,) = engine.view_statuses([LABEL])
    assert status.verifying
    assert status.verifying.running
    assert engine.rescue_verifications() == []
    # when the lease is over
    VerifyRun.objects.update(resend_after=F("resend_after") - LONG_AGO)
    (status,) = engine.view_statuses([LABEL])
    assert status.verifying
    assert not status.verifying.running
    # then another takes over, once
    (again,) = engine.rescue_verifications()
    assert engine.rescue_verifications() == []
    assert engine.verify_slice(again) is None
    assert control().verification["error"] == ""


def test_workers_that_die_at_the_same_rows_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    message = engine.request_verification(LABEL)
    assert message
    VerifyRun.objects.update(attempts=runs.MAX_ATTEMPTS)

    assert engine.verify_slice(message) is None

    assert control().verification["error"] == runs.KILLED
    assert not VerifyRun.objects.exists()
    (problem,) = [each for each in check_health().problems if each.kind == "unverified"]
    assert (problem.view, problem.error) == (LABEL, runs.KILLED)
    assert runs.KILLED not in problem.text
    verified()
    assert "unverified" not in [each.kind for each in check_health().problems]


def test_a_worker_that_was_frozen_stores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a worker that is frozen in its part until another has taken over and ended
    message = engine.request_verification(LABEL)
    assert message
    compared = vars(runs)["compare_without_pending"]

    def freeze(*args: Any) -> Any:
        monkeypatch.setattr(runs, "compare_without_pending", compared)
        assert engine.verify_slice(message._replace(token=message.token + 1)) is None
        plant()
        return compared(*args)

    monkeypatch.setattr(runs, "compare_without_pending", freeze)

    assert engine.verify_slice(message) is None

    assert counted(control().verification) == (0, 0, 0)


def test_an_error_that_may_pass_is_tried_again_and_another_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_args: Any) -> Any:
        raise OperationalError("gone")

    message = engine.request_verification(LABEL)
    assert message
    monkeypatch.setattr(runs, "compare_without_pending", fail)
    for _attempt in range(runs.MAX_ATTEMPTS):
        assert VerifyRun.objects.exists()
        engine.verify_slice(message)
        message = message._replace(token=message.token + 1)
    assert not VerifyRun.objects.exists()
    found: Any = control().verification
    assert found["error"].startswith("OperationalError")


def test_what_cannot_be_verified_is_refused_or_ends_with_its_error() -> None:
    with pytest.raises(InvalidRequest):
        engine.request_verification(LABEL, sample=0)
    run(Overall)
    message = engine.request_verification(Overall, sample=5)
    assert message
    engine.verify_slice(message)
    found: Any = ViewControl.objects.get(label=Overall._meta.label).verification
    assert "cannot be sampled" in found["error"]


def test_verifying_holds_no_lock_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a batch that runs between the two readings of one part
    waiting = changes.waiting_changes
    refreshed: list[str] = []

    def refresh(*args: Any) -> Any:
        if connection.vendor != "sqlite" and not refreshed:
            thread = in_another_connection(lambda: refreshed.append(run(VIEW).state))
            thread.join()
        return waiting(*args)

    monkeypatch.setattr(changes, "waiting_changes", refresh)
    change(1)
    plant()

    assert counted(verified()) == (0, 1, 0)
    assert refreshed == ([] if connection.vendor == "sqlite" else ["succeeded"])


# The tasks


def test_the_tasks_verify_and_maintenance_sends_again(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(
        tasks.verify_slice, "apply_async", lambda arguments, **_options: sent.append(arguments)
    )
    tasks.verify(LABEL)
    tasks.verify(LABEL)
    (first,) = sent
    VerifyRun.objects.update(resend_after=F("resend_after") - timedelta(days=1))
    verifications.rescue()
    assert sent == [first, first]
    tasks.verify_slice(*first)
    tasks.verify_slice(*first)
    assert sent == [first, first]
    assert control().verification["origin"] == Origin.SCHEDULE


def test_messages_go_to_the_queue_of_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    queues: list[str] = []
    monkeypatch.setattr(
        tasks.verify_slice, "apply_async", lambda _arguments, *, queue, **_: queues.append(queue)
    )
    monkeypatch.setattr(runs, "SLICE", -1.0)
    ViewControl.objects.filter(label=LABEL).update(queue="big")
    message = engine.request_verification(LABEL)
    assert message
    verifications.send([message])
    tasks.verify_slice(message.run_id, message.token)
    VerifyRun.objects.update(resend_after=None)
    verifications.rescue()

    assert queues == ["big"] * 3


def test_batches_that_a_repair_has_refused_are_sent_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(tasks, "dispatch", sent.append)
    for repair in (False, True):
        message = engine.request_verification(LABEL, repair=repair)
        assert message
        tasks.verify_slice(message.run_id, message.token)

    assert sent == [control().pk]


def test_messages_of_others_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    tasks.verify("no.Such")
    tasks.verify_slice("x", 1)
    assert [each.levelname for each in caplog.records] == ["WARNING", "ERROR"]


def test_a_parked_key_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plant()
    monkeypatch.setattr(comparison, "keys_left_out", lambda _view: {(QUIET,)})

    assert counted(verified()) == (0, 0, 0)


def test_only_changes_that_the_view_reads_are_pending() -> None:
    track_for(VIEW)
    plant()
    Order.objects.filter(customer_id=QUIET).update(slot=5)

    assert counted(verified()) == (0, 1, 0)


class TestWaiting:
    """As batches do, runs wait while the database is unwell; those of schedules in quiet hours."""

    @pytest.fixture
    def unwell(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.MATVIEWS = {"GOVERNOR_ACTIVE_SESSIONS": 10}
        monkeypatch.setattr(governor, "_load", lambda: Load(active_sessions=11))

    @pytest.fixture
    def quiet(self) -> None:
        now = engine.utc_now()
        hours = {"quiet_from": now - timedelta(hours=1), "quiet_until": now + timedelta(hours=1)}
        ViewControl.objects.filter(label=LABEL).update(
            **{name: at.time() for name, at in hours.items()}, quiet_zone="UTC"
        )

    def reason(self) -> str:
        (status,) = engine.view_statuses([LABEL])
        return str(status.verifying.wait or "") if status.verifying else ""

    @pytest.mark.usefixtures("unwell")
    def test_while_the_database_is_unwell_and_no_longer_than_the_longest_wait(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        message = engine.request_verification(LABEL)
        assert message
        assert engine.verify_slice(message) is None
        assert self.reason() == "11 active sessions, of at most 10"
        assert engine.rescue_verifications() == []

        travel(timedelta(minutes=29))
        (again,) = engine.rescue_verifications()
        assert engine.verify_slice(again) is None
        assert VerifyRun.objects.get().started_at is None
        travel(timedelta(minutes=2))
        (again,) = engine.rescue_verifications()
        assert engine.verify_slice(again) is None

        assert control().verification["error"] == ""
        assert "verification proceeds, it has waited long enough" in caplog.text

    def test_a_run_under_way_waits_between_its_slices(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runs, "SLICE", -1)
        message = engine.request_verification(LABEL)
        assert message
        following = engine.verify_slice(message)
        assert following
        settings.MATVIEWS = {"GOVERNOR_ACTIVE_SESSIONS": 10}
        with monkeypatch.context() as patch:
            patch.setattr(governor, "_load", lambda: Load(active_sessions=11))
            assert engine.verify_slice(following) is None
        assert self.reason()
        monkeypatch.setattr(governor, "_load", Load)
        travel(timedelta(minutes=1))

        (message,) = engine.rescue_verifications()
        while message := engine.verify_slice(message):
            assert self.reason() == ""
        assert control().verification["rows_compared"] == CUSTOMERS + 1

    @pytest.mark.usefixtures("quiet")
    def test_in_quiet_hours_that_of_a_schedule_waits_until_a_person_requests_it(self) -> None:
        message = engine.request_verification(LABEL, origin=Origin.SCHEDULE)
        assert message
        assert engine.verify_slice(message) is None
        assert self.reason().startswith("quiet hours: ")

        joined = engine.request_verification(LABEL, origin=Origin.ADMIN, requested_by="ann")
        assert joined
        assert engine.verify_slice(joined) is None
        assert control().verification["requested_by"] == "ann"

    @pytest.mark.usefixtures("quiet")
    def test_after_them_it_goes_on(self) -> None:
        message = engine.request_verification(LABEL, origin=Origin.SCHEDULE)
        assert message
        assert engine.verify_slice(message) is None
        ViewControl.objects.filter(label=LABEL).update(quiet_from=None, quiet_until=None)
        travel(timedelta(minutes=10, seconds=1))

        (again,) = engine.rescue_verifications()
        assert engine.verify_slice(again) is None
        assert control().verification["error"] == ""
