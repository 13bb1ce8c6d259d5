"""Views with a row per group of rows."""

# ruff: noqa: DJ001 - NULL and "" are different values, and views must keep them apart.

from typing import Any

from django.db import models
from django.db.models import Count, F, Q, QuerySet, Value

from tests.shapes.query import Query

from .base import Measured, Shape, identity, pointer
from .sources import Customer, Order, Product, Region, Tag

__all__ = [
    "BigSpender",
    "CustomerRegion",
    "CustomerStatus",
    "CustomerTotal",
    "DayRegion",
    "DayStatus",
    "DayTotal",
    "MomentTotal",
    "OrdersOfCustomer",
    "Overall",
    "ProductTotal",
    "QuantityTotal",
    "ReferredSlot",
    "RegionDay",
    "RegionTotal",
    "SlotRegion",
    "SlotTotal",
    "TagRegion",
    "TagTotal",
    "ViewOfView",
]


class CustomerTotal(Measured):
    """Orders by a foreign key, which may be NULL."""

    customer = identity("Customer")

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders())
        return orders.values("customer").annotate(**cls.query.measures())


class OrdersOfCustomer(Measured):
    """From the one side: customers without an order have a row too."""

    customer = identity("Customer")

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        people = Customer.objects.values(customer_id=F("pk"))
        if cls.query.form % 2:
            people = people.filter(cls.query.orders("order__"))
        return people.annotate(**cls.query.measures("order__"))


class RegionTotal(Measured):
    """Two to-many relations away; aggregates that are filtered."""

    region = identity("Region")
    unpaid = models.IntegerField()

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        at = "customer__order__"
        return Region.objects.values(region_id=F("pk")).annotate(
            unpaid=Count(f"{at}pk", filter=Q(customer__order__paid=False) & cls.query.orders(at)),
            **cls.query.measures(at),
        )


class TagTotal(Measured):
    """Through a many-to-many relation."""

    tag = identity("Tag")

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return Tag.objects.values(tag=F("pk")).annotate(**cls.query.measures("order__"))


class ProductTotal(Measured):
    """A key that is text and somebody's primary key; a condition on groups and on rows."""

    product = identity("Product")
    list_price = models.DecimalField(max_digits=12, decimal_places=1, null=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        at = "order__"
        products = Product.objects.values(product=F("sku"), list_price=F("price") * 2)
        totals: QuerySet[Any, Any] = products.annotate(**cls.query.measures(at))
        return totals.filter(orders__gte=cls.query.bound)


class BigSpender(Measured):
    """HAVING."""

    customer = identity("Customer")

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders()).values("customer_id")
        totals = orders.annotate(**cls.query.measures())
        limits = [Q(money__gt=cls.query.bound), Q(orders__lte=cls.query.bound), Q(total=None)]
        return totals.filter(limits[cls.query.form % len(limits)])


class SlotTotal(Measured):
    """A whole number with an index as the key: negative, sparse, dense or NULL."""

    slot = models.IntegerField(unique=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders())
        return orders.values("slot").annotate(**cls.query.measures())


class QuantityTotal(Measured):
    """A whole number without an index as the key."""

    quantity = models.IntegerField(unique=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders())
        return orders.values("quantity").annotate(**cls.query.measures())


class DayStatus(Measured):
    """Two columns that an index begins with."""

    shipped_on = models.DateField()
    status = models.CharField(max_length=10)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["shipped_on", "status"], name="shapes_day_status")
        ]

    class MatviewMeta(Shape.MatviewMeta):
        key = ["shipped_on", "status"]

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders())
        return orders.values("shipped_on", "status").annotate(**cls.query.measures())


class CustomerStatus(Measured):
    """A composite primary key."""

    pk = models.CompositePrimaryKey("customer_id", "status")
    customer = pointer("Customer")
    status = models.CharField(max_length=10)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders())
        return orders.values("customer", "status").annotate(**cls.query.measures())


class RegionDay(Measured):
    """A key with columns of two tables."""

    region = pointer("Region")
    shipped_on = models.DateField()

    class Meta:
        unique_together = [("shipped_on", "region")]

    class MatviewMeta(Shape.MatviewMeta):
        key = ["region", "shipped_on"]

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders())
        groups = orders.values("shipped_on", region=F("customer__region"))
        return groups.annotate(**cls.query.measures())


class SlotRegion(Measured):
    """A key with columns of two tables, and one between them; a condition on groups, or none."""

    slot = models.IntegerField()
    name = models.CharField(max_length=40)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["name", "slot"], name="shapes_slot_region")]

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders())
        groups = orders.values("slot", name=F("customer__region__name"))
        return _some(groups.annotate(**cls.query.measures()), cls.query)


class DayRegion(Measured):
    """A key of a moment's day and a column of another table; a condition on groups, or none."""

    day = models.DateField()
    region = pointer("Region")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["day", "region"], name="shapes_day_region")]

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders())
        groups = orders.values(day=cls.query.day("placed_at"), region=F("customer__region"))
        return _some(groups.annotate(**cls.query.measures()), cls.query)


class TagRegion(Measured):
    """A key of columns at both ends of a path, from the one side; tables between join late."""

    region = pointer("Region")
    tag = pointer("Tag")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["region", "tag"], name="shapes_tag_region")]

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        at = "customer__order__"
        regions = Region.objects.values(region_id=F("pk"), tag_id=F(f"{at}tags"))
        return _some(regions.annotate(**cls.query.measures(at)), cls.query)


class ReferredSlot(Measured):
    """A key with columns of two tables of which no row belongs to one of the other."""

    slot = models.IntegerField()
    home = pointer("Region")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["slot", "home"], name="shapes_referred")]

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        people = Customer.objects.values(slot=F("order__slot"), home=F("customer__region"))
        return _some(people.annotate(**cls.query.measures("order__")), cls.query)


def _some(groups: QuerySet[Any, Any], query: Query) -> QuerySet[Any, Any]:
    """All groups, or those that fulfil a condition."""
    limits = [Q(), Q(orders__lte=query.bound), Q(money__gt=query.bound)]
    return groups.filter(limits[query.form % len(limits)])


class CustomerRegion(Measured):
    """More groups than keys: the name beside the key depends on it."""

    customer = identity("Customer")
    region = pointer("Region", null=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders())
        groups = orders.values("customer", region=F("customer__region"))
        return groups.annotate(**cls.query.measures())


class DayTotal(Measured):
    """The day of a moment as the key."""

    day = models.DateField(unique=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders())
        return orders.values(day=cls.query.day("placed_at")).annotate(**cls.query.measures())


class MomentTotal(Measured):
    """The hour, day, week, month or year of a moment as the key, which is a moment itself."""

    moment = models.DateTimeField(unique=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        # Without NULL, which Django cannot read from a MariaDB that has no time zones.
        orders = Order.objects.filter(cls.query.orders(), placed_at__isnull=False)
        return orders.values(moment=cls.query.moment("placed_at")).annotate(**cls.query.measures())


class Overall(Measured):
    """One row for everything."""

    name = models.CharField(max_length=10, unique=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders()).order_by()
        return orders.values(name=Value("all")).annotate(**cls.query.measures())


class ViewOfView(Shape):
    """A source that is the table of another view."""

    customer = identity("Customer")
    orders = models.IntegerField()
    buyer = models.CharField(max_length=40, null=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        totals = CustomerTotal.objects.filter(orders__gte=cls.query.bound)
        return totals.values("customer", "orders", buyer=F("customer__name"))
