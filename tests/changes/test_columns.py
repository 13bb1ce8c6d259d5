"""A change concerns the views that read a changed column; where that is not known, all views."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, models, transaction
from django.db.models import Count, F, QuerySet, Sum
from django.db.models.signals import post_migrate

from matviews import changes, engine, tasks, untracked
from matviews.changes.tracking_spec import union
from matviews.databases import triggers_of
from matviews.databases.trigger_spec import TriggerSpec
from matviews.models import Change, TrackedTable, ViewChange, ViewControl
from tests.helpers.engine import without_sqlite
from tests.helpers.tables import derived_view, execute, key, made, model, refreshed
from tests.helpers.view_classes import run

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

TABLE = "made_rows"
MANY = 1_000


class Tables:
    """Rows of a slot each, a view of their `a` and one of their `b`."""

    def __init__(self) -> None:
        numbers = {name: models.IntegerField(null=True) for name in ("slot", "a", "b", "c")}
        self.rows = model("Rows", meta={"db_table": TABLE}, **numbers)  # type: ignore[arg-type]
        self.of_a, self.of_b = self.view("OfA", "a"), self.view("OfB", "b")

    def view(self, name: str, column: str, **options: Any) -> type[Any]:
        def source(cls: type[Any]) -> QuerySet[Any, Any]:
            slots: QuerySet[Any, Any] = self.rows.objects.values(ref=F("slot"))
            return slots.annotate(n=Count("pk"), total=Sum(cls.column))  # type: ignore[no-any-return]

        return derived_view(
            source, name=name, column=column, options=options, ref=key(),
            n=models.IntegerField(), total=models.IntegerField(null=True),
        )  # fmt: skip

    def fill(self, count: int) -> None:
        self.rows.objects.bulk_create(
            self.rows(pk=pk, slot=pk, a=1, b=1, c=1) for pk in range(1, count + 1)
        )

    def built(self, *views: type[Any]) -> None:
        """Bring views to where nothing is left to do."""
        for view in 2 * (views or (self.of_a, self.of_b)):
            refreshed(view)
            assert view.verify().equal


@pytest.fixture
def tables() -> Iterator[Tables]:
    found = Tables()
    with made(found.rows, found.of_a, found.of_b):
        assert changes.install(engine.alias()) == {}
        found.fill(5)
        found.built()
        yield found
        changes.remove(engine.alias())


def queued(view: type[Any]) -> int:
    """Move the log, and count what is queued for a view."""
    engine.move_log()
    return ViewChange.objects.filter(view__label=view._meta.label).count()


def logged() -> list[Any]:
    """The changed columns of each entry."""
    return list(Change.objects.order_by("pk").values_list("changed", flat=True))


def test_an_update_names_the_columns_that_it_changed(tables: Tables) -> None:
    rows = tables.rows.objects
    for values in ({"a": 1}, {"a": 2}, {"b": 3, "a": 2}, {"c": 4}, {"a": None, "b": None, "c": 1}):
        rows.filter(pk=1).update(**values)
    rows.filter(pk=2).update(slot=7)

    assert [columns for columns in logged() if columns != ["slot"]] == [["a"], ["b"], ["a", "b"]]
    assert ["slot"] in logged()


def test_rows_that_come_and_go_may_change_any_column(tables: Tables) -> None:
    tables.rows.objects.create(pk=9, slot=1)
    tables.rows.objects.filter(pk=9).delete()
    with untracked(tables.rows):
        tables.rows.objects.filter(pk=1).update(b=9)

    assert logged() == [None] * 3
    assert Change.objects.filter(changed__isnull=True).count() == 3  # not a null of JSON
    assert queued(tables.of_a) > 0
    tables.built()


def test_a_column_of_another_view_costs_nothing(tables: Tables) -> None:
    tables.rows.objects.filter(slot__gt=2).update(b=7)

    # in the log it is known
    assert tables.of_a.is_fresh()
    assert not run(tables.of_a).runs.exists()
    assert not ViewChange.objects.filter(view__label="shapes.OfA").exists()
    pending = changes.oldest_waiting()
    assert ViewControl.objects.get(label="shapes.OfB").pk in pending
    assert ViewControl.objects.get(label="shapes.OfA").pk not in pending
    # and in the queues
    assert queued(tables.of_a) == 0
    assert queued(tables.of_b) > 0
    tables.built()


def test_one_statement_that_swaps_values_between_rows_changes_their_column(tables: Tables) -> None:
    """Each column has the same values as before."""
    tables.rows.objects.filter(pk=1).update(a=2, b=2)
    tables.built()

    tables.rows.objects.filter(pk__lte=2).update(a=3 - F("a"))

    assert {column for columns in logged() for column in columns} == {"a"}
    tables.built()


def test_equal_entries_of_different_columns_reach_each_its_view(tables: Tables) -> None:
    tables.rows.objects.filter(pk=1).update(a=5)
    tables.rows.objects.filter(pk=1).update(b=5)
    tables.rows.objects.filter(pk=1).update(b=6)

    assert queued(tables.of_a) == queued(tables.of_b) == 1  # equal entries are merged
    tables.built()


def test_a_view_that_reads_all_columns_gets_every_change(tables: Tables) -> None:
    of_all = tables.view("OfAll", "a", depends_on={tables.rows: "slot"})
    with made(of_all):
        changes.install(engine.alias())
        tables.built(of_all, tables.of_a, tables.of_b)

        tables.rows.objects.filter(pk=1).update(c=8)

        assert set(map(tuple, logged())) == {()}
        assert [queued(view) > 0 for view in (of_all, tables.of_a, tables.of_b)] == [1, 0, 0]
        tables.built(of_all)


def test_nothing_is_recorded_where_it_makes_no_difference(tables: Tables) -> None:
    tables.of_b.column = "a"
    changes.install(engine.alias())
    tables.built()

    tables.rows.objects.filter(pk=1).update(a=3)

    assert set(logged()) == {None}
    assert TrackedTable.objects.get().recorded == []


def test_a_view_that_reads_another_column_is_untracked_until_that_is_recorded(
    tables: Tables,
) -> None:
    """The triggers stay as they are: the other view reads that column."""
    of_both = tables.view("OfBoth", "a")
    with made(of_both):
        of_both.source = classmethod(
            lambda cls: tables.rows.objects.values(ref=F("slot")).annotate(
                n=Count("pk"), total=Sum(F("a") + F("b"))
            )
        )
        changes.install(engine.alias())
        tables.built(tables.of_a, tables.of_b, of_both)
        before = TrackedTable.objects.get().triggers
        tables.of_a.column = "b"

        reasons = {run.full_refresh_reason for run in run(tables.of_a).runs.all()}
        assert reasons == {f"no triggers log all changes of {TABLE}"}
        assert list(changes.find_problems(engine.alias())) == [
            f"shapes.OfA reads columns of {TABLE} other than those recorded."
        ]
        tables.rows.objects.update(b=7)
        assert queued(tables.of_a) == 0
        changes.install(engine.alias())

        assert list(changes.find_problems(engine.alias())) == []
        assert TrackedTable.objects.get().triggers == before
        assert queued(tables.of_a) == 1  # a full refresh
        tables.built(tables.of_a, tables.of_b, of_both)
        tables.rows.objects.filter(pk=1).update(b=8)
        assert queued(tables.of_a) > 0


@pytest.mark.only_on("sqlite", reason="only SQLite leaves an entry out")
def test_an_entry_of_one_column_does_not_stand_for_another() -> None:
    """Of a table that leads to no key."""
    dialect, spec = (
        triggers_of(engine.alias()),
        TriggerSpec(frozenset({"a", "b"}), frozenset(), frozenset({"a", "b"})),
    )
    execute(f"CREATE TABLE {TABLE} (id integer PRIMARY KEY, a integer, b integer)")
    try:
        dialect.execute(dialect.create(TABLE, spec))
        execute(f"INSERT INTO {TABLE} VALUES (1, 1, 1)")
        Change.objects.all().delete()
        for column in ("a", "b", "a", "b"):
            execute(f"UPDATE {TABLE} SET {column} = {column} + 1")
        execute(f"DELETE FROM {TABLE}", f"INSERT INTO {TABLE} VALUES (1, 1, 1)")
        execute(f"UPDATE {TABLE} SET a = 9")
        assert logged() == [["a"], ["b"], None]
    finally:
        execute(f"DROP TABLE {TABLE}")


def unrecorded(specs: Any) -> TriggerSpec:
    """What triggers logged before entries named columns."""
    return replace(union(specs), recorded=frozenset())


@pytest.fixture
def old(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> Tables:
    """The triggers are those of the version before, and the views are built with them."""
    with monkeypatch.context() as patch:
        patch.setattr("matviews.changes.triggers.union", unrecorded)
        assert changes.install(engine.alias()) == {}
    tables.rows.objects.all().delete()
    tables.fill(MANY)
    tables.built()
    assert not Change.objects.exists()
    return tables


def updated(rows: type[Any], column: str) -> None:
    """An entry of each row."""
    with transaction.atomic():
        for pk in range(1, MANY + 1):
            rows.objects.filter(pk=pk).update(**{column: -pk})


def migrated() -> None:
    sender = apps.get_app_config("matviews")
    post_migrate.send(sender, app_config=sender, using=engine.alias(), plan=[])


class TestUpgrade:
    """From the version before, whose entries name no columns."""

    def test_waiting_entries_concern_every_view(self, old: Tables) -> None:
        updated(old.rows, "a")

        migrated()

        assert logged() == [None] * MANY
        # Both views are to compare all keys, so they need no copies.
        assert queued(old.of_a) == queued(old.of_b) == 1
        old.built()
        old.rows.objects.filter(pk=1).update(a=0)
        assert (queued(old.of_a), queued(old.of_b)) == (1, 0)

    def test_they_lead_to_keys(self, tables: Tables) -> None:
        tables.rows.objects.all().delete()
        tables.fill(MANY)
        tables.built()
        updated(tables.rows, "a")
        Change.objects.update(changed=None)

        assert queued(tables.of_a) == queued(tables.of_b) == MANY
        for view in (tables.of_a, tables.of_b):
            refresh = run(view)
            assert not refresh.runs.filter(dirty_after=None).exists()
            assert view.verify().equal

    @without_sqlite
    @pytest.mark.parametrize("commits", [True, False])
    def test_a_transaction_that_is_open_across_migrate(
        self, old: Tables, commits: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("matviews.changes.table_locks.PAUSE_SECONDS", 0.05)
        other = connection.copy()
        other.set_autocommit(False)
        try:
            with other.cursor() as cursor:
                for pk in range(1, MANY // 2):
                    cursor.execute(f"UPDATE {TABLE} SET a = -%s WHERE id = %s", [pk, pk])
                migrated()
                old.rows.objects.filter(pk=MANY).update(b=-1)
                old.built()
                for pk in range(MANY // 2, MANY):
                    cursor.execute(f"UPDATE {TABLE} SET b = -%s WHERE id = %s", [pk, pk])
            (other.commit if commits else other.rollback)()
        finally:
            other.close()

        before = logged()
        tasks.maintain()

        assert before == [None] * (MANY - 1 if commits else 0)
        assert TrackedTable.objects.get().recorded
        old.built()
        old.rows.objects.filter(pk=1).update(a=0)
        assert (queued(old.of_a), queued(old.of_b)) == (1, 0)
