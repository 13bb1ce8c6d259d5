"""Random histories of additive views: no change is counted twice, or not at all.

Others write in transactions of their own, which end by a commit or a rollback between any two
statements of a refresh, or after it. The refresh may be killed before any statement. Whenever it is
over, the sums with what is logged are as the source, and so is the view once nobody writes.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import pytest
from django.db import connection
from django.db.models import Q
from hypothesis import HealthCheck, given, note, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st

from matviews import engine, untracked
from matviews.databases.keys import Key
from matviews.engine.batches import sums as engine_sums
from matviews.queryset import GroupSums, add
from tests.helpers.additive_views import Sales, counted, extremes
from tests.helpers.current import differences_now
from tests.helpers.state_machines import FOUND, refreshed_despite
from tests.helpers.sums import kept_of, sums_differ
from tests.histories.conftest import RunRandom

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    # Who is killed closes nothing, nor do those who are only as good as killed.
    pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning"),
]

WRITERS = 0 if connection.vendor == "sqlite" else 2  # SQLite has one at a time
SHOPS, NUMBERS = st.sampled_from([None, 1, 2, 3]), st.sampled_from([None, 0, 1, 2, 5, -3])
INSERT = "INSERT INTO shapes_sale (shop, qty, kind, note, owner) VALUES (%s, %s, %s, '', {owner})"
UPDATE = "UPDATE shapes_sale SET {} = %s WHERE owner = {{owner}} AND id %% 4 = %s"
DELETE = "DELETE FROM shapes_sale WHERE owner = {owner} AND id %% 4 = %s"
Write = tuple[str, tuple[Any, ...]]


def _of(sql: str, *chosen: st.SearchStrategy[Any]) -> st.SearchStrategy[Write]:
    return st.tuples(st.just(sql), st.tuples(*chosen))


PARTS, KINDS = st.integers(0, 3), st.sampled_from([1, 2, 9])
CODES = st.integers(1, 3)
INTO = "INTO shapes_sale (shop, qty, kind, code, note, owner) VALUES (%s, %s, %s, %s, '', {owner})"
#: Only the triggers of SQLite do not say what was replaced.
REPLACEMENTS = [
    _of(f"{verb} {INTO}", SHOPS, NUMBERS, KINDS, CODES)
    for verb in ("REPLACE", "INSERT OR IGNORE")
    if connection.vendor == "sqlite"
]
WRITES: st.SearchStrategy[Write] = st.one_of(
    _of(INSERT, SHOPS, NUMBERS, KINDS),
    _of(INSERT, SHOPS, NUMBERS, KINDS),
    _of(UPDATE.format("qty"), NUMBERS, PARTS),
    _of(UPDATE.format("shop"), SHOPS, PARTS),
    _of(UPDATE.format("kind"), KINDS, PARTS),
    _of(UPDATE.format("note"), st.sampled_from("ab"), PARTS),
    _of(DELETE, PARTS),
    *REPLACEMENTS,
)
#: What a writer writes, how its transaction ends, and before which statement of the refresh
#: on the sums or the log; or in a later round.
TURNS = st.tuples(
    st.lists(WRITES, min_size=1, max_size=3),
    st.sampled_from(["COMMIT", "COMMIT", "ROLLBACK"]),
    st.integers(1, 6) | st.none(),
)
BESIDES = st.sampled_from(["", "", "", "", "full", "keys", "trim", "untracked", "incomplete"])
ROUNDS = st.lists(
    st.tuples(st.lists(TURNS, min_size=3, max_size=3), BESIDES, st.none() | st.integers(1, 60)),
    min_size=1,
    max_size=6,
)


def _execute(cursor: Any, sql: str, params: tuple[Any, ...]) -> None:
    """Row by row on MariaDB and MySQL, where a scan would wait for the rows of others."""
    if connection.vendor != "mysql" or sql.startswith("INSERT"):
        cursor.execute(sql, params)
        return
    change, condition = sql.split(" WHERE ")
    *values, part = params
    cursor.execute(f"SELECT id FROM shapes_sale WHERE {condition}", [part])
    for (pk,) in cursor.fetchall():
        cursor.execute(f"{change} WHERE id = %s", [*values, pk])


class Writer:
    """Somebody who writes to sales of its own, so that nobody waits for anybody."""

    def __init__(self, owner: int, database: Any) -> None:
        self.owner, self.cursor, self.open = owner, database.cursor(), False
        if connection.vendor == "mysql":
            self.cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def write(self, writes: Sequence[Write]) -> None:
        if not self.open:
            self.cursor.execute("BEGIN")
            self.open = True
        for sql, params in writes:
            note(f"writer {self.owner}: {sql} {params}")
            _execute(self.cursor, sql.format(owner=self.owner), params)

    def end(self, how: str) -> None:
        if self.open:
            note(f"writer {self.owner}: {how}")
            self.cursor.execute(how)
            self.open = False


@contextmanager
def _ending(writers: dict[int, list[tuple[Writer, str]]]) -> Iterator[None]:
    """Transactions end before a statement on the sums or the value log, by its number."""
    number = 0

    def count(execute: Any, sql: str, *arguments: Any) -> Any:
        nonlocal number
        if "matviews_sums_" in sql or "matviews_values_" in sql:
            number += 1
            for writer, how in writers.pop(number, ()):
                writer.end(how)
        return execute(sql, *arguments)

    with connection.execute_wrapper(count):
        yield


def _histories(sales: Sales, examples: int, **options: Any) -> None:
    """So many histories, each from an empty table."""

    @settings(
        max_examples=examples, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), **options,
    )  # fmt: skip
    @given(rounds=ROUNDS)
    def history(rounds: list[Any]) -> None:
        sales.Sale._base_manager.all().delete()
        with ExitStack() as stack:
            others: list[Any] = [
                stack.enter_context(closing(connection.copy())) for _ in range(WRITERS)
            ]
            writers = [Writer(owner, each) for owner, each in enumerate(others, 1)]
            for turns, besides, kill in rounds:
                _round(sales, writers, turns, besides, kill)
            for writer in writers:
                writer.end("COMMIT")
        refreshed_despite(None, sales.View)
        assert engine.verify(sales.View).equal
        assert sums_differ(sales.View) == 0

    refreshed_despite(None, sales.View)
    history()


def _round(
    sales: Sales, writers: list[Writer], turns: list[Any], besides: str, kill: int | None
) -> None:
    [(own, _end, _when), *others] = turns
    with connection.cursor() as cursor:
        for sql, params in own:
            note(f"{sql} {params}")
            _execute(cursor, sql.format(owner=0), params)
    ends: dict[int, list[tuple[Writer, str]]] = {}
    for writer, (writes, how, when) in zip(writers, others, strict=False):
        writer.write(writes)
        if when is not None:
            ends.setdefault(when, []).append((writer, how))
    note(f"besides: {besides}")
    _do(sales, besides)
    _read(sales)
    with _ending(ends):
        refreshed_despite(kill, sales.View, killed=lambda: _read(sales))
    for writer, how in (each for left in ends.values() for each in left):
        writer.end(how)
    if kept_of(sales.View).drain_number >= 0:
        assert sums_differ(sales.View) == 0


def _read(sales: Sales) -> None:
    assert differences_now(sales.View) == []


def _do(sales: Sales, besides: str) -> None:
    kept = kept_of(sales.View)
    if besides == "full":
        engine.mark_dirty(sales.View)
    elif besides == "keys":
        engine.mark_dirty(sales.View, [1, 2])
    elif besides == "trim":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_sums, "MAX_ENTRIES", 0)
            engine.trim_value_logs()
    elif besides == "untracked":
        with untracked(sales.Sale):
            sales.Sale._base_manager.filter(owner=0).update(qty=4)
    elif besides == "incomplete":
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {kept.log} (matviews_weight) VALUES (NULL)")


def hiding(rows: Any) -> Any:
    """Groups come and go with their condition, too."""
    return counted(rows).filter(Q(sales__gt=1) | Q(total__lt=0))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "source",
    [pytest.param(counted, marks=pytest.mark.long), hiding, extremes],
    ids=["all", "some", "extremes"],
)
def test_nothing_is_counted_twice_or_lost(run_random: RunRandom, source: Any) -> None:
    with Sales(source).tracked() as sales:
        run_random(partial(_histories, sales), long=10_000)


def _not_deleted(sums: GroupSums, log: str, table: str, recomputed: Collection[Key] = ()) -> Any:
    """The entries are added, and are still there for the next batch."""
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMPORARY TABLE kept_entries AS SELECT * FROM {log}")
        cut = add(sums, log, table, recomputed)
        cursor.execute(f"INSERT INTO {log} SELECT * FROM kept_entries")
        cursor.execute("DROP TABLE kept_entries")
    return cut


def _deleted_later(sums: GroupSums, log: str, table: str, recomputed: Collection[Key] = ()) -> Any:
    """What commits while the entries are added is deleted with them."""
    cut = add(sums, log, table, recomputed)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.execute(f"DELETE FROM {log}")
    return cut


def _built_in_two(sums: GroupSums, log: str, table: str) -> None:
    """The sums are of one snapshot, and the entries that are deleted of another."""
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {table}")
        totals = sums.totals()
        columns = ", ".join(sums.columns.all)
        cursor.execute(f"INSERT INTO {table} ({columns}) {totals.text}", totals.params)
        cursor.execute(f"DELETE FROM {log}")


def _recomputed_in_two(
    sums: GroupSums, log: str, table: str, recomputed: Collection[Key] = ()
) -> Any:
    """Groups are recomputed from a later snapshot than that of the entries."""
    cut = add(sums, log, table)
    if recomputed:
        among = sums.among(sums.keys(recomputed))
        totals, columns = sums.totals(within=sums.keys(recomputed)), ", ".join(sums.columns.all)
        with connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM {table} WHERE {among.text}", among.params)
            cursor.execute(f"INSERT INTO {table} ({columns}) {totals.text}", totals.params)
    return cut


@pytest.mark.finds_fault
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param("add", _not_deleted, id="not deleted"),
        pytest.param("add", _deleted_later, id="deleted later", marks=pytest.mark.long),
        pytest.param("build", _built_in_two, id="built in two", marks=pytest.mark.long),
        pytest.param("add", _recomputed_in_two, id="recomputed in two"),
    ],
)
def test_the_histories_find_a_fault(name: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault is not _not_deleted and not WRITERS:
        pytest.skip("nobody else can commit in between")
    monkeypatch.setattr(engine_sums, name, fault)

    with Sales(extremes).tracked() as sales, pytest.raises(FOUND):
        _histories(
            sales, 500, phases=[Stage.generate], derandomize=True, report_multiple_bugs=False
        )
