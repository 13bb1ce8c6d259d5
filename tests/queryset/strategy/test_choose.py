"""What a `source()` may be made of, construct by construct: windowed, staged or refused.

The table of docs/queryset-views.md has a row for each example here, and no other.
"""

# ruff: noqa: N806 - variables that are models

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import connection, models
from django.db.models import (
    Case,
    Count,
    Exists,
    F,
    FilteredRelation,
    Func,
    Max,
    Min,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    Value,
    When,
    Window,
)
from django.db.models.expressions import RawSQL
from django.db.models.fields.json import KT
from django.db.models.functions import (
    Coalesce,
    Concat,
    ExtractYear,
    Lower,
    Now,
    RowNumber,
    TruncDate,
    TruncMonth,
)

from matviews.phases import Phase
from matviews.queryset import plan_of
from matviews.queryset.analysis.reading import find_source
from matviews.registry import registry
from matviews.states import RefreshState
from tests import ROOT
from tests.helpers import view_classes
from tests.helpers.tables import alone, derived_view, made, model, refreshed, unique
from tests.shapes.models import Customer, Order, Product, Tag
from tests.shapes.shop import Shop

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

PAGE = ROOT / "docs" / "queryset-views.md"
DATABASES = {"postgresql": "PostgreSQL", "mysql": "MariaDB", "sqlite": "SQLite"}
NOTHING = dict.fromkeys(Phase, 0)

Models = dict[str, type[Any]]
Made = Callable[[type[Any]], Any]

WINDOWED, STAGED, REFUSED = "windowed", "staged", "refused"


@dataclass(frozen=True, kw_only=True)
class Example:
    """A view of one construct.

    Attributes:
        construct: what the page calls it.
        path: windowed, staged or refused.
        elsewhere: the same for databases on which it is another.
        says: a part of the reason or of the problem and its hint.
        source: what `source()` returns; `cls.given` has the models of `given`.
        given: makes models for it, with rows.
        members: the view's fields; `ref` is the key.
        meta: more of its `Meta`.
        options: more of its `MatviewMeta`.
    """

    construct: str
    path: str
    source: Made
    elsewhere: dict[str, str] = field(default_factory=dict)
    says: str = ""
    given: Callable[[], Models] = dict
    key: list[str] = field(default_factory=lambda: ["ref"])
    meta: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    members: dict[str, Any] = field(default_factory=dict)

    @property
    def here(self) -> str:
        """The path on the database of this run."""
        return self.elsewhere.get(connection.vendor, self.path)

    @property
    def shown(self) -> str:
        """The path, as the page has it."""
        if not self.elsewhere:
            return self.path
        (other,) = set(self.elsewhere.values())
        names = " and ".join(DATABASES[vendor] for vendor in self.elsewhere)
        return f"{self.path}; {other} on {names}"


EXAMPLES: dict[str, Example] = {}


def example(construct: str, path: str, **options: Any) -> Callable[[Made], Made]:
    """Add an example. Options are those of `Example`, and fields of the view."""
    known = {name: options.pop(name) for name in Example.__dataclass_fields__ if name in options}

    def add(source: Made) -> Made:
        assert construct not in EXAMPLES
        EXAMPLES[construct] = Example(
            construct=construct, path=path, source=source, members=options, **known
        )
        return source

    return add


def number(**options: Any) -> Any:
    return models.BigIntegerField(**{"null": True, **options})


def text(**options: Any) -> Any:
    return models.TextField(**{"null": True, **options})


# What windows commute with.


@example(
    "aggregates: Count, Sum, Avg, Min, Max", WINDOWED, n=number(), total=number(), low=number()
)
def _(cls: Any) -> Any:
    orders = Order.objects.values(ref=F("customer"))
    return orders.annotate(n=Count("pk"), total=Sum("quantity"), low=Min("slot"))


@example("`filter=` of an aggregate", WINDOWED, n=number())
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("customer")).annotate(n=Count("pk", filter=Q(paid=True)))


