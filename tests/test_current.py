"""`View.current`: what the view's source says in the very statement that reads it."""

import pickle
from collections.abc import Iterator
from contextlib import closing, contextmanager
from decimal import Decimal, InvalidOperation
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, models, transaction
from django.db.models import Count, F, Max, OuterRef, Q, Subquery, Sum, Window
from django.db.models.fields.json import KT
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from matviews import changes, engine, untracked
from matviews.exceptions import InvalidRequest, InvalidView
from matviews.models import DirtyKeys, ParkedKey, ViewShard, ViewSums
from matviews.queryset import GroupSums, plan_of
from matviews.registry import registry
from tests.helpers import view_classes
from tests.helpers.additive_views import Sales, extremes
from tests.helpers.current import differences_now, reads_table
from tests.helpers.joined_views import Shops
from tests.helpers.roles import as_role, database_role, may_work
from tests.helpers.tables import derived_view, execute, key, made, model, refreshed
from tests.shapes.models.grouped import RegionTotal

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@contextmanager
def tracked(*wanted: type[Any]) -> Iterator[None]:
    """The tables of the models, with triggers, are there until the end."""
    with made(*wanted):
        changes.install(engine.alias())
        try:
            yield
        finally:
            changes.remove(engine.alias())


class Totals:
    """Rows of groups, and a view of the groups, which is not additive."""

    def __init__(self, **options: Any) -> None:
        self.Row = row = model(
            "Row", ref=models.IntegerField(db_index=True), n=models.IntegerField(null=True)
        )
        self.View = derived_view(
            lambda cls: row._base_manager.values("ref").annotate(total=Sum("n")),
            name="Total",
            options=options,
            ref=key(),
            total=models.IntegerField(null=True),
            note=models.CharField(max_length=9, db_default="new"),
        )

    def __enter__(self) -> "Totals":
        self.made = made(self.Row, self.View)
        self.made.__enter__()
        changes.install(engine.alias())
        for ref in (1, 1, 2, 3):
            self.add(ref, 5)
        refreshed(self.View)
        return self

    def __exit__(self, *error: Any) -> None:
        changes.remove(engine.alias())
        self.made.__exit__(*error)

    def add(self, ref: int, n: int) -> None:
        self.Row._base_manager.create(ref=ref, n=n)

    @property
    def shard(self) -> ViewShard:
        return ViewShard.objects.get(view__label=self.View._meta.label)

    @property
    def rows(self) -> dict[int, int]:
        """The view as of now, by key."""
        return dict(self.View.current.values_list("ref", "total"))


@pytest.fixture
def totals(transactional_db: None, alone: None) -> Iterator[Totals]:
    with Totals() as found:
        yield found


@pytest.fixture
def sales(transactional_db: None, alone: None) -> Iterator[Sales]:
    """An additive view of three shops, refreshed."""
    with Sales().tracked() as found:
        found.add((1, 2, "1.10"), (1, None, None), (2, 3, "0.30"), (None, 1, "1"), (3, 5, "2"))
        refreshed(found.View)
        yield found


def spoil(view: type[Any], **values: Any) -> None:
    """Write wrong values into the view's table, to see who reads it."""
    view._base_manager.update(**values)


def test_rows_for_which_nothing_waits_are_read_from_the_table(totals: Totals) -> None:
    spoil(totals.View, total=0)
    totals.add(2, 1)

    assert totals.rows == {1: 0, 2: 6, 3: 0}


def test_one_statement_reads_it(totals: Totals) -> None:
    totals.add(9, 1)
    list(totals.View.current)

    with CaptureQueriesContext(connection) as queries:
        assert totals.rows[9] == 1

    assert len(queries) == 1


def test_what_changed_is_seen_wherever_it_waits(totals: Totals) -> None:
    totals.add(2, 1)
    totals.Row._base_manager.filter(ref=1).delete()
    totals.Row._base_manager.filter(ref=3).update(ref=4)
    expected = {2: 6, 4: 5}
    assert totals.rows == expected  # in the log

    engine.move_log()
    assert totals.rows == expected  # in the queue

    shard = totals.shard
    shard.drain_number += 1
    shard.save()
    dirty = DirtyKeys(shard=shard, drain_number=shard.drain_number, count=4)
    dirty.keys = [[1], [2], [3], [4]]
    dirty.save()
    changes.drain_queue(shard.view_id)
    assert totals.rows == expected  # among the dirty keys
    assert reads_table(totals.View)


