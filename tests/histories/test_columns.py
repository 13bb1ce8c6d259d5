"""Random views of one table that read different columns: each gets the changes of its own alone."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from django.db.models import Case, Count, F, IntegerField, Max, QuerySet, Sum, Value, When
from django.db.models import Model as DjangoModel
from hypothesis import HealthCheck, given, note, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st

from matviews import changes, engine
from matviews.changes import change_status, tracking_of
from matviews.databases import dialect_of
from matviews.models import Change, PhaseRun, TrackedTable, ViewChange, ViewControl
from matviews.queryset import plan_of
from matviews.registry import registry
from tests.helpers.state_machines import FOUND
from tests.helpers.tables import derived_view, key, made, model, refreshed
from tests.histories.conftest import RunRandom

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

TABLE = "made_rows"
# Fields and their columns, whose names JSON escapes.
NUMBERS = {"a": "a", "b": "ünd", "c": "back\\slash", "d": "D d"}
READS = st.sets(st.sampled_from(sorted(NUMBERS)))
VALUES = st.integers(0, 2)
Write = Callable[["Table"], set[str]]


class Table:
    """The table and its views, the last of which reads all columns."""

    def __init__(self) -> None:
        self.by_keys = 0  # phases that looked at dirty keys alone
        fields: dict[str, Any] = {
            name: IntegerField(null=True, db_column=column) for name, column in NUMBERS.items()
        }
        self.rows = model("Rows", slot=IntegerField(null=True), meta={"db_table": TABLE}, **fields)
        self.views = [
            self._view(f"View{number}", depends_on={self.rows: "slot"} if number == 3 else {})
            for number in range(4)
        ]
        for view in self.views:
            registry.unregister(view._meta.label)

    def _view(self, name: str, depends_on: dict[type[DjangoModel], str]) -> type[Any]:
        def source(cls: type[Any]) -> QuerySet[Any, Any]:
            total = sum((F(column) for column in sorted(cls.reads)), Value(0))
            slots: QuerySet[Any, Any] = self.rows.objects.exclude(slot=None).values(ref=F("slot"))
            return slots.annotate(n=Count("pk"), total=Sum(total))  # type: ignore[no-any-return]

        options = {"depends_on": depends_on} if depends_on else {}
        return derived_view(
            source, name=name, reads=set(), options=options,
            ref=key(), n=IntegerField(), total=IntegerField(null=True),
        )  # fmt: skip

    def begin(self, reads: list[set[str]]) -> None:
        """As many views as there are sets of columns."""
        for view in self.views:
            view._base_manager.all().delete()
            if view._meta.label in registry:
                registry.unregister(view._meta.label)
        for kept in (Change, ViewChange, PhaseRun, TrackedTable, ViewControl):
            kept._base_manager.all().delete()
        self.rows.objects.all().delete()
        for pk in range(1, 7):
            self.rows.objects.create(pk=pk, slot=pk % 3, a=pk % 2, b=1, c=None, d=pk)
        self.present = self.views[: len(reads)]
        for view, columns in zip(self.present, reads, strict=True):
            view.reads = columns
            registry.register(view)
        engine.sync_controls()
        self.migrate()
        for view in 2 * self.present:
            refreshed(view)

    def migrate(self) -> None:
        assert changes.install(engine.alias()) == {}

    def untouched(self, written: set[str]) -> list[type[Any]]:
        """The views that read none of the columns."""
        found = []
        for view in self.present:
            read = tracking_of(_plan(view)).tables[TABLE].columns
            if read is not None and read.isdisjoint(written):
                found.append(view)
        return found


def _plan(view: type[Any]) -> Any:
    return plan_of(registry.find(view), engine.alias())


def _is_complete(view: type[Any]) -> bool:
    status = change_status(view._meta.label, tracking_of(_plan(view)), engine.alias())
    assert status
    return status.complete


def _queued(view: type[Any]) -> int:
    return ViewChange.objects.filter(view__label=view._meta.label).count()


def _set(table: Table, *, values: dict[str, int], least: int) -> set[str]:
    table.rows.objects.filter(pk__gte=least).update(**values)
    return {NUMBERS.get(name, name) for name in values}


def _rotate(table: Table, *, name: str) -> set[str]:
    """One statement, after which each column has the same values as before, in other rows."""
    rows = list(table.rows.objects.order_by("pk").values_list("pk", name))
    moved = [When(pk=pk, then=Value(value)) for (pk, _), (_, value) in pairwise(rows)]
    table.rows.objects.update(**{name: Case(*moved, default=Value(0), output_field=IntegerField())})
    return {NUMBERS.get(name, name)}


def _renumber(table: Table, *, by: int) -> set[str]:
    table.rows.objects.update(id=F("id") + by)
    return {"id"}


def _add(table: Table, *, slot: int, a: int) -> set[str]:
    table.rows.objects.create(pk=_highest(table) + 1, slot=slot, a=a)
    return {"id", "slot", *NUMBERS.values()}


def _highest(table: Table) -> int:
    return int(table.rows.objects.aggregate(highest=Max("pk"))["highest"] or 0)


def _delete(table: Table, *, slot: int) -> set[str]:
    for row in table.rows.objects.filter(slot=slot)[:1]:
        row.delete()
    return {"id", "slot", *NUMBERS.values()}


def _redefine(table: Table, *, which: int, reads: set[str]) -> set[str]:
    """A new release: its view reads other columns, and `migrate` follows."""
    table.present[which % len(table.present)].reads = reads
    table.migrate()
    return {"id", "slot", *NUMBERS.values()}


def _refresh(table: Table, *, which: int) -> set[str]:
    refreshed(table.present[which % len(table.present)])
    return set()


def _write(
    work: Callable[..., set[str]], **chosen: st.SearchStrategy[Any]
) -> st.SearchStrategy[Write]:
    return st.fixed_dictionaries(chosen).map(lambda given: partial(work, **given))


COLUMN = st.sampled_from(["slot", *sorted(NUMBERS)])
WRITES: st.SearchStrategy[Write] = st.one_of(
    _write(
        _set,
        values=st.dictionaries(COLUMN, VALUES, min_size=1, max_size=2),
        least=st.integers(1, 7),
    ),
    _write(_rotate, name=COLUMN),
    _write(_renumber, by=st.integers(100, 200)),  # more than there are rows
    _write(_add, slot=VALUES, a=VALUES),
    _write(_delete, slot=VALUES),
    _write(_redefine, which=st.integers(0, 3), reads=READS),
    _write(_refresh, which=st.integers(0, 3)),
)


@pytest.fixture
def table() -> Iterator[Table]:
    found = Table()
    with made(found.rows, *found.views):
        yield found
        changes.remove(engine.alias())


def _run(table: Table, examples: int, **options: Any) -> None:
    @settings(
        max_examples=examples, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), **options,
    )  # fmt: skip
    @given(
        reads=st.lists(READS, min_size=1, max_size=4),
        writes=st.lists(WRITES, min_size=1, max_size=10),
    )
    def history(reads: list[set[str]], writes: list[Write]) -> None:
        table.begin(reads)
        for write in writes:
            note(f"{write}")
            before = {view: (_is_complete(view), _queued(view)) for view in table.present}
            written = write(table)
            untouched = table.untouched(written) if written else []
            # In the log, and in the queues.
            assert all(_is_complete(view) == before[view][0] for view in untouched)
            engine.move_log()
            assert all(_queued(view) == before[view][1] for view in untouched)
        for view in table.present:
            refreshed(view)
            assert view.verify().equal
        table.by_keys += PhaseRun.objects.exclude(dirty_after=None).filter(batches__gt=0).count()

    history()


def test_each_view_gets_the_changes_of_its_own_columns(table: Table, run_random: RunRandom) -> None:
    run_random(partial(_run, table), long=2_000, until=lambda: table.by_keys)
    assert table.by_keys


@pytest.mark.finds_fault
def test_the_histories_find_entries_that_do_not_arrive(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(dialect_of(engine.alias())), "shares_name", lambda _self, names, *_: f"{names} IS NULL"
    )

    with pytest.raises(FOUND):
        _run(table, 500, phases=[Stage.generate], derandomize=True, report_multiple_bugs=False)
