"""Verifying the sums of additive views: with what is logged, they are what the source says."""

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models import Count, F, Sum

from matviews import engine, mark_dirty, untracked
from matviews.engine.batches.sums import distrust_sums
from matviews.engine.verification import runs
from matviews.engine.verification import sums as verification_sums
from matviews.models import VerifyRun, ViewControl, ViewSums
from matviews.states import ViewState
from tests.helpers.additive_views import Sales
from tests.helpers.joined_views import Shops
from tests.helpers.roles import as_role, database_role, may_work
from tests.helpers.sum_histories import forget_values
from tests.helpers.sums import kept_of, sums_differ
from tests.helpers.tables import execute, refreshed
from tests.management.test_command import command

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def sales(transactional_db: None, alone: None) -> Iterator[Sales]:
    """A view of three shops, refreshed."""
    with Sales().tracked() as made:
        made.add((1, 2, "1.10"), (1, None, None), (2, 3, "0.30"), (None, 1, "1"), (3, 5, "2"))
        refreshed(made.View)
        yield made


def verified(view: type[Any], **options: Any) -> dict[str, Any]:
    """Verify in the background, slice by slice, and return what is stored."""
    message = engine.request_verification(view, **options)
    while message:
        message = engine.verify_slice(message)
    found: dict[str, Any] = control(view).verification
    assert found["error"] == ""
    return found


def control(view: type[Any]) -> Any:
    return ViewControl.objects.get(label=view._meta.label)


def spoil(view: type[Any]) -> None:
    """The sums of one group are wrong; no row is."""
    execute(f"UPDATE {kept_of(view).table} SET matviews_rows = matviews_rows + 1 WHERE 1 = 1")


def state(view: type[Any]) -> ViewState:
    [status] = engine.view_statuses([view._meta.label])
    return status.state


def test_wrong_sums_are_a_problem_until_a_verification_finds_none(
    sales: Sales, caplog: pytest.LogCaptureFixture
) -> None:
    assert verified(sales.View)["sums"] == 0
    spoil(sales.View)
    with caplog.at_level("ERROR"):
        assert verified(sales.View)["sums"] == 3

    assert "sums of an additive view differ from its source" in caplog.text
    assert control(sales.View).differing["sums"] == 3
    assert state(sales.View) is ViewState.DIFFERS
    assert kept_of(sales.View).drain_number == ViewSums.STALE

    sales.add((1, 7, None))
    refreshed(sales.View)
    assert verified(sales.View)["sums"] == 0
    assert control(sales.View).differing is None
    assert state(sales.View) is not ViewState.DIFFERS
    assert engine.verify(sales.View).sums == 0


def test_a_repair_has_them_recomputed_and_ends_the_problem(sales: Sales) -> None:
    spoil(sales.View)
    assert verified(sales.View)["sums"] == 3
    refreshed(sales.View)
    spoil(sales.View) if kept_of(sales.View).drain_number >= 0 else None

    found = verified(sales.View, repair=True)

    assert found["repaired"] == 0
    assert control(sales.View).differing is None
    sales.add((1, 7, None))
    refreshed(sales.View)
    assert sums_differ(sales.View) == 0
    assert engine.verify(sales.View).equal


class Killed(BaseException):
    """The worker is gone, whatever it has done."""


def killed(*_args: object) -> None:
    raise Killed


def rescued() -> None:
    """Others go on with what a dead worker has left."""
    VerifyRun.objects.update(resend_after=None)
    for message in engine.rescue_verifications():
        left: Any = message
        while left:
            left = engine.verify_slice(left)


