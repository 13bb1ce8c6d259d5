"""Views whose source cannot be cut into ranges of keys: it is evaluated as a whole."""

from typing import Any

from django.db import models
from django.db.models import Count, F, QuerySet, Sum, Value, Window
from django.db.models.functions import Cast, Rank, RowNumber

from .base import Shape, identity, pointer
from .sources import Customer, Order, Product

__all__ = ["BestSold", "Everything", "Ranked", "Seen"]


class Everything(Shape):
    """A union of two tables."""

    kind = models.CharField(max_length=10)
    ref = models.CharField(max_length=40)
    label = models.TextField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["kind", "ref"], name="shapes_everything_key")
        ]

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        number = Cast("pk", models.CharField(max_length=40))
        people = Customer.objects.order_by().values(
            kind=Value("customer"), ref=number, label=Cast("name", models.TextField())
        )
        products = Product.objects.filter(price__gte=cls.query.bound).values(
            kind=Value("product"), ref=F("sku"), label=F("name")
        )
        return people.union(products, all=bool(cls.query.form % 2))


class Ranked(Shape):
    """Window functions, and a condition on one."""

    order = identity("Order")
    place = models.IntegerField()
    running = models.DecimalField(max_digits=20, decimal_places=2, null=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        by_customer: dict[str, Any] = {"partition_by": [F("customer")]}
        place = [
            Window(RowNumber(), order_by=["-price", "pk"], **by_customer),
            Window(Rank(), order_by=["-price"]),
            Window(Count("pk"), **by_customer),
        ]
        orders = Order.objects.filter(cls.query.orders()).order_by()
        ranked = orders.annotate(
            place=place[cls.query.form % len(place)],
            running=Window(Sum("price"), order_by=["pk"], **by_customer),
        )
        if cls.query.bound:
            ranked = ranked.filter(place__lte=cls.query.bound)
        return ranked.values("place", "running", order=F("pk"))


class BestSold(Shape):
    """A slice."""

    product = identity("Product")
    sold = models.IntegerField()

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders(), product__isnull=False)
        sold = orders.values("product").annotate(sold=Count("pk")).order_by("-sold", "product")
        first = cls.query.form % 2
        return sold[first : first + 1 + cls.query.bound]


class Seen(Shape):
    """DISTINCT, and nothing but a key."""

    customer = pointer("Customer")
    status = models.CharField(max_length=10)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["customer", "status"], name="shapes_seen_key")
        ]

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        orders = Order.objects.filter(cls.query.orders()).order_by()
        return orders.values("customer", "status").distinct()