def test_texts_from_json_read_as_the_table_returns_them() -> None:
    row = model("Document", body=models.JSONField())
    view = derived_view(
        lambda cls: row._base_manager.values(ref=F("pk"), text=KT("body__value")),
        name="DocumentText",
        ref=models.BigIntegerField(unique=True),
        text=models.TextField(null=True),
    )
    with tracked(row, view):
        refreshed(view)
        for value in ("a", 7, 1.5, 1e300, None):
            row._base_manager.create(body={"value": value})

        computed = sorted(view.current.values_list("ref", "text"))
        refreshed(view)

        assert computed == sorted(view._base_manager.values_list("ref", "text"))


def test_marked_keys_are_computed(totals: Totals) -> None:
    spoil(totals.View, total=0)
    engine.mark_dirty(totals.View, [1, 7])

    assert totals.rows == {1: 10, 2: 0, 3: 0}


@pytest.mark.parametrize("what", ["mark", "untracked", "triggers", "new", "definition", "truncate"])
def test_all_rows_are_computed_if_any_may_have_changed(totals: Totals, what: str) -> None:
    spoil(totals.View, total=0)
    if what == "mark":
        engine.mark_dirty(totals.View)
    elif what == "untracked":
        with untracked(totals.Row):
            totals.add(1, 1)
    elif what == "triggers":
        changes.remove(engine.alias())
        totals.add(1, 1)
    elif what == "new":
        ViewShard.objects.update(checkpoints={})
    elif what == "definition":
        rows = totals.Row._base_manager
        totals.View.source = lambda: rows.values("ref").annotate(total=Max("n"))
    elif connection.vendor != "postgresql":
        pytest.skip("TRUNCATE fires no trigger, or is a DELETE")
    else:
        execute(f"TRUNCATE {totals.Row._meta.db_table}")

    assert differences_now(totals.View) == []
    assert not reads_table(totals.View)


def test_triggers_that_are_back_are_not_trusted_before_they_are_recorded(totals: Totals) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite cannot tell that a trigger was created again")
    spoil(totals.View, total=0)
    name = connection.ops.quote_name(totals.Row._meta.db_table)
    if connection.vendor == "postgresql":
        execute(f"ALTER TABLE {name} DISABLE TRIGGER ALL")
        totals.add(1, 1)
        execute(f"ALTER TABLE {name} ENABLE TRIGGER ALL")
    else:
        changes.remove(engine.alias())
        totals.add(1, 1)
        changes.install(engine.alias())

    assert differences_now(totals.View) == []


def test_parked_keys_are_read_from_the_table(totals: Totals) -> None:
    shard, now = totals.shard, timezone.now()
    fingerprint = plan_of(registry.find(totals.View), engine.alias()).fingerprint
    spoil(totals.View, total=0)
    ParkedKey.objects.create(
        shard=shard, phase="update", key=[2], fingerprint=fingerprint, error_class="", message="",
        first_seen=now, last_seen=now, retry_at=now,
    )  # fmt: skip
    totals.add(2, 1)
    assert totals.rows == {1: 0, 2: 0, 3: 0}

    engine.mark_dirty(totals.View)
    assert totals.rows == {1: 10, 2: 0, 3: 5}


@pytest.mark.usefixtures("alone")
def test_parked_keys_of_a_source_that_is_computed_as_a_whole_come_once(
    transactional_db: None,
) -> None:
    row = model("Row", n=models.IntegerField())
    sums = Window(Sum("n"), order_by=["pk"])
    view = derived_view(
        lambda cls: row._base_manager.annotate(ref=F("pk"), total=sums).values("ref", "total"),
        meta={"constraints": [models.CheckConstraint(condition=Q(total__lt=100), name="few")]},
        ref=key(),
        total=models.IntegerField(),
    )
    with made(row, view):
        changes.install(engine.alias())
        rows = [row._base_manager.create(n=number) for number in (1, 2, 3)]
        refreshed(view)
        row._base_manager.filter(pk=rows[2].pk).update(n=500)
        view_classes.run(view)
        assert ParkedKey.objects.filter(key=[rows[2].pk]).exists()
        row._base_manager.create(n=-500)

        assert list(view.current.order_by("ref").values_list("total", flat=True)) == [1, 3, 6, 3]


