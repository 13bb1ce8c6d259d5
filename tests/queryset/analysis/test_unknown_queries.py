"""Querysets with third-party classes: their views refresh in full and concern no other view."""

import inspect as python
import io
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, models
from django.db.models import Count, Expression, F, Func, Q, QuerySet, Sum
from django.db.models.expressions import OuterRef
from django.db.models.lookups import Exact
from django.db.models.sql import Query

from matviews import checks, engine
from matviews.admin.source_section import source_context
from matviews.changes.tracking_spec import tracked_tables, tracking_of
from matviews.databases import fields
from matviews.models import ViewControl
from matviews.queryset import checks as queryset_checks
from matviews.queryset import fault_of, plan_of, tables_read
from matviews.queryset.analysis import (
    expressions,
    lineage,
    reading,
    source,
    source_checks,
    source_query,
    sql_text,
    tables,
)
from matviews.queryset.strategy import choose, indexes, inspection, links
from matviews.registry import registry
from matviews.states import ViewState
from tests.helpers.tables import derived_view, key, made, refreshed
from tests.shapes.models import Customer, Order, Tag

pytestmark = [pytest.mark.database, pytest.mark.django_db, pytest.mark.usefixtures("alone")]


class Sideways:
    """A join that has nothing of Django's but what its compiler asks for."""

    join_type = "INNER JOIN"
    parent_alias = filtered_relation = None
    table_alias = "sideways"

    def as_sql(self, compiler: Any, _connection: Any) -> tuple[str, tuple[Any, ...]]:
        name = compiler.connection.ops.quote_name
        customer, order = name(Customer._meta.db_table), name(Order._meta.db_table)
        on = f"{name('sideways')}.{name('id')} = {order}.{name('customer_id')}"
        return f"INNER JOIN {customer} {name('sideways')} ON {on}", ()

    def relabeled_clone(self, _aliases: dict[str, str]) -> "Sideways":
        return self


class StrangeQuery(Query):
    """A query that may have any table in it."""


class Closed(Expression):
    """An expression that nobody can look into."""

    contains_aggregate = contains_over_clause = contains_column_references = False
    contains_subquery = False

    def __init__(self, sql: str = "7") -> None:
        super().__init__(output_field=models.IntegerField())
        self.sql = sql

    def resolve_expression(self, *_args: Any, **_options: Any) -> "Closed":
        return self

    def get_source_expressions(self) -> Any:
        raise AttributeError("'Closed' object has no attribute 'parts'")

    def as_sql(self, _compiler: Any, _connection: Any) -> tuple[str, tuple[Any, ...]]:
        return self.sql, ()

    def get_group_by_cols(self) -> list[Any]:
        return []


def joined_sideways() -> QuerySet[Any, Any]:
    rows = Order.objects.order_by().values(ref=F("pk"), n=F("quantity"))
    query: Any = rows.query
    query.alias_map["sideways"], query.alias_refcount["sideways"] = Sideways(), 1
    return rows


def strange_query() -> QuerySet[Any, Any]:
    rows = Order.objects.order_by().values(ref=F("pk"), n=F("quantity"))
    rows.query.__class__ = StrangeQuery
    return rows


def closed() -> QuerySet[Any, Any]:
    return Order.objects.order_by().values(ref=F("pk"), n=Closed())


def closed_and_grouped() -> QuerySet[Any, Any]:
    return Order.objects.order_by().values(ref=F("customer")).annotate(n=Sum("quantity") + Closed())


def hidden_table() -> QuerySet[Any, Any]:
    name = connection.ops.quote_name(Customer._meta.db_table)
    hidden = Func(
        template=f"(SELECT COUNT(*) FROM {name} x)", output_field=models.IntegerField(), arity=0
    )
    return Order.objects.order_by().values(ref=F("pk"), n=hidden)


UNKNOWN = [
    (joined_sideways, "a join is a Sideways"),
    (strange_query, "its query is a StrangeQuery"),
    (closed, "AttributeError: 'Closed' object has no attribute 'parts'"),
    (hidden_table, f"its SQL names {Customer._meta.db_table}"),
]


def view_of(rows: Any, **options: Any) -> type[Any]:
    return derived_view(
        lambda cls: rows(), ref=key(), n=models.IntegerField(null=True), options=options
    )


def some_rows() -> None:
    someone = Customer.objects.create(name="someone")
    Order.objects.create(customer=someone, quantity=3, price=1, status="new", paid=True)


@pytest.mark.parametrize(("rows", "why"), UNKNOWN)
class TestWhatCannotBeLookedInto:
    def test_is_refreshed_in_full_from_a_staging_table(
        self, rows: Any, why: str, transactional_db: None
    ) -> None:
        view = view_of(rows)
        some_rows()

        with made(view):
            first, second = refreshed(view), refreshed(view)
            assert (first["insert"], second) == (1, {"insert": 0, "update": 0, "delete": 0})
            assert view.verify().equal
        plan = plan_of(registry.find(view), engine.alias())
        assert plan.strategy.staged
        assert not plan.strategy.is_incremental
        assert why in plan.strategy.reason
        assert why in tracking_of(plan).reason

    def test_is_told_by_a_check(self, rows: Any, why: str) -> None:
        view_of(rows)

        (warning,) = checks.check_sources()

        assert warning.id == "matviews.W020"
        assert warning.msg.startswith("shapes.Made: source() cannot be analysed (")
        assert why in warning.msg
        assert warning.msg.endswith("so every refresh is full and staged.")

    def test_concerns_no_other_view(self, rows: Any, why: str) -> None:
        view_of(rows)
        sound = derived_view(lambda cls: Tag.objects.values(ref=F("pk")), name="Sound", ref=key())

        tracked = tracked_tables(engine.alias())

        assert tracked.keys() == {Tag._meta.db_table}
        assert tables_read(registry.find(sound), engine.alias()) == {Tag._meta.db_table}
        assert [each.obj.__name__ for each in checks.check_sources()] == ["Made"]


