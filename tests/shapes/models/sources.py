"""A small shop: the tables that the views of this app are made from."""

import uuid

from django.db import connection, models

__all__ = ["Customer", "NeverNull", "Order", "Product", "Region", "Tag", "by_bytes"]

# Where text is compared without case and accents, as MariaDB does, this compares it by its bytes.
by_bytes = "utf8mb4_bin" if connection.vendor == "mysql" else None


class NeverNull(models.CharField):  # type: ignore[type-arg]
    """Text that reads as "" where the database has NULL."""

    def from_db_value(self, value: str | None, *_args: object) -> str:
        return value or ""


class Region(models.Model):
    name = models.CharField(max_length=40)

    class Meta:
        ordering = ["-name"]


class Customer(models.Model):
    name = models.CharField(max_length=40, db_index=True)
    nickname = NeverNull(max_length=40, null=True)
    region = models.ForeignKey(Region, models.SET_NULL, null=True)
    referrer = models.ForeignKey("self", models.SET_NULL, null=True)
    token = models.UUIDField(default=uuid.uuid4, unique=True)
    active = models.BooleanField(null=True)

    class Meta:
        ordering = ["name"]


class Product(models.Model):
    """Its key is text, and its table and columns have names that must be quoted."""

    sku = models.CharField(max_length=40, primary_key=True, db_column="stock keeping unit")
    name = models.TextField(db_column="select")
    price = models.DecimalField(max_digits=10, decimal_places=2, null=True, db_column="Größe")

    class Meta:
        db_table = "shapes products; --"


class Tag(models.Model):
    label = models.CharField(max_length=40)


class Order(models.Model):
    customer = models.ForeignKey(Customer, models.SET_NULL, null=True)
    product = models.ForeignKey(Product, models.SET_NULL, null=True)
    tags = models.ManyToManyField(Tag)
    basket = models.UUIDField(null=True, db_index=True)
    quantity = models.IntegerField(null=True)  # without an index, so that views by it are staged
    slot = models.IntegerField(null=True, db_index=True)
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

    class Meta:
        ordering = ["-placed_at"]
        indexes = [
            models.Index(fields=["shipped_on", "status"], name="shapes_order_day_status"),
            models.Index(fields=["customer", "status"], name="shapes_order_customer_status"),
        ]
