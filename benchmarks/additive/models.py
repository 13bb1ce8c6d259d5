"""Lines of orders, with few groups, as query 1 of TPC-H has them; and visits by month."""

from typing import Any

from django.db import connection, models
from django.db.models import Avg, Count, F, QuerySet, Sum

from matviews import MaterializedView

__all__ = [
    "Client",
    "Country",
    "Line",
    "Month",
    "Pricing",
    "PricingInFull",
    "Purchase",
    "Region",
    "RegionByKeys",
    "Visit",
]

# SQLite adds decimals up as floats, so that no view of them is additive.
DECIMALS = connection.vendor != "sqlite"


def number(digits: int, places: int) -> Any:
    if DECIMALS:
        return models.DecimalField(max_digits=digits, decimal_places=places, null=True)
    return models.BigIntegerField(null=True)


class Line(models.Model):
    """A line of an order."""

    flag = models.IntegerField()
    state = models.IntegerField()
    quantity = number(12, 2)
    price = number(12, 2)
    discount = number(4, 2)
    tax = number(4, 2)


class PricingRow(models.Model):
    """What the lines of a group amount to."""

    flag = models.IntegerField()
    state = models.IntegerField()
    lines = models.IntegerField()
    quantity = number(30, 2)
    price = number(30, 2)
    discounted = number(30, 4)
    charged = number(30, 6)
    mean_quantity = number(30, 6) if DECIMALS else models.FloatField(null=True)
    mean_price = number(30, 6) if DECIMALS else models.FloatField(null=True)
    mean_discount = number(30, 6) if DECIMALS else models.FloatField(null=True)

    class Meta:
        abstract = True
        constraints = (
            models.UniqueConstraint(fields=("flag", "state"), name="%(class)s_flag_state"),
        )

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        discounted = F("price") * (1 - F("discount"))
        return Line.objects.values("flag", "state").annotate(
            lines=Count("pk"),
            mean_quantity=Avg("quantity"),
            mean_price=Avg("price"),
            mean_discount=Avg("discount"),
            discounted=Sum(discounted, output_field=number(30, 4)),
            charged=Sum(discounted * (1 + F("tax")), output_field=number(30, 6)),
            quantity=Sum("quantity"),
            price=Sum("price"),
        )


class Pricing(MaterializedView, PricingRow):
    """The additive view."""

    class Meta(PricingRow.Meta):
        pass

    class MatviewMeta:
        additive = True


class PricingInFull(MaterializedView, PricingRow):
    """The same view, of which each refresh reads all rows."""

    class Meta(PricingRow.Meta):
        pass

    class MatviewMeta:
        additive = False
        strategy = "full"


class Visit(models.Model):
    """A visit of a month."""

    month = models.IntegerField(db_index=True)
    pages = models.IntegerField()


class Month(MaterializedView, models.Model):
    """Months, of which the newest grows."""

    month = models.IntegerField(unique=True)
    visits = models.IntegerField()
    pages = models.BigIntegerField()

    class MatviewMeta:
        additive = True

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return Visit.objects.values("month").annotate(visits=Count("pk"), pages=Sum("pages"))


class Country(models.Model):
    """Where clients are; a few make a region."""

    region = models.IntegerField()


class Client(models.Model):
    """Who buys."""

    country = models.ForeignKey(Country, models.CASCADE)


class Purchase(models.Model):
    """What a client has bought."""

    client = models.ForeignKey(Client, models.CASCADE)
    amount = models.IntegerField()


class RegionRow(models.Model):
    """What was bought in a region."""

    region = models.IntegerField(unique=True)
    purchases = models.IntegerField()
    amount = models.BigIntegerField()

    class Meta:
        abstract = True

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        region = F("client__country__region")
        found: QuerySet[Any, Any] = Purchase.objects.values(region=region).annotate(
            purchases=Count("pk"), amount=Sum("amount")
        )
        return found


class Region(MaterializedView, RegionRow):
    """Regions, with lookups over two tables."""

    class MatviewMeta:
        additive = True


class RegionByKeys(MaterializedView, RegionRow):
    """The same view, of which a refresh reads the purchases of regions that have changed."""

    class MatviewMeta:
        additive = False
        strategy = "by_keys"