@pytest.mark.parametrize("where", ["_record_sums", "_parts"])
def test_a_worker_that_is_killed_leaves_no_wrong_sums_unsaid(
    sales: Sales, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is stored that sums are wrong, in their transaction, and after that."""
    spoil(sales.View)
    message = engine.request_verification(sales.View)
    assert message
    with monkeypatch.context() as patch:
        patch.setattr(runs._Slice, where, killed)
        with pytest.raises(Killed):
            engine.verify_slice(message)
    assert (kept_of(sales.View).drain_number >= 0) == (where == "_record_sums")
    rescued()

    assert control(sales.View).verification["sums"] == 3
    assert control(sales.View).differing["sums"] == 3
    assert state(sales.View) is ViewState.DIFFERS
    assert kept_of(sales.View).drain_number == ViewSums.STALE


def test_a_run_that_begins_again_keeps_that_sums_were_wrong(
    sales: Sales, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(sales.View)
    message = engine.request_verification(sales.View)
    assert message
    with monkeypatch.context() as patch:
        patch.setattr(runs._Slice, "_parts", killed)
        with pytest.raises(Killed):
            engine.verify_slice(message)

    assert verified(sales.View, repair=True)["sums"] == 3


def test_a_run_that_another_worker_takes_meanwhile_leaves_the_sums_to_it(
    sales: Sales, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its comparison took longer than the lease."""
    spoil(sales.View)
    message = engine.request_verification(sales.View)
    assert message

    def late(view_id: int) -> None:
        VerifyRun.objects.update(token=F("token") + 1)
        distrust_sums(view_id)

    with monkeypatch.context() as patch:
        patch.setattr(verification_sums, "distrust_sums", late)
        engine.verify_slice(message)
    assert kept_of(sales.View).drain_number >= 0
    rescued()

    assert control(sales.View).differing["sums"] == 3


def test_what_waits_in_the_value_log_counts(sales: Sales) -> None:
    sales.add((1, 7, None), (4, 1, None))
    sales.Sale._base_manager.filter(shop=2).update(shop=3)
    sales.Sale._base_manager.filter(shop=3, qty=5).delete()

    assert verified(sales.View)["sums"] == 0
    assert engine.verify(sales.View, leave_out_pending=True).sums == 0

    execute(f"DELETE FROM {kept_of(sales.View).log}")
    assert verified(sales.View)["sums"]


@pytest.mark.only_on("postgres", reason="others have no such numbers")
@pytest.mark.parametrize("of_source", [None, "NaN"])
@pytest.mark.parametrize("kept", ["NaN", "Infinity", "7"])
def test_what_is_no_number_differs_from_one(alone: None, kept: str, of_source: str | None) -> None:
    def source(rows: Any) -> Any:
        return rows.values("shop").annotate(sales=Count("pk"), money=Sum("price"))

    with Sales(source).tracked() as sales:
        sales.add((1, 2, "7"), (2, 2, "1"))
        refreshed(sales.View)
        if of_source:
            execute(f"UPDATE shapes_sale SET price = '{of_source}' WHERE shop = 1")
            assert sums_differ(sales.View) == 0, "it is logged, and suspect"
            execute(f"DELETE FROM {kept_of(sales.View).log}")
        execute(f"UPDATE {kept_of(sales.View).table} SET matviews_sum0 = '{kept}' WHERE shop = 1")

        assert sums_differ(sales.View) == (kept != (of_source or "7"))


def test_lookups_and_what_waits_in_their_logs_count(alone: None) -> None:
    with Shops().tracked() as shops:
        shops.fill()
        refreshed(shops.View)
        shops.Customer._base_manager.filter(rank=1).update(rank=5)
        shops.Region._base_manager.filter(zone=1).update(zone=7)
        assert verified(shops.View)["sums"] == 0

        [_own, *others] = kept_of(shops.View).logs
        for each in others:
            execute(f"DELETE FROM {each}")
        assert verified(shops.View)["sums"]


def test_while_not_all_is_logged_by_its_values_they_are_not_compared(sales: Sales) -> None:
    def load() -> None:
        with untracked(sales.Sale):
            sales.Sale._base_manager.update(qty=4)

    for change in (
        lambda: mark_dirty(sales.View),
        lambda: mark_dirty(sales.View, [1]),
        load,
        lambda: forget_values(kept_of(sales.View).log),
    ):
        change()
        assert verified(sales.View)["sums"] is None
        refreshed(sales.View)
        sales.add((1, 1, None))
        refreshed(sales.View)
        assert verified(sales.View)["sums"] == 0


def test_neither_with_a_sample_nor_in_a_transaction(sales: Sales) -> None:
    spoil(sales.View)

    assert verified(sales.View, sample=1)["sums"] is None
    assert engine.verify(sales.View, sample=1).sums is None
    with transaction.atomic():
        assert engine.verify(sales.View).sums is None
    assert kept_of(sales.View).drain_number >= 0


def test_what_cannot_be_compared_is_logged_and_fails_nothing(
    sales: Sales, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object) -> int:
        raise DatabaseError("too large")

    monkeypatch.setattr(verification_sums, "count_differing", fail)
    with caplog.at_level("ERROR"):
        assert verified(sales.View)["sums"] is None

    assert "cannot be verified" in caplog.text


@pytest.mark.only_on("postgres", reason="MariaDB shows others no triggers, SQLite has no roles")
def test_a_role_that_may_not_read_them_verifies_the_rows(
    alone: None, caplog: pytest.LogCaptureFixture
) -> None:
    with Shops().tracked() as shops, database_role("verifier") as role:
        shops.fill()
        refreshed(shops.View)
        sources = (each._meta.db_table for each in shops.sources)
        may_work(role, *sources, views=(shops.View._meta.db_table,))
        shops.View._base_manager.filter(zone=1).update(sales=99)
        with as_role(role), caplog.at_level("ERROR"):
            found = verified(shops.View)
            now = engine.verify(shops.View)

    assert (found["sums"], found["differing"]) == (None, 1)
    assert (now.sums, now.differing) == (None, 1)
    assert caplog.text.count("cannot be verified") == 2


def test_the_command_says_so_and_fails(sales: Sales) -> None:
    spoil(sales.View)

    ran = command("--verify")
    assert ran.status == 1
    assert "the sums of 3 groups differ from the source" in ran.out
    assert command("--verify").status == 0, "they are to be recomputed"

    sales.add((1, 1, None))
    refreshed(sales.View)
    spoil(sales.View)
    assert command("--verify", "--repair").status == 0


@pytest.mark.only_on("postgres", "mariadb", reason="SQLite has one writer")
def test_writers_and_refreshes_make_no_difference(sales: Sales) -> None:
    over = threading.Event()
    written: list[int] = []
    table = sales.Sale._meta.db_table

    def write() -> None:
        with closing(connection.copy()) as other, other.cursor() as cursor:
            while not over.is_set():
                number = len(written)
                cursor.execute(
                    f"INSERT INTO {table} (shop, qty, kind, note, owner) VALUES (%s, 1, 1, '', 0)",
                    [number % 5],
                )
                cursor.execute(
                    f"UPDATE {table} SET shop = %s WHERE id > %s AND id %% 7 = 0",
                    [number % 3, number - 20],
                )
                written.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = []
        for number in range(20):
            found.append(verified(sales.View)["sums"])
            if number % 4 == 0:
                refreshed(sales.View)
    finally:
        over.set()
        writer.join()

    assert len(written) > 20
    assert set(found) == {0}
