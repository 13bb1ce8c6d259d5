"""Views with a row per row of a table: copied, filtered, joined, computed."""

# ruff: noqa: DJ001 - NULL and "" are different values, and views must keep them apart.

from typing import Any

from django.db import connection, models
from django.db.models import (
    Case,
    Count,
    Exists,
    F,
    FilteredRelation,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    Value,
    When,
)
from django.db.models.expressions import RawSQL
from django.db.models.fields.json import KT
from django.db.models.functions import (
    Cast,
    Coalesce,
    Concat,
    ExtractIsoWeekDay,
    ExtractYear,
    Length,
    Lower,
    Mod,
    NullIf,
    TruncYear,
)

from .base import Shape, identity, pointer
from .sources import Customer, NeverNull, Order, Product, by_bytes

__all__ = [
    "Basket",
    "Composed",
    "Copied",
    "Filtered",
    "Joined",
    "JsonKey",
    "JsonText",
    "LatestOrder",
    "Named",
    "OpenOrders",
    "OwnOrReferred",
    "Person",
    "ProductByBytes",
    "RawColumn",
]


class Copied(Shape):
    """A plain copy of every kind of column."""

    order = identity("Order")
    customer = pointer("Customer", null=True)
    product = pointer("Product", null=True)
    basket = models.UUIDField(null=True)
    quantity = models.IntegerField(null=True)
    slot = models.IntegerField(null=True)
    price = models.DecimalField(max_digits=9, decimal_places=3)
    weight = models.FloatField(null=True)
    status = models.CharField(max_length=10)
    note = models.TextField()
    paid = models.BooleanField()
    extra = models.JSONField(null=True)
    scan = models.BinaryField(null=True)
    placed_at = models.DateTimeField(null=True)
    shipped_on = models.DateField(null=True)
    took = models.DurationField(null=True)
    made = models.DateTimeField(auto_now_add=True, null=True)  # the source has no such column

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders())
        names = [field.name for field in Order._meta.fields if not field.primary_key]
        copies: QuerySet[Any, Any] = orders.values(*names, order=F("pk"))
        return copies


class Filtered(Shape):
    """Some orders; its primary key is the key, and one column is rounded on its way in."""

    order = identity("Order", primary_key=True)
    price = models.DecimalField(max_digits=9, decimal_places=1)

    class Meta:
        ordering = ["-price"]

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders(), price__gt=cls.query.bound - 1)
        return orders.values("price", order_id=F("pk"))


class Joined(Shape):
    """Columns of tables that orders point at, two foreign keys away, or at nothing."""

    order = identity("Order")
    buyer = models.CharField(max_length=40, null=True)
    nickname = NeverNull(max_length=40, null=True)
    region = models.CharField(max_length=40, null=True)
    referred_by = models.CharField(max_length=40, null=True)
    list_price = models.DecimalField(max_digits=10, decimal_places=2, null=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders()).select_related("customer")
        return orders.values(
            order=F("pk"),
            buyer=F("customer__name"),
            nickname=F("customer__nickname"),
            region=F("customer__region__name"),
            referred_by=F("customer__referrer__name"),
            list_price=F("product__price"),
        )


class Composed(Shape):
    """Columns that are computed from columns."""

    order = identity("Order")
    size = models.CharField(max_length=10)
    title = models.CharField(max_length=100)
    cost = models.DecimalField(max_digits=12, decimal_places=2, null=True)
    per_item = models.FloatField(null=True)
    letters = models.IntegerField()
    place = models.IntegerField()
    year = models.IntegerField(null=True)
    weekday = models.IntegerField(null=True)
    since = models.DateField(null=True)
    text = models.CharField(max_length=40, null=True)
    paid_up = models.BooleanField()
    tagged = models.BooleanField()

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        tags = Order.tags.through._base_manager.filter(order=OuterRef("pk"))
        return Order.objects.filter(cls.query.orders()).values(
            order=F("pk"),
            size=Case(
                When(quantity__gt=cls.query.bound, then=Value("big")),
                When(quantity=None, then=Value("")),
                default=Value("small %s"),
            ),
            title=Concat(Lower("customer__name"), Value(" - "), "status"),
            cost=F("price") * F("quantity"),
            per_item=Cast("weight", models.FloatField()) / NullIf("quantity", 0),
            letters=Length("note"),
            place=Coalesce("slot", "quantity", Value(0)) + Mod(F("pk"), 3),
            year=ExtractYear("placed_at", tzinfo=cls.query.zone()),
            weekday=ExtractIsoWeekDay("shipped_on"),
            since=TruncYear("shipped_on"),
            text=Cast("quantity", models.CharField(max_length=40)),
            paid_up=Case(When(Q(paid=True) & ~Q(note=""), then=Value(True)), default=Value(False)),
            tagged=Exists(tags),
        )