@example("a foreign key followed forward", WINDOWED, n=text(), m=text())
def _(cls: Any) -> Any:
    names = {"n": F("customer__name"), "m": F("customer__region__name")}
    return Order.objects.values(ref=F("pk"), **names)


@example("a foreign key followed backward", WINDOWED, n=number())
def _(cls: Any) -> Any:
    return Customer.objects.values(ref=F("pk")).annotate(n=Count("order"))


@example("a many-to-many relation", WINDOWED, n=number())
def _(cls: Any) -> Any:
    return Tag.objects.values(ref=F("pk")).annotate(n=Sum("order__quantity"))


@example("`Case`, `When`", WINDOWED, n=text())
def _(cls: Any) -> Any:
    size = Case(When(quantity__gt=1, then=Value("big")), default=Value("small"))
    return Order.objects.values(ref=F("pk"), n=size)


@example("`Coalesce`", WINDOWED, n=number())
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("pk"), n=Coalesce("slot", "quantity", Value(0)))


@example("arithmetic with `F`", WINDOWED, n=number())
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("pk"), n=F("quantity") * 2 - F("pk"))


@example("`Exists`, `OuterRef`", WINDOWED, n=models.BooleanField())
def _(cls: Any) -> Any:
    orders = Order.objects.filter(customer=OuterRef("pk"), paid=True)
    return Customer.objects.filter(~Exists(orders) | Q(active=True)).values(
        ref=F("pk"), n=Exists(orders)
    )


@example("a correlated `Subquery`, sliced or not", WINDOWED, n=text())
def _(cls: Any) -> Any:
    latest = Order.objects.filter(customer=OuterRef("pk")).order_by("-pk")
    return Customer.objects.values(ref=F("pk"), n=Subquery(latest.values("note")[:1]))


@example("`FilteredRelation`", WINDOWED, n=number())
def _(cls: Any) -> Any:
    paid = FilteredRelation("order", condition=Q(order__paid=True))
    people = Customer.objects.annotate(bought=paid).values(ref=F("pk"))
    return people.annotate(n=Count("bought"))


@example(
    "`Trunc...`, `Extract...` as a value", WINDOWED, n=models.DateTimeField(null=True), m=number()
)
def _(cls: Any) -> Any:
    orders = Order.objects.filter(placed_at__isnull=False)
    return orders.values(ref=F("pk"), n=TruncMonth("placed_at"), m=ExtractYear("placed_at"))


@example("`Func`, `Concat`, `Lower`", WINDOWED, n=text(), m=text())
def _(cls: Any) -> Any:
    upper = Func("status", function="UPPER", output_field=models.TextField())
    title = Concat(Lower("customer__name"), Value(" - "), "status", output_field=models.TextField())
    return Order.objects.values(ref=F("pk"), n=upper, m=title)


@example("a JSON field", WINDOWED, n=models.JSONField(null=True))
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("pk"), n=F("extra"))


@example("text from within JSON: `KT(...)`", WINDOWED, n=text())
def _(cls: Any) -> Any:
    return Order.objects.filter(extra__kind="a").values(ref=F("pk"), n=KT("extra__kind"))


@example(
    "JSON from within JSON: `F(\"extra__kind\")`", WINDOWED, elsewhere={"sqlite": REFUSED},
    n=models.JSONField(null=True),
)  # fmt: skip
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("pk"), n=F("extra__kind"))


@example("decimals", WINDOWED, n=models.DecimalField(max_digits=20, decimal_places=3, null=True))
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("customer")).annotate(n=Sum("price"))


@example("dates and times with time zones, durations",
         WINDOWED,
         n=models.DateTimeField(null=True), m=models.DurationField(null=True))  # fmt: skip
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("customer")).annotate(n=Max("placed_at"), m=Sum("took"))


@example("a UUID as the key", WINDOWED, ref=models.UUIDField(unique=True), n=number())
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("basket")).annotate(n=Count("pk"))


