"""Read-only views: what anything but a batch writes is restored by the next refresh."""

# ruff: noqa: N806 - variables that are models

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, models, transaction
from django.db.models import Count, F, Value

from benchmarks.statements import statements as counted
from matviews import changes, checks, engine, untracked
from matviews.databases import triggers_of
from matviews.databases.base.triggers import digest
from matviews.models import Change, LogSecret, TrackedTable, ViewChange
from matviews.registry import registry
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.engine import held_open, in_another_connection, without_sqlite
from tests.helpers.tables import alone, derived_view, execute, made, model, refreshed

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]
VENDOR = connection.vendor

FOREIGN = "rows were written outside of batches, they are restored now"
PHASE_STATEMENTS = 3  # that a phase of a read-only view takes more


class Guarded:
    """A source with a key and a number, a read-only view of it, and perhaps one that reads that.

    Args:
        staged: whether a refresh needs a staging table and is always full.
        read: whether the other view is there.
        options: of the view.
    """

    def __init__(self, *, staged: bool = False, read: bool = False, **options: Any) -> None:
        self.Row = row = model(
            "Row", k=models.BigIntegerField(unique=True), n=models.IntegerField()
        )
        until = 1_000 if staged else None

        def source(_cls: type[Any]) -> Any:
            rows = row.objects.order_by("k") if staged else row.objects.all()
            return rows.values(ref=F("k"), total=F("n"))[:until]

        self.View = view = derived_view(
            source,
            options={"read_only": True, **options},
            ref=models.BigIntegerField(unique=True),
            total=models.IntegerField(),
            note=models.CharField(max_length=20, null=True),
        )
        self.views = [view]
        if read:
            self.views.append(
                derived_view(
                    lambda cls: view.objects.values("total").annotate(count=Count("pk")),
                    name="Reader",
                    key=["total"],
                    total=models.IntegerField(unique=True),
                    count=models.IntegerField(),
                )
            )

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Three rows, refreshed, and nothing pending."""
        with made(self.Row, *self.views):
            self.Row.objects.bulk_create([self.Row(k=k, n=10 * k) for k in (1, 2, 3)])
            changes.install(engine.alias())
            try:
                for view in self.views:
                    refreshed(view)
                yield
            finally:
                changes.remove(engine.alias())

    def refresh(self) -> set[str]:
        """Refresh the view; why its phases were full, "" where they were by keys."""
        refresh = view_classes.run(self.View)
        assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
        return {run.full_refresh_reason for run in refresh.runs.all()}

    @property
    def table(self) -> str:
        return str(self.View._meta.db_table)

    @property
    def pending(self) -> bool:
        return not engine.is_fresh(self.View)

    @property
    def is_right(self) -> bool:
        right = sorted(self.Row.objects.values_list("k", "n"))
        return sorted(self.View.objects.values_list("ref", "total")) == right


def insert_or_replace(view: type[Any]) -> None:
    values = "(ref, total) VALUES (2, 0)"
    table = view._meta.db_table
    if VENDOR == "postgresql":
        execute(f"INSERT INTO {table} {values} ON CONFLICT (ref) DO UPDATE SET total = 0")
    else:
        execute(f"REPLACE INTO {table} {values}")


WRITES: dict[str, Callable[[type[Any]], object]] = {
    "create": lambda view: view.objects.create(ref=9, total=9),
    "update": lambda view: view.objects.filter(ref=1).update(total=0),
    "another key": lambda view: view.objects.filter(ref=2).update(ref=7),
    "delete": lambda view: view.objects.filter(ref=3).delete(),
    "in bulk": lambda view: view.objects.bulk_create([view(ref=ref, total=1) for ref in (8, 9)]),
    "SQL": lambda view: execute(f"UPDATE {view._meta.db_table} SET total = total + 1"),
    "upsert": insert_or_replace,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_others_write_is_restored_by_keys_and_logged(
    write: Callable[[type[Any]], object], caplog: pytest.LogCaptureFixture
) -> None:
    guarded = Guarded()
    with guarded.ready():
        assert not guarded.pending
        write(guarded.View)
        # then nobody was refused, and the view has something to do
        assert not guarded.is_right
        assert guarded.pending
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="matviews"):
            assert guarded.refresh() == {""}
        assert guarded.is_right
        assert not guarded.pending
        [record] = [each for each in caplog.records if FOREIGN in each.message]
        assert guarded.View._meta.label in record.message


def test_without_the_option_they_stay() -> None:
    guarded = Guarded(read_only=False)
    with guarded.ready():
        guarded.View.objects.filter(ref=1).update(total=0)
        assert not guarded.pending
        guarded.refresh()
        assert not guarded.is_right


@pytest.mark.parametrize("read", [False, True], ids=["alone", "read"])
def test_batches_leave_nothing_to_do_for_the_view_itself(*, read: bool) -> None:
    guarded = Guarded(read=read)
    with guarded.ready():
        guarded.Row.objects.filter(k=1).update(n=11)
        guarded.Row.objects.create(k=4, n=40)
        guarded.Row.objects.filter(k=2).delete()
        assert guarded.refresh() == {""}
        # then it is fresh, and only the view that reads it is not
        assert not guarded.pending
        assert Change.objects.exists() == read
        if read:
            reader = guarded.views[1]
            assert not engine.is_fresh(reader)
            refreshed(reader)
            assert reader.verify().equal
            assert sorted(reader.objects.values_list("total", flat=True)) == [11, 30, 40]
        assert not guarded.pending
        assert guarded.is_right
        assert not ViewChange.objects.filter(view__label=guarded.View._meta.label).exists()


def test_a_view_that_reads_no_column_follows_batches_too() -> None:
    guarded = Guarded()
    counter = derived_view(
        lambda cls: (
            guarded.View.objects.annotate(one=Value(1)).values("one").annotate(count=Count("*"))
        ),
        name="Counter",
        key=["one"],
        one=models.IntegerField(unique=True),
        count=models.IntegerField(),
    )
    guarded.views.append(counter)
    with guarded.ready():
        guarded.Row.objects.create(k=4, n=40)
        guarded.refresh()
        assert not engine.is_fresh(counter)
        refreshed(counter)
        guarded.Row.objects.filter(k__lt=3).delete()
        guarded.refresh()
        refreshed(counter)
        assert counter.objects.get().count == 2
        assert not guarded.pending


def test_what_others_write_reaches_the_views_that_read_it() -> None:
    guarded = Guarded(read=True)
    with guarded.ready():
        reader = guarded.views[1]
        guarded.View.objects.filter(ref=1).update(total=99)
        refreshed(reader)
        assert 99 in reader.objects.values_list("total", flat=True)
        guarded.refresh()
        refreshed(reader)
        assert sorted(reader.objects.values_list("total", flat=True)) == [10, 20, 30]


def test_columns_that_the_source_does_not_fill_are_free() -> None:
    guarded = Guarded()
    with guarded.ready():
        guarded.View.objects.filter(ref=1).update(note="mine")
        assert not guarded.pending
        guarded.refresh()
        assert guarded.View.objects.get(ref=1).note == "mine"


def test_a_staged_view_is_refreshed_in_full() -> None:
    guarded = Guarded(staged=True)
    with guarded.ready():
        assert not guarded.pending
        guarded.View.objects.filter(ref=1).update(total=0)
        assert guarded.pending
        assert "" not in guarded.refresh()
        assert guarded.is_right
        assert not guarded.pending


def test_a_repair_is_no_foreign_write() -> None:
    guarded = Guarded()
    with guarded.ready():
        with untracked(guarded.View):
            guarded.View.objects.filter(ref=1).update(total=0)
        engine.move_log()
        ViewChange.objects.all().delete()
        assert guarded.View.verify(repair=True).repaired
        assert guarded.is_right
        assert not guarded.pending


def test_verify_leaves_out_what_the_next_refresh_restores() -> None:
    guarded = Guarded()
    with guarded.ready():
        guarded.View.objects.filter(ref=1).update(total=0)
        found = guarded.View.verify(leave_out_pending=True)
        assert (found.equal, found.pending) == (True, 1)


def test_untracked_writes_make_the_next_refresh_full() -> None:
    guarded = Guarded()
    with guarded.ready():
        with untracked(guarded.View):
            guarded.View.objects.filter(ref=1).update(total=0)
        assert guarded.pending
        assert "" not in guarded.refresh()
        assert guarded.is_right


def test_an_emptied_table_is_filled_again() -> None:
    guarded = Guarded()
    with guarded.ready():
        if VENDOR == "sqlite":
            execute(f"DELETE FROM {guarded.table}")
        else:
            execute(f"TRUNCATE TABLE {guarded.table}")
        if VENDOR == "mysql":  # which fires no trigger: the maintenance task finds out
            assert changes.mark_truncated(engine.alias()) == [guarded.table]
        assert guarded.pending
        guarded.refresh()
        assert guarded.is_right


def test_loaddata_passes_and_is_restored(tmp_path: Path) -> None:
    guarded = Guarded()
    with guarded.ready():
        fixture = tmp_path / "rows.json"
        pk = guarded.View.objects.get(ref=1).pk
        row = {"model": "shapes.made", "pk": pk, "fields": {"ref": 1, "total": 0, "note": None}}
        fixture.write_text(json.dumps([row]))
        call_command("loaddata", str(fixture), verbosity=0)
        assert guarded.View.objects.get(ref=1).total == 0
        guarded.refresh()
        assert guarded.is_right


def test_a_migration_passes_and_what_it_wrote_is_restored() -> None:
    guarded = Guarded()
    with guarded.ready():
        changes.drop_before_migrate(engine.alias())
        field = models.IntegerField(null=True)
        field.set_attributes_from_name("added")
        with connection.schema_editor() as editor:
            editor.add_field(guarded.View, field)
        execute(f"UPDATE {guarded.table} SET total = 0, added = 1")
        changes.install(engine.alias())
        assert guarded.refresh() == {
            f"the triggers of {table} were installed or replaced"
            for table in [guarded.Row._meta.db_table]
        }
        assert guarded.is_right


def test_a_cascade_passes() -> None:
    Parent = model("Parent")
    Row = model("Row", k=models.BigIntegerField(unique=True), parent=models.BigIntegerField())
    View = derived_view(
        lambda cls: Row.objects.values(ref=F("k"), parent_id=F("parent")),
        options={"read_only": True},
        ref=models.BigIntegerField(unique=True),
        parent=models.ForeignKey(Parent, models.CASCADE),
    )
    with made(Parent, Row, View):
        parents = [Parent.objects.create(), Parent.objects.create()]
        Row.objects.bulk_create(Row(k=n, parent=parent.pk) for n, parent in enumerate(parents))
        changes.install(engine.alias())
        try:
            refreshed(View)
            # when a row is deleted that the view refers to, then so is the view's row
            with transaction.atomic():
                Row.objects.filter(k=0).delete()
                parents[0].delete()
            assert list(View.objects.values_list("ref", flat=True)) == [1]
            refreshed(View)
            assert list(View.objects.values_list("ref", flat=True)) == [1]
            assert engine.is_fresh(View)
        finally:
            changes.remove(engine.alias())


class TestTheMarkOfABatch:
    def test_it_ends_with_the_batch_even_if_that_fails(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        guarded = Guarded(max_parked_keys=0)
        with guarded.ready():
            guarded.Row.objects.filter(k=1).update(n=11)
            with monkeypatch.context() as patch:
                patch.setattr("matviews.engine.batches.step.do_derived", fails)
                assert view_classes.run(guarded.View).state == RefreshState.FAILED
            self.is_gone(guarded)
            guarded.refresh()
            self.is_gone(guarded)
            assert guarded.is_right

    def test_it_ends_if_the_transaction_is_broken(self) -> None:
        guarded = Guarded()
        with guarded.ready():
            with suppress(DatabaseError), transaction.atomic():  # noqa: SIM117
                with changes.as_batch(engine.alias(), guarded.table):
                    with suppress(DatabaseError), transaction.atomic(savepoint=False):
                        execute("SELECT nothing FROM nowhere")
                    execute("SELECT 1")  # Django refuses it
            self.is_gone(guarded)

    def is_gone(self, guarded: Guarded) -> None:
        engine.move_log()
        guarded.View.objects.filter(ref=3).update(total=F("total") + 1)
        assert guarded.pending
        assert Change.objects.filter(table=guarded.table).exists()
        guarded.View.objects.filter(ref=3).update(total=F("total") - 1)
        if VENDOR == "postgresql":
            execute("SELECT 1")
            with connection.cursor() as cursor:
                cursor.execute("SELECT current_setting('matviews.batch', true)")
                assert not cursor.fetchone()[0]
        assert LogSecret.objects.count() == 1

    @without_sqlite
    def test_nobody_else_is_taken_for_the_batch(self) -> None:
        guarded = Guarded()
        with guarded.ready():

            def write_as_batch() -> None:
                with changes.as_batch(engine.alias(), guarded.table):
                    guarded.View.objects.filter(ref=1).update(total=0)
                    in_another_connection(
                        lambda: guarded.View.objects.filter(ref=2).update(total=0)
                    ).join()

            with held_open(write_as_batch):
                [change] = Change.objects.filter(table=guarded.table)
                assert (change.links or [])[1:] in ([["2"]], [[2]])

    @without_sqlite
    def test_it_needs_the_secret(self) -> None:
        guarded = Guarded()
        with guarded.ready():
            forged = f"guessed {digest(guarded.table)}"
            statement = (
                f"SET matviews.batch = '{forged}'"
                if VENDOR == "postgresql"
                else f"SET @matviews_batch = '{forged}'"
            )
            execute(statement)
            try:
                guarded.View.objects.filter(ref=1).update(total=0)
            finally:
                execute(statement.replace(forged, ""))
            assert guarded.pending

    def test_a_role_that_may_not_read_the_secret_is_told(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        guarded = Guarded()
        with guarded.ready():
            guarded.Row.objects.filter(k=1).update(n=11)

            monkeypatch.setattr(LogSecret._meta, "db_table", "matviews_forbidden")
            refresh = view_classes.run(guarded.View)
            assert refresh.state == RefreshState.FAILED
            assert "with MatviewMeta.read_only needs the right to read" in refresh.error

    def test_it_is_for_the_table_of_the_view_only(self) -> None:
        guarded = Guarded(read=True)
        with guarded.ready(), transaction.atomic():
            with changes.as_batch(engine.alias(), guarded.views[1]._meta.db_table):
                guarded.View.objects.filter(ref=1).update(total=0)
            assert guarded.pending

    def test_what_it_costs_is_a_few_statements(self) -> None:
        costs = []
        for read_only in (False, True, False):  # the first also fills caches
            with alone():
                guarded = Guarded(read_only=read_only)
                with guarded.ready():
                    guarded.Row.objects.filter(k=1).update(n=11)
                    with counted() as found:
                        guarded.refresh()
                costs.append(len(found))
        assert costs[2] < costs[1] <= costs[2] + 3 * PHASE_STATEMENTS


def fails(*_args: Any) -> None:
    raise ValueError("no")


class TestInstallation:
    def test_the_table_of_the_view_is_tracked(self) -> None:
        guarded = Guarded(read=True)
        with guarded.ready():
            record = TrackedTable.objects.get(table=guarded.table)
            assert (record.guarded, len(record.views)) == (["ref", "total"], 2)
            assert list(changes.find_problems(engine.alias())) == []
            assert changes.script(engine.alias()) == ""

    def test_a_missing_trigger_is_reported_and_every_refresh_full(self) -> None:
        guarded = Guarded()
        with guarded.ready():
            dialect = triggers_of(engine.alias())
            names = dialect.installed_triggers()[guarded.table]
            dialect.execute(dialect.drop(guarded.table, names))
            assert list(changes.find_problems(engine.alias())) == [
                f"The triggers on {guarded.table} (read by {guarded.View._meta.label}) are missing."
            ]
            guarded.View.objects.filter(ref=1).update(total=0)
            assert guarded.refresh() == {f"no triggers log all changes of {guarded.table}"}
            assert guarded.is_right

    def test_without_the_option_the_triggers_go(self) -> None:
        guarded = Guarded()
        with guarded.ready():
            registry.unregister(guarded.View._meta.label)
            guarded.View.MatviewMeta.read_only = False
            registry.register(guarded.View)
            changes.install(engine.alias())
            installed = triggers_of(engine.alias()).installed_triggers()
            assert installed.keys() == {guarded.Row._meta.db_table}


def test_w049_a_view_that_is_not_tracked() -> None:
    Guarded(tracking=False)
    [problem] = checks.check_read_only([engine.alias()])
    assert problem.id == "matviews.W049"
    assert "shapes.Made: MatviewMeta.read_only has no effect" in str(problem.msg)
    assert checks.check_read_only() == []


def test_a_tracked_view_is_fine() -> None:
    Guarded()
    assert checks.check_read_only([engine.alias()]) == []
