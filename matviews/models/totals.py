"""Counts that never fall, although the history they were counted in is deleted."""

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models import F

__all__ = ["TOTALS", "Totals"]

if TYPE_CHECKING:
    _Field = models.Field[Any, Any]
else:
    _Field = object


class _Total(_Field):
    """A column that only grows: `save()` of a whole row leaves it as it is in the database.

    Migrations record it as the plain field that it is.
    """

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        return super().pre_save(model_instance, add) if add else F(self.attname)

    def deconstruct(self) -> Any:
        name, _path, args, kwargs = super().deconstruct()
        return name, f"django.db.models.{type(self).__bases__[1].__name__}", args, kwargs


class _Count(_Total, models.BigIntegerField):  # type: ignore[type-arg]
    def __init__(self, **options: Any) -> None:
        super().__init__(**{"default": 0, "editable": False, **options})


class _Seconds(_Total, models.FloatField):  # type: ignore[type-arg]
    def __init__(self, **options: Any) -> None:
        super().__init__(**{"default": 0.0, "editable": False, **options})


class Totals(models.Model):
    """What the refreshes of a view that have ended did. Their ends add to it, with `F()`."""

    #: Batches that committed, the rows they wrote and the seconds they took; then batches that were
    #: rolled back or killed.
    insert_batches = _Count()
    insert_rows = _Count()
    insert_seconds = _Seconds()
    insert_failures = _Count()
    update_batches = _Count()
    update_rows = _Count()
    update_seconds = _Seconds()
    update_failures = _Count()
    delete_batches = _Count()
    delete_rows = _Count()
    delete_seconds = _Seconds()
    delete_failures = _Count()
    #: How they ended. A refresh that was merged before it began is not counted.
    refreshes_succeeded = _Count()
    refreshes_failed = _Count()
    refreshes_stopped = _Count()

    class Meta:
        abstract = True


#: The names of the columns, for queries that leave them out.
TOTALS = tuple(field.name for field in Totals._meta.fields)