@example("text as the key", WINDOWED, ref=models.CharField(max_length=40, unique=True), n=number())
def _(cls: Any) -> Any:
    return Customer.objects.values(ref=F("name")).annotate(n=Count("pk"))


@example("a key of several columns of one table", WINDOWED, key=["ref", "status"],
         meta=unique("ref", "status"), ref=models.BigIntegerField(),
         status=models.CharField(max_length=10), n=number())  # fmt: skip
def _(cls: Any) -> Any:
    return Order.objects.values("status", ref=F("customer")).annotate(n=Count("pk"))


@example("a composite primary key of the view", WINDOWED, key=["ref", "status"],
         pk=models.CompositePrimaryKey("ref", "status"), ref=models.BigIntegerField(),
         status=models.CharField(max_length=10), n=number())  # fmt: skip
def _(cls: Any) -> Any:
    return Order.objects.values("status", ref=F("customer")).annotate(n=Count("pk"))


@example("a filter on an aggregate (HAVING)", WINDOWED, n=number())
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("customer")).annotate(n=Count("pk")).filter(n__gt=1)


@example("`.distinct()`", WINDOWED)
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("customer")).distinct()


@example("`.alias()`", WINDOWED, n=number())
def _(cls: Any) -> Any:
    orders = Order.objects.alias(double=F("quantity") * 2).filter(double__gt=0)
    return orders.values(ref=F("pk"), n=F("double"))


@example("`.none()`, and filters that exclude everything", WINDOWED, n=number())
def _(cls: Any) -> Any:
    return Order.objects.filter(pk__in=[]).values(ref=F("customer")).annotate(n=Count("pk"))


@example("`.only()`, `.defer()`, `.select_related()` before `.values()`", WINDOWED, n=text())
def _(cls: Any) -> Any:
    return Order.objects.select_related("customer").only("pk").values(ref=F("pk"), n=F("note"))


@example("`Meta.ordering` and `.order_by()` without a slice: cleared", WINDOWED, n=number())
def _(cls: Any) -> Any:
    return Order.objects.order_by("note").values(ref=F("customer")).annotate(n=Count("pk"))


@example("a union inside a subquery", WINDOWED, n=text())
def _(cls: Any) -> Any:
    paid = Order.objects.order_by().filter(paid=True).values("customer")
    dear = Order.objects.order_by().filter(price__gt=1).values("customer")
    return Customer.objects.filter(pk__in=paid.union(dear)).values(ref=F("pk"), n=F("name"))


@example("a window function inside a subquery", WINDOWED, n=number())
def _(cls: Any) -> Any:
    place = Window(RowNumber(), partition_by=["customer"], order_by=["pk"])
    first = Order.objects.order_by().annotate(place=place).filter(place=1).values("pk")
    return Order.objects.filter(pk__in=first).values(ref=F("pk"), n=F("slot"))


@example("`Now()`, `timezone.now()` in a filter (`matviews.W006`)", WINDOWED, n=number())
def _(cls: Any) -> Any:
    recent = Order.objects.filter(placed_at__gt=Now() - timedelta(days=10**4))
    return recent.values(ref=F("customer")).annotate(n=Count("pk"))


class Hiding(models.Manager):  # type: ignore[type-arg]
    """Hides rows."""

    def get_queryset(self) -> QuerySet[Any, Any]:
        return super().get_queryset().filter(hidden=False)


def _with_hidden_rows() -> Models:
    Post = model(
        "Post", hidden=models.BooleanField(), n=number(), objects=Hiding(),
        meta={"base_manager_name": "objects"},
    )  # fmt: skip
    return {"Post": Post}


def _fill_posts(given: Models) -> None:
    posts = [given["Post"](pk=key, hidden=key % 2, n=key) for key in range(1, 9)]
    given["Post"]._base_manager.bulk_create(posts)


@example("default managers that hide rows", WINDOWED,
         given=_with_hidden_rows, n=number())  # fmt: skip
def _(cls: Any) -> Any:
    return cls.given["Post"].objects.values("n", ref=F("pk"))