@pytest.mark.only_on("postgres", reason="on the others an entry is a row")
def test_an_entry_of_many_rows_takes_no_longer_for_each(totals: Totals) -> None:
    """The server works for 1 s; with a time for each row that grows with their number, for 75 s."""
    many = range(10, 30_010)
    with untracked(totals.Row):
        totals.Row._base_manager.bulk_create(totals.Row(ref=ref, n=1) for ref in many)
    refreshed(totals.View)
    totals.Row._base_manager.filter(ref__gte=10).update(n=2)

    with transaction.atomic():
        execute("SET LOCAL statement_timeout = '40 s'")
        assert totals.View.current.get(ref=1).total == 10


@pytest.mark.usefixtures("alone")
def test_a_number_that_does_not_fit_the_view_is_not_cut(transactional_db: None) -> None:
    row = model(
        "Row",
        ref=models.IntegerField(db_index=True),
        n=models.DecimalField(max_digits=12, decimal_places=2),
    )
    view = derived_view(
        lambda cls: row._base_manager.values("ref").annotate(total=Sum("n")),
        ref=key(),
        total=models.DecimalField(max_digits=6, decimal_places=2, null=True),
    )
    with tracked(row, view):
        row._base_manager.create(ref=1, n=5)
        refreshed(view)
        row._base_manager.create(ref=1, n=Decimal("123456.78"))

        if connection.vendor == "mysql":
            assert view.current.get().total == Decimal("123461.78")
        else:
            with pytest.raises((DatabaseError, InvalidOperation)):
                view.current.get()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("everything", [False, True])
def test_texts_have_the_collation_of_the_view(transactional_db: None, everything: bool) -> None:
    of_source, of_view = {
        "postgresql": ("C", "en-x-icu"),
        "mysql": ("utf8mb4_bin", "utf8mb4_german2_ci"),
        "sqlite": ("NOCASE", "RTRIM"),
    }[connection.vendor]
    row = model(
        "Row",
        ref=models.IntegerField(db_index=True),
        top=models.CharField(max_length=9, db_collation=of_source),
        other=models.CharField(max_length=9, db_collation=of_source),
    )
    view = derived_view(
        lambda cls: row._base_manager.values("ref").annotate(first=Max("top"), last=Max("other")),
        ref=key(),
        first=models.CharField(max_length=9, db_collation=of_view),
        last=models.CharField(max_length=9),
    )
    with tracked(row, view):
        row._base_manager.create(ref=1, top="x", other="x")
        refreshed(view)
        row._base_manager.create(ref=2, top="y", other="y")
        if everything:
            engine.mark_dirty(view)

        for name in ("first", "last"):
            assert view.current.filter(**{name: "y"}).count() == 1
            assert [each.ref for each in view.current.order_by(name)] == [1, 2]
            assert view.current.values(name).distinct().count() == 2


@pytest.mark.usefixtures("alone")
def test_a_whole_number_that_no_column_can_hold_is_an_error(transactional_db: None) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no number that is larger")
    row = model("Row", ref=models.IntegerField(db_index=True), n=models.BigIntegerField())
    view = derived_view(
        lambda cls: row._base_manager.values("ref").annotate(total=Sum("n")),
        ref=key(),
        total=models.BigIntegerField(),
    )
    with tracked(row, view):
        row._base_manager.bulk_create([row(ref=1, n=2**62), row(ref=1, n=2**62)])

        with pytest.raises(DatabaseError, match="out of range"):
            view.current.get()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("everything", [False, True])
def test_the_largest_whole_numbers_are_read(transactional_db: None, everything: bool) -> None:
    large = 2**63 + 5 if connection.vendor == "mysql" else 2**63 - 5
    row = model("Row", ref=models.PositiveBigIntegerField(db_index=True), n=models.IntegerField())
    view = derived_view(
        lambda cls: row._base_manager.values("ref").annotate(top=Max("n") + F("ref")),
        ref=models.PositiveBigIntegerField(unique=True),
        top=models.PositiveBigIntegerField(),
    )
    with tracked(row, view):
        row._base_manager.bulk_create([row(ref=large, n=1), row(ref=large - 1, n=1)])
        refreshed(view)
        row._base_manager.filter(ref=large).update(n=2)
        row._base_manager.create(ref=large + 1, n=1)
        if everything:
            engine.mark_dirty(view)

        tops = {large - 1: large, large: large + 2, large + 1: large + 2}
        assert dict(view.current.values_list("ref", "top")) == tops
        engine.move_log()
        assert {each.ref: each.top for each in view.current} == tops
        assert all(type(each.top) is int for each in view.current)
        assert reads_table(view) is not everything