def test_a_group_that_cannot_be_looked_into_is_refreshed_too(transactional_db: None) -> None:
    view = view_of(closed_and_grouped)
    some_rows()

    with made(view):
        assert refreshed(view)["insert"] == 1
        assert view.objects.get().n == 10


def test_a_table_hidden_in_sql_is_known_where_the_view_declares_it() -> None:
    view = view_of(hidden_table, depends_on={Customer: None})

    plan = plan_of(registry.find(view), engine.alias())

    assert tracking_of(plan).tables.keys() == {Order._meta.db_table, Customer._meta.db_table}
    assert checks.check_sources() == []


def test_a_subquery_whose_table_django_joins_when_it_compiles_is_tracked() -> None:
    tags = Tag.objects.order_by().filter(Exact(OuterRef("note"), OuterRef("status")))
    view = derived_view(
        lambda cls: Order.objects.order_by().filter(~models.Exists(tags)).values(ref=F("pk")),
        ref=key(),
    )  # fmt: skip

    plan = plan_of(registry.find(view), engine.alias())

    assert tracking_of(plan).tables.keys() == {Order._meta.db_table, Tag._meta.db_table}


def test_a_column_that_cannot_be_read_makes_the_view_invalid_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Untyped(Closed):
        def __init__(self) -> None:
            self.sql = "7"

        @property
        def output_field(self) -> Any:
            raise KeyError("no type")

    view_of(lambda: Order.objects.order_by().values(ref=F("pk"), n=Untyped()))

    (fault,) = checks.check_sources()

    assert fault.id == "matviews.W115"
    assert "KeyError: 'no type'" in fault.msg


# What reads no queryset, or is where reading ends.
NO_INSPECTION = {
    "looking", "inspect", "_not_inspected", "find_source", "read_source", "_called", "plain_name",
    "read_query", "source_fault", "_unreadable", "key_columns", "check_source", "check_table",
    "_warning", "_label", "problems_of_query", "fingerprint", "exact_fingerprint", "_digest",
    "tables_named", "project_locale", "_shown", "_is_float_aggregate", "is_values",
}  # fmt: skip
MODULES: list[ModuleType] = [
    import_module("matviews.queryset.analysis.dependencies"),
    source_query, tables, expressions, choose, lineage, links, fields, indexes, inspection,
    source, reading, source_checks, queryset_checks, sql_text,
]  # fmt: skip


def inspecting() -> Iterator[Any]:
    """Each function of these modules, by where it is looked up; every fourth but with --long."""
    for number, each in enumerate(_inspecting()):
        owner, name = each
        marks = [pytest.mark.long] if number % 4 else []
        yield pytest.param(*each, id=f"{owner.__name__.rpartition('.')[2]}.{name}", marks=marks)


def _inspecting() -> Iterator[tuple[Any, str]]:
    for module in MODULES:
        for name, value in vars(module).items():
            ours = getattr(value, "__module__", "").startswith("matviews.queryset")
            if name not in NO_INSPECTION and ours and python.isfunction(value):
                yield module, name
    for name in vars(source_query.SourceQuery):
        if name not in NO_INSPECTION and not name.startswith("__"):
            yield source_query.SourceQuery, name


@pytest.mark.only_on("sqlite", reason="the same on each database")
@pytest.mark.parametrize(("owner", "name"), list(inspecting()))
def test_whatever_raises_takes_down_no_command(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a view with most of what there is to look into, and a function that fails on it
    last = Tag.objects.order_by("-pk").filter(label=OuterRef("note")).values("label")[:1]
    view = derived_view(
        lambda cls: Order.objects.filter(Q(paid=True) | Q(quantity__gt=1))
        .values(ref=F("customer__region")).annotate(n=Count("pk"), text=models.Max(last)),
        ref=key(), n=models.IntegerField(null=True), text=models.CharField(max_length=9, null=True),
    )  # fmt: skip
    engine.sync_controls()
    control = ViewControl.objects.get(label="shapes.Made")
    control.fingerprints = {"insert": "another"}
    control.save()

    def fail(*_args: Any, **_options: Any) -> Any:
        raise AttributeError("it has no such attribute")

    is_property = isinstance(owner, type) and not callable(getattr(owner, name))
    monkeypatch.setattr(owner, name, property(fail) if is_property else fail)
    # When everything asks for it
    told = [*checks.check_views(), *checks.check_sources()]
    out = io.StringIO()
    for option in ("--list", "--explain"):
        with suppress(CommandError):
            call_command("update_materialized_views", option, stdout=out, stderr=out)
    tracked_tables(engine.alias())
    source_context(control, registry.find(view))
    engine.views_to_refresh()
    (status,) = engine.view_statuses(["shapes.Made"])
    # Then nothing is raised but what names the view
    assert all("shapes.Made" in str(each.msg) for each in told)
    if fault := fault_of(registry.find(view), engine.alias()):
        assert "shapes.Made" in fault
        assert (status.state, status.error) == (ViewState.INVALID, fault)