def _inheriting() -> Models:
    Place = model("Place", title=models.CharField(max_length=10))
    Bar = model("Bar", bases=(Place,), beers=models.IntegerField())
    return {"Place": Place, "Bar": Bar}


def _fill_bars(given: Models) -> None:
    given["Place"].objects.create(title="square")
    for beers in range(5):
        given["Bar"].objects.create(title=f"bar {beers}", beers=beers)


@example("multi-table inheritance of the source", WINDOWED, given=_inheriting, n=text(), m=number())
def _(cls: Any) -> Any:
    return cls.given["Bar"].objects.values(ref=F("pk"), n=F("title"), m=F("beers"))


def _proxy() -> Models:
    Paid = model("Paid", bases=(Order,), meta={"proxy": True})
    return {"Paid": Paid}


@example("a proxy as the source", WINDOWED, given=_proxy, n=text())
def _(cls: Any) -> Any:
    return cls.given["Paid"].objects.filter(paid=True).values(ref=F("pk"), n=F("note"))


def _labels() -> Models:
    Label = model(
        "Label", title=models.CharField(max_length=10), object_id=models.IntegerField(),
        content_type=models.ForeignKey(ContentType, models.CASCADE), of=GenericForeignKey(),
    )  # fmt: skip
    Thing = model("Thing", labels=GenericRelation(Label))
    return {"Label": Label, "Thing": Thing}


def _fill_labels(given: Models) -> None:
    for key in range(1, 5):
        thing = given["Thing"].objects.create(pk=key)
        for name in "ab"[: key % 3]:
            given["Label"].objects.create(of=thing, title=name)
    given["Label"].objects.create(of=ContentType.objects.get_for_model(Order), title="c")


@example("`GenericRelation`", WINDOWED, given=_labels, n=number())
def _(cls: Any) -> Any:
    return cls.given["Thing"].objects.values(ref=F("pk")).annotate(n=Count("labels"))


def _tenants() -> Models:
    Tenant = model(
        "Tenant", pk=models.CompositePrimaryKey("number", "code"), number=models.IntegerField(),
        code=models.CharField(max_length=10), n=number(),
    )  # fmt: skip
    return {"Tenant": Tenant}


def _fill_tenants(given: Models) -> None:
    for key in range(8):
        given["Tenant"].objects.create(number=key % 3, code=f"c{key}", n=key)


@example("a composite primary key of the source", WINDOWED, given=_tenants, key=["ref", "code"],
         meta=unique("ref", "code"), ref=models.IntegerField(),
         code=models.CharField(max_length=10), n=number())  # fmt: skip
def _(cls: Any) -> Any:
    return cls.given["Tenant"].objects.values("code", "n", ref=F("number"))


@example("`db_table`, `db_column`", WINDOWED, ref=models.CharField(
    max_length=40, unique=True, db_column="order"), n=text(db_column="from"),
    meta={"db_table": "made table"})  # fmt: skip
def _(cls: Any) -> Any:
    return Product.objects.values(ref=F("sku"), n=F("name"))


def _other_view() -> Models:
    Totals = derived_view(
        lambda cls: Order.objects.values(ref=F("customer")).annotate(n=Count("pk")),
        name="Totals", ref=models.BigIntegerField(unique=True), n=number(),
    )  # fmt: skip
    return {"Totals": Totals}


@example("another view", WINDOWED, given=_other_view, m=number())
def _(cls: Any) -> Any:
    return cls.given["Totals"].objects.filter(n__gt=1).values("ref", m=F("n") * 2)


@example("values only, without an aggregate, of a unique key", WINDOWED,
         ref=models.UUIDField(unique=True), n=text())  # fmt: skip
def _(cls: Any) -> Any:
    return Customer.objects.values(ref=F("token"), n=F("name"))


# What is evaluated as a whole.


@example("a key without an index (`matviews.W007`)", STAGED, says="no index", n=number())
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("quantity")).annotate(n=Count("pk"))