def test_it_is_a_queryset_as_any_other(totals: Totals) -> None:
    totals.add(2, 1)
    totals.add(4, 8)
    current = totals.View.current

    assert [row.total for row in current.order_by("-total")] == [10, 8, 6, 5]
    assert current.filter(total__gt=5).count() == 3
    assert current.aggregate(Sum("total"))["total__sum"] == 29
    assert list(current.order_by("ref")[1:3].values_list("ref", flat=True)) == [2, 3]
    assert current.exclude(ref=1).exists()
    assert current.get(ref=4).note == "new"
    assert len(list(current.iterator())) == 4
    assert current.annotate(double=F("total") * 2).get(ref=2).double == 12
    assert list((current.filter(ref=1) | current.filter(ref=4)).values_list("ref", flat=True))
    assert current.filter(ref=1).union(current.filter(ref=2)).count() == 2
    of_rows = totals.Row._base_manager.annotate(
        total=Subquery(current.filter(ref=OuterRef("ref")).values("total"))
    )
    assert set(of_rows.values_list("ref", "total")) == {(1, 10), (2, 6), (3, 5), (4, 8)}
    assert (
        totals.Row._base_manager.filter(ref__in=current.filter(total=8).values("ref")).count() == 1
    )


def test_it_can_be_pickled() -> None:
    query = pickle.loads(pickle.dumps(RegionTotal.current.filter(pk=1).query))

    assert str(query) == str(RegionTotal.current.filter(pk=1).query)


def test_rows_that_the_table_has_keep_what_only_the_table_knows(totals: Totals) -> None:
    [row] = totals.View._base_manager.filter(ref=2)
    totals.View._base_manager.filter(ref=2).update(note="kept")
    totals.add(2, 1)
    totals.add(4, 1)

    found = {each.ref: each for each in totals.View.current}

    assert (found[2].pk, found[2].note, found[2].total) == (row.pk, "kept", 6)
    assert (found[4].pk, found[4].note) == (None, "new")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("everything", [False, True])
def test_rows_without_a_primary_key_are_groups_of_their_own(
    transactional_db: None, everything: bool
) -> None:
    person = model("Buyer", nick=models.CharField(max_length=9))
    row = model(
        "Row",
        person=models.ForeignKey(person, models.CASCADE, related_name="rows"),
        n=models.IntegerField(),
    )
    view = derived_view(
        lambda cls: row._base_manager.values("person").annotate(total=Sum("n")),
        person=models.OneToOneField(person, models.DO_NOTHING, db_constraint=False),
        total=models.IntegerField(),
    )
    with tracked(person, row, view):
        people = [person._base_manager.create(nick=nick) for nick in "abcd"]
        row._base_manager.create(person=people[0], n=1)
        refreshed(view)
        row._base_manager.bulk_create(row(person=each, n=1) for each in people for _ in "12")
        if everything:
            engine.mark_dirty(view)
        counted = view.current.annotate(rows=Count("person__rows"))
        counts = dict(zip((each.pk for each in people), (3, 2, 2, 2), strict=True))

        assert {each.person_id: each.rows for each in counted} == counts
        assert {
            each.person_id: (each.person.nick, each.rows)
            for each in counted.select_related("person").order_by("-person__nick")
        } == {each.pk: (each.nick, counts[each.pk]) for each in people}
        assert dict(counted.values_list("person", "rows")) == counts
        assert sorted(counted.values_list("pk", "rows"), key=str)[0][1] == 3
        assert len(counted.values("pk", "rows")) == 4
        assert counted.filter(rows=2).count() == 3
        assert counted.aggregate(Sum("rows")) == {"rows__sum": 9}
        assert person._base_manager.filter(pk__in=counted.values("person")).count() == 4
        by_total = view.current.values("total").annotate(n=Count("*"))
        assert dict(by_total.values_list("total", "n")) == {2: 3, 3: 1}


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("create", {"ref": 1}), ("update", {"total": 1}), ("delete", {}),
        ("bulk_create", {"objs": []}),
        ("bulk_update", {"objs": [], "fields": []}), ("get_or_create", {"ref": 1}),
        ("update_or_create", {"ref": 1}), ("select_for_update", {}),
    ],
)  # fmt: skip
def test_nothing_is_written_through_it(totals: Totals, method: str, arguments: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"Total\.current\.{method}\(\)"):
        getattr(totals.View.current, method)(**arguments)