class JsonText(Shape):
    """JSON, and text from within it."""

    order = identity("Order")
    extra = models.JSONField(null=True)
    kind = models.TextField(null=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders())
        return orders.values("extra", order=F("pk"), kind=KT("extra__kind"))


class JsonKey(Shape):
    """JSON from within JSON."""

    order = identity("Order")
    kind = models.JSONField(null=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return Order.objects.filter(cls.query.orders()).values(order=F("pk"), kind=F("extra__kind"))


class RawColumn(Shape):
    """A column in raw SQL, with a parameter."""

    order = identity("Order")
    doubled = models.IntegerField(null=True)

    class MatviewMeta(Shape.MatviewMeta):
        tracking = False  # else every column of orders would count

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        slot = connection.ops.quote_name("slot")
        doubled = RawSQL(f"{slot} * %s", [cls.query.bound], models.IntegerField())
        return Order.objects.filter(cls.query.orders()).values(order=F("pk"), doubled=doubled)


class LatestOrder(Shape):
    """Correlated subqueries."""

    customer = identity("Customer")
    note = models.TextField(null=True)
    price = models.DecimalField(max_digits=9, decimal_places=3, null=True)
    spent = models.DecimalField(max_digits=20, decimal_places=2)
    referring = models.BooleanField()

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders(), customer=OuterRef("pk"))
        latest = orders.order_by("-pk")
        sums = orders.order_by().values("customer").annotate(sum=Sum("price")).values("sum")
        zero = Value(0, models.DecimalField())
        people = Customer.objects.all()
        if cls.query.form % 2:
            people = people.filter(~Exists(orders) | Q(active=True))
        return people.values(
            customer_id=F("pk"),
            note=Subquery(latest.values("note")[:1]),
            price=Subquery(latest.values("price")[:1]),
            spent=Coalesce(Subquery(sums), zero),
            referring=Exists(Customer.objects.filter(referrer=OuterRef("pk"))),
        )


class OwnOrReferred(Shape):
    """A subquery with two ways to a customer: their own orders, and those of whom they referred."""

    customer = identity("Customer")
    slot = models.IntegerField(null=True)
    any_dear = models.BooleanField()

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        either = Q(customer=OuterRef("pk")) | Q(customer__referrer=OuterRef("pk"))
        orders = Order.objects.filter(cls.query.orders(), either)
        dear = Q(product__price__gt=1)
        if cls.query.form % 2:
            dear = Q(customer=OuterRef("referrer"), slot=1) | Q(product__name=OuterRef("name"))
        return Customer.objects.values(
            customer_id=F("pk"),
            slot=Subquery(orders.order_by("-slot", "pk").values("slot")[:1]),
            any_dear=Exists(orders.order_by().filter(dear)),
        )


class OpenOrders(Shape):
    """A filtered relation, joined and counted."""

    customer = identity("Customer")
    open_orders = models.IntegerField()
    most = models.IntegerField(null=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        status = "ab"[cls.query.form % 2]
        opened = FilteredRelation("order", condition=Q(order__status=status))
        return (
            Customer.objects.annotate(opened=opened)
            .values(customer_id=F("pk"))
            .annotate(open_orders=Count("opened"), most=models.Max("opened__quantity"))
        )


class Person(Shape):
    """A key that is a UUID; a table, columns and a manager of its own."""

    token = models.UUIDField(unique=True, db_column="Token; --")
    name = models.CharField(max_length=40, db_column="select")
    nickname = NeverNull(max_length=40, null=True, db_column="nick name")
    active = models.BooleanField(null=True, db_column="Größe")

    objects = models.Manager.from_queryset(models.QuerySet)()

    class Meta:
        db_table = "shapes people; --"
        ordering = ["name"]

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        people = Customer.objects.all()
        if cls.query.form % 2:
            people = people.exclude(active=False)
        return people.values("token", "name", "nickname", "active")


class Basket(Shape):
    """A key that is a UUID, of several rows each, or of none."""

    basket = models.UUIDField(unique=True)
    orders = models.IntegerField()
    took = models.DurationField(null=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders())
        return orders.values("basket").annotate(orders=Count("pk"), took=Sum("took"))


class Named(Shape):
    """A key that is text, compared as the database compares text."""

    name = models.CharField(max_length=40, unique=True)
    people = models.IntegerField()

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        people = Customer.objects.all()
        if cls.query.form % 2:
            people = people.filter(Q(active=True) | Q(region=None))
        return people.values("name").annotate(people=Count("pk"))


class ProductByBytes(Shape):
    """A key that is text, compared by bytes, of a table that may compare it otherwise."""

    sku = models.CharField(max_length=40, unique=True, db_collation=by_bytes)
    name = models.TextField()
    price = models.DecimalField(max_digits=10, decimal_places=2, null=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return Product.objects.filter(~Q(price__lt=cls.query.bound)).values("sku", "name", "price")