@example("a key that is computed: `TruncDate(...)`, `Lower(...)`, a constant", STAGED,
         says="computed", ref=models.DateField(unique=True), n=number())  # fmt: skip
def _(cls: Any) -> Any:
    return Order.objects.values(ref=TruncDate("placed_at")).annotate(n=Count("pk"))


@example("a key spread over several tables", STAGED, says="several tables", key=["ref", "status"],
         meta=unique("ref", "status"), ref=models.BigIntegerField(),
         status=models.CharField(max_length=10), n=number())  # fmt: skip
def _(cls: Any) -> Any:
    return Order.objects.values("status", ref=F("customer__region")).annotate(n=Count("pk"))


@example("a key that has another type in the view", STAGED, says="another type",
         ref=models.DecimalField(max_digits=12, decimal_places=0, unique=True),
         n=number())  # fmt: skip
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("slot")).annotate(n=Count("pk"))


@example("a key that cannot be shown to be unique in the source", STAGED, says="cannot be proved",
         n=text())  # fmt: skip
def _(cls: Any) -> Any:
    latest = Order.objects.order_by().values("customer").annotate(latest=Max("pk")).values("latest")
    return Order.objects.filter(pk__in=latest).values(ref=F("customer"), n=F("note"))


@example("`UNION`", STAGED, says="UNION", n=text())
def _(cls: Any) -> Any:
    orders = Order.objects.order_by().values(ref=F("pk"), n=F("note"))
    people = Customer.objects.order_by().values(ref=F("pk") * -1000, n=F("name"))
    return orders.union(people)


@example("`INTERSECT`", STAGED, says="INTERSECT", n=text())
def _(cls: Any) -> Any:
    orders = Order.objects.order_by().values(ref=F("pk"), n=F("note"))
    return orders.intersection(orders.filter(paid=True))


@example("`EXCEPT`", STAGED, says="EXCEPT", n=text())
def _(cls: Any) -> Any:
    orders = Order.objects.order_by().values(ref=F("pk"), n=F("note"))
    return orders.difference(orders.filter(paid=True))


@example("a slice", STAGED, says="slice", n=number())
def _(cls: Any) -> Any:
    orders = Order.objects.exclude(customer=None).values(ref=F("customer"))
    return orders.annotate(n=Count("pk")).order_by("-n", "ref")[:3]


@example("a window function", STAGED, says="window function", n=number())
def _(cls: Any) -> Any:
    place = Window(RowNumber(), partition_by=["customer"], order_by=["pk"])
    return Order.objects.values(ref=F("pk"), n=place)


@example("a filter on a window function", STAGED, says="window function", n=number())
def _(cls: Any) -> Any:
    place = Window(RowNumber(), partition_by=["customer"], order_by=["pk"])
    return Order.objects.order_by().annotate(n=place).filter(n=1).values("n", ref=F("pk"))


@example("HAVING under a window function", STAGED, says="window function", n=number(), m=number())
def _(cls: Any) -> Any:
    totals = Order.objects.order_by().values(ref=F("customer")).annotate(n=Count("pk"))
    ranked = totals.filter(n__gt=1)
    return ranked.annotate(m=Window(RowNumber(), order_by=[F("n").desc(), F("customer")]))


@example("`DISTINCT ON`: `.distinct(\"customer_id\")`", STAGED,
         elsewhere={"mysql": REFUSED, "sqlite": REFUSED}, n=number())  # fmt: skip
def _(cls: Any) -> Any:
    orders = Order.objects.order_by("customer_id", "pk").distinct("customer_id")
    return orders.values(ref=F("customer"), n=F("pk"))


@example("`RawSQL`", STAGED, says="raw SQL", options={"depends_on": {}}, n=number())
def _(cls: Any) -> Any:
    slot = connection.ops.quote_name("slot")
    return Order.objects.values(ref=F("pk"), n=RawSQL(f"{slot} * %s", [2], models.IntegerField()))