@pytest.mark.parametrize("method", ["only", "defer"])
def test_no_field_is_left_to_be_read_from_the_table(totals: Totals, method: str) -> None:
    with pytest.raises(InvalidRequest, match=r"use values\(\) or values_list\(\)"):
        getattr(totals.View.current, method)("total")


def test_it_belongs_to_the_class(totals: Totals) -> None:
    with pytest.raises(AttributeError, match="not of its rows"):
        totals.View().current  # noqa: B018


@pytest.mark.usefixtures("alone")
def test_a_field_of_that_name_takes_its_place(transactional_db: None) -> None:
    row = model("Row", current=models.IntegerField(unique=True))
    view = derived_view(lambda cls: row._base_manager.values("current"), current=key())

    assert view(current=3).current == 3


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tracking": False}, "MatviewMeta.tracking is False"),
        ({"phases": ["insert"]}, "has no update"),
    ],
)
def test_views_that_cannot_be_read_as_of_now_say_why(
    transactional_db: None, options: dict[str, Any], reason: str
) -> None:
    with made():
        row = model("Row", n=models.IntegerField(unique=True))
        view = derived_view(lambda cls: row._base_manager.values("n"), options=options, n=key())

        with pytest.raises(InvalidView, match=reason):
            view.current.count()


@pytest.mark.usefixtures("alone")
def test_explain_says_whether_a_view_can_be_read_as_of_now(transactional_db: None) -> None:
    with Totals(phases=["insert", "update"]) as partial:
        out = StringIO()
        label = partial.View._meta.label

        call_command("update_materialized_views", "--explain", models=[label], stdout=out)

    assert "View.current cannot read it: MatviewMeta.phases has no delete" in out.getvalue()


def test_an_additive_view_is_read_from_its_sums(sales: Sales) -> None:
    spoil(sales.View, sales=0)
    sales.add((1, 7, "5"), (4, 1, "1"))
    sales.Sale._base_manager.filter(shop=2).update(qty=F("qty") + 10, note="x")
    sales.Sale._base_manager.filter(shop=3).update(shop=1)

    assert differences_now(sales.View) == []
    assert reads_table(sales.View)

    refreshed(sales.View)
    assert differences_now(sales.View) == []


@pytest.mark.parametrize("what", ["mark", "untracked", "incomplete", "stale", "wide"])
def test_sums_that_may_be_wrong_are_not_read(
    sales: Sales, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GroupSums, "fit", lambda _sums: True)  # as it was a moment ago
    kept = ViewSums.objects.get()
    execute(f"UPDATE {connection.ops.quote_name(kept.table)} SET matviews_rows = matviews_rows + 1")
    if what == "mark":
        engine.mark_dirty(sales.View, [1])
    elif what == "untracked":
        with untracked(sales.Sale):
            sales.add((1, 1, "1"))
    elif what == "incomplete":
        execute(
            f"INSERT INTO {connection.ops.quote_name(kept.log)} (matviews_weight) VALUES (NULL)"
        )
    elif what == "stale":
        ViewSums.objects.update(drain_number=ViewSums.STALE)
    elif connection.vendor != "mysql":
        pytest.skip("the triggers notice it")
    else:
        execute(f"ALTER TABLE {sales.Sale._meta.db_table} MODIFY qty BIGINT")

    assert differences_now(sales.View) == []
    assert not reads_table(sales.View)


@pytest.mark.usefixtures("alone")
def test_extremes_follow_what_comes_and_are_computed_if_one_may_have_gone(
    transactional_db: None,
) -> None:
    with Sales(extremes).tracked() as sales:
        sales.add((1, 2, "1"), (1, 7, "2"), (2, 5, "1"))
        refreshed(sales.View)
        sales.add((1, 9, "3"))
        assert differences_now(sales.View) == []
        assert reads_table(sales.View)

        sales.Sale._base_manager.filter(qty=9).delete()
        assert differences_now(sales.View) == []
        sales.Sale._base_manager.filter(qty=7).delete()
        assert differences_now(sales.View) == []
        assert not reads_table(sales.View)


