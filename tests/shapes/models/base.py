"""What the views have in common."""

from typing import Any, ClassVar

from django.db import models

from matviews import MaterializedView
from tests.shapes.query import Query

__all__ = ["Measured", "Shape", "identity", "pointer"]

# Without a constraint in the database, or deletes of a source would wait for the view.
_UNBOUND: dict[str, Any] = {"on_delete": models.DO_NOTHING, "db_constraint": False}


class Shape(MaterializedView, models.Model):
    """A view whose source reads the query that a test has chosen."""

    query: ClassVar[Query] = Query()

    class Meta:
        abstract = True

    class MatviewMeta:
        include_in_refresh_all = False

    @classmethod
    def source(cls) -> "models.QuerySet[Any, Any]":
        """The rows of the view, as `cls.query` would have them."""
        raise NotImplementedError


class Measured(Shape):
    """A view with a row per group of orders."""

    orders = models.IntegerField()
    total = models.BigIntegerField(null=True)
    money = models.DecimalField(max_digits=20, decimal_places=2, null=True)
    mean = models.FloatField(null=True)

    class Meta:
        abstract = True


def identity(to: str, **options: Any) -> Any:
    """A key that is the key of a row of a source."""
    return models.OneToOneField(to, related_name="+", **_UNBOUND, **options)


def pointer(to: str, **options: Any) -> Any:
    """A foreign key to a source."""
    return models.ForeignKey(to, related_name="+", **_UNBOUND, **options)