@example("`.extra()`", STAGED, says="raw SQL", options={"depends_on": {}}, n=number())
def _(cls: Any) -> Any:
    return Order.objects.extra(where=["slot > %s"], params=[0]).values(ref=F("pk"), n=F("slot"))


# What is refused.


@example(
    "`RawSQL`, `.extra()`, if `MatviewMeta` has no `depends_on`",
    REFUSED,
    says="depends_on",
    n=number(),
)
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("pk"), n=RawSQL("1", [], models.IntegerField()))


@example("a queryset of objects", REFUSED, says="End it with .values(...)")
def _(cls: Any) -> Any:
    return Order.objects.all()


@example("`.values_list()`", REFUSED, says="End it with .values(...)")
def _(cls: Any) -> Any:
    return Order.objects.values_list("pk")


@example("`.dates()`, `.datetimes()`", REFUSED, says="End it with .values(...)")
def _(cls: Any) -> Any:
    return Order.objects.dates("shipped_on", "month")


@example("`.raw()`", REFUSED, says="End it with .values(...)")
def _(cls: Any) -> Any:
    return Order.objects.raw("SELECT id AS ref FROM shapes_order")


@example("a list, or nothing at all", REFUSED, says="must return a queryset")
def _(cls: Any) -> Any:
    return [{"ref": 1}]


@example("`.defer()`, `.only()` after `.values()`", REFUSED, says="raised TypeError")
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("pk")).defer("note")


@example("`.select_for_update()`", REFUSED, says="Remove .select_for_update()")
def _(cls: Any) -> Any:
    return Order.objects.select_for_update().values(ref=F("pk"))


@example('`.using("other")`', REFUSED, says="Remove .using()")
def _(cls: Any) -> Any:
    return Order.objects.using("other").values(ref=F("pk"))


@example("the view's own table", REFUSED, says="reads the view's own table", n=number())
def _(cls: Any) -> Any:
    taken = cls.objects.values("ref")
    return Order.objects.exclude(pk__in=taken).values(ref=F("pk"))


@example("a view that inherits from a model with a table", REFUSED, says="Make the parent abstract",
         given=_inheriting, inherits="Place")  # fmt: skip
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("pk"))


@example("a column that no field of the view holds", REFUSED, says="Did you mean n?", n=number())
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("pk"), nn=F("slot"))


@example("a field that no column fills, and that cannot be left out", REFUSED,
         says="no column for the field n", n=number(null=False))  # fmt: skip
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("pk"))


@example("a column of another type than its field", REFUSED, says="Convert it", n=number())
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("pk"), n=F("note"))


@example("a column whose type Django cannot tell", REFUSED, says="output_field", n=number())
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("pk"), n=F("price") * F("weight"))


@example("a key that may be NULL in the view", REFUSED, says="is nullable",
         ref=number(unique=True))  # fmt: skip
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("slot"))


@example("a key that is JSON or binary", REFUSED, says="holds JSON",
         ref=models.JSONField(unique=True))  # fmt: skip
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("extra"))


@example("a key without a unique constraint", REFUSED, says="no unique constraint covers its key",
         ref=models.IntegerField())  # fmt: skip
def _(cls: Any) -> Any:
    return Order.objects.values(ref=F("pk"))


FILLS: dict[Any, Callable[[Models], Any]] = {
    _with_hidden_rows: _fill_posts,
    _inheriting: _fill_bars,
    _labels: _fill_labels,
    _tenants: _fill_tenants,
    _other_view: lambda given: refreshed(given["Totals"]),
}


@pytest.fixture
def shop() -> Iterator[Shop]:
    with alone():
        yield Shop()


def view_of(each: Example) -> type[Any]:
    """The view of an example, without its table."""
    members = dict(each.members)
    given = each.given()
    parent = members.pop("inherits", None)
    ref: dict[str, Any] = {} if "ref" in members else {"ref": models.BigIntegerField(unique=True)}
    bases = (given[parent],) if parent else (models.Model,)
    return derived_view(
        each.source,
        key=each.key,
        meta=each.meta,
        options=each.options,
        bases=bases,
        given=given,
        **ref,
        **clone(members),
    )