@pytest.mark.usefixtures("alone")
@pytest.mark.only_on("postgres", reason="MariaDB shows others no triggers, SQLite has no roles")
@pytest.mark.parametrize("shop", [Shops, Sales])
def test_a_role_that_may_not_read_sums_reads_by_keys(
    transactional_db: None, shop: type[Any]
) -> None:
    """The rows for which nothing waits are then those of the table, right or wrong."""
    with shop().tracked() as sold, database_role("reader") as role:
        if isinstance(sold, Shops):
            sold.fill()
        else:
            sold.add((1, 5, None), (2, 3, None))
        refreshed(sold.View)
        sold.Sale._base_manager.order_by("pk")[:1].get().delete()
        spoil(sold.View, sales=99)
        sources = sold.sources if isinstance(sold, Shops) else [sold.Sale]
        may_work(role, *(each._meta.db_table for each in [*sources, sold.View]))
        with as_role(role):
            found = list(sold.View.current.values_list("sales", flat=True))

        assert 99 in found


@pytest.mark.usefixtures("alone")
def test_a_row_that_cannot_be_computed_and_is_gone_fails_no_read(transactional_db: None) -> None:
    """It is logged that it came and went. The source never sees it."""
    with Shops("by brand").tracked() as shops:
        shops.fill()
        large = shops.Product._base_manager.create(brand=7, price=1_000_000)
        refreshed(shops.View)
        shops.Sale._base_manager.create(product=large, qty=1_000_000).delete()
        assert differences_now(shops.View) == []
        refreshed(shops.View)
        assert differences_now(shops.View) == []


@pytest.mark.usefixtures("alone")
def test_the_same_without_lookups(transactional_db: None) -> None:
    with Sales().tracked() as sold:
        sold.add((1, 5, None))
        refreshed(sold.View)
        largest = 2_000_000_000
        sold.Sale._base_manager.create(shop=1, qty=largest, kind=largest).delete()
        assert differences_now(sold.View) == []
        assert sold.View.current.get(shop=1).sales == 1


@pytest.mark.usefixtures("alone")
@pytest.mark.only_on("mariadb", reason="elsewhere such a write fails")
@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("column", ["qty", "note"])
def test_a_row_that_others_have_changed_since_the_snapshot_is_seen_whole(
    transactional_db: None, additive: bool, column: str
) -> None:
    """Another transaction has moved it to another shop; this one writes to it, and sees both."""
    with Sales(options={"additive": additive}).tracked() as sold:
        [moved, *_others] = sold.add((1, 5, None), (1, 4, None), (2, 3, None), (3, 1, None))
        refreshed(sold.View)
        execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        try:
            with transaction.atomic():
                assert sold.Sale._base_manager.count() == 4
                elsewhere(f"UPDATE shapes_sale SET shop = 2, qty = 50 WHERE id = {moved.pk}")
                sold.Sale._base_manager.filter(pk=moved.pk).update(**{column: 7})
                assert differences_now(sold.View) == []
                assert sold.View.current.get(shop=1).sales == 1
            assert differences_now(sold.View) == []
            spoil(sold.View, sales=99)
            assert sold.View.current.filter(sales=99).exists() != additive, (
                "not from source() any more"
            )
        finally:
            execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")


@pytest.mark.usefixtures("alone")
@pytest.mark.only_on("mariadb", reason="elsewhere such a write fails")
def test_a_joined_view_is_exact_in_such_a_transaction_too(transactional_db: None) -> None:
    with Shops().tracked() as shops:
        shops.fill()
        refreshed(shops.View)
        sale = shops.Sale._base_manager.exclude(qty=None).order_by("pk")[0]
        execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        try:
            with transaction.atomic():
                assert shops.Sale._base_manager.count() == 12
                elsewhere(f"UPDATE shapes_joinedsale SET qty = 100 WHERE id = {sale.pk}")
                shops.Sale._base_manager.filter(pk=sale.pk).update(qty=101)
                assert differences_now(shops.View) == []
        finally:
            execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")


def elsewhere(statement: str) -> None:
    """Run a statement in a connection of its own, which commits."""
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute(statement)


def test_an_additive_view_without_its_tables_is_read_by_keys(sales: Sales) -> None:
    kept = ViewSums.objects.get()
    refreshed(sales.View)
    kept.delete()
    sales.add((1, 7, "5"))

    assert differences_now(sales.View) == []