def clone(members: dict[str, Any]) -> dict[str, Any]:
    """The same members; fields belong to one model only."""
    copies = {}
    for name, member in members.items():
        copies[name] = member.clone() if isinstance(member, models.Field) else member
    return copies


def rows(queryset: Any, fields: list[str], key: list[str]) -> dict[Any, Any]:
    found = {}
    for row in queryset:
        named = {name: _plain(row[name]) for name in fields}
        if None not in (identity := tuple(named[name] for name in key)):
            found[identity] = named
    return found


def _unordered(source: Any) -> Any:
    """A source as the view sees it: Django would group by what an ordering names, too."""
    chosen_by_order = source.query.is_sliced or source.query.distinct_fields
    return source if chosen_by_order else source.order_by()


def _plain(value: Any) -> Any:
    if isinstance(value, str) and connection.vendor == "mysql":
        return value.rstrip().casefold()  # of a group's spellings, any one may stand for it
    return round(value, 3) if isinstance(value, (float, Decimal)) else value


@pytest.mark.parametrize("construct", [c for c, e in EXAMPLES.items() if e.path != REFUSED])
def test_a_view_of_each_construct_equals_its_source(construct: str, shop: Shop) -> None:
    each = EXAMPLES[construct]
    if each.here == REFUSED:
        pytest.skip("refused here, which another test shows")
    # Given a view of the construct
    view = view_of(each)
    chance = random.Random(construct)
    shop.fill(chance)
    tables = [each for each in (*view.given.values(), view) if not each._meta.proxy]
    with made(*tables):
        if each.given in FILLS:
            FILLS[each.given](view.given)
        path = plan_of(registry.find(view), "default").strategy
        assert (path.name, each.says in path.reason) == (each.here, True), path.reason
        names = [f.attname for f in view._meta.concrete_fields if f.attname != "id"]
        for _ in range(2):
            # When it is refreshed, in many small batches, then it has the rows of its source
            refreshed(view, batch_size=8)
            expected = rows(_unordered(view.source()), names, each.key)
            assert rows(view._base_manager.values(*names), names, each.key) == expected
            # And another refresh writes nothing
            assert refreshed(view) == NOTHING
            shop.stir(chance)


@pytest.mark.parametrize("construct", [c for c, e in EXAMPLES.items() if e.path == REFUSED])
def test_what_is_refused_says_why_and_the_way_out(construct: str, shop: Shop) -> None:
    assert_refused(EXAMPLES[construct])


@pytest.mark.parametrize("construct", [c for c, e in EXAMPLES.items() if e.elsewhere])
def test_what_a_database_cannot_do_is_refused_there(construct: str, shop: Shop) -> None:
    each = EXAMPLES[construct]
    if each.here != REFUSED:
        pytest.skip("works here")
    assert_refused(each)


def assert_refused(each: Example) -> None:
    source, problems = find_source(registry.find(view_of(each)), "default")

    assert source is None
    assert problems
    assert all(re.fullmatch(r"matviews\.W11[5-9]", problem.id or "") for problem in problems)
    assert any(each.says in f"{problem.msg} {problem.hint}" for problem in problems), problems


def test_a_refused_view_fails_with_the_reason_and_the_others_do_not(shop: Shop) -> None:
    view = view_of(EXAMPLES["`.select_for_update()`"])
    with made(view):
        refresh = view_classes.run(view)

    assert refresh.state == RefreshState.FAILED
    assert "Remove .select_for_update()" in refresh.error


def test_the_page_has_the_examples_and_no_other() -> None:
    section = PAGE.read_text().partition("## What a queryset may contain")[2].partition("\n## ")[0]
    table = re.findall(r"^\| (.+?) \| (.+?) \|", section, re.M)[1:]

    assert dict(table) == {construct: each.shown for construct, each in EXAMPLES.items()}
    assert len(table) == len(EXAMPLES)
