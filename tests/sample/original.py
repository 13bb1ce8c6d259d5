"""The usage example of the original django-materialized-views, as its README has it."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from datetime import date, timedelta
from typing import Any

from django.db import models
from django.db.models import Exists, OuterRef, QuerySet

from matviews import MaterializedView


class OtherTableManager(models.Manager["MyOtherTable"]):
    """The three questions that the README asks its source, without showing the answers."""

    def get_new(self) -> QuerySet["MyOtherTable"]:
        present = MyModel.objects.filter(key=OuterRef("key"))
        return self.filter(~Exists(present), deleted__isnull=True)

    def get_updated(self) -> QuerySet["MyOtherTable"]:
        recently = date.today() - timedelta(days=7)  # noqa: DTZ011
        return self.filter(some_criteria_date__gt=recently, deleted__isnull=True)

    def get_obsolete(self) -> QuerySet["MyOtherTable"]:
        return self.filter(deleted__isnull=False)


class MyOtherTable(models.Model):
    key = models.CharField(max_length=100, unique=True)
    value = models.CharField(max_length=100)
    some_criteria_date = models.DateField()
    deleted = models.DateTimeField(null=True)

    objects: Any = OtherTableManager()


class MyModel(models.Model, MaterializedView):
    key = models.CharField(max_length=100, db_index=True, unique=True)

    cached_value = models.CharField(max_length=100, db_index=True)

    @classmethod
    def needs_insert(cls):
        # This returns true if there are new materialized records we need to create.
        return MyOtherTable.objects.exclude(
            value__in=cls.objects.all().values_list("cached_value")
        ).count()

    @classmethod
    def needs_update(cls):
        # This returns true if there are new materialized records we need to update.
        return MyOtherTable.objects.filter(
            some_criteria_date__gt=date.today() - timedelta(days=7)  # noqa: DTZ011
        ).count()

    @classmethod
    def needs_delete(cls):
        # This returns true if there are new materialized records we need to delete.
        return MyOtherTable.objects.filter(deleted__isnull=False).count()

    @classmethod
    def do_insert(cls):
        for r in MyOtherTable.objects.get_new():
            cls.objects.create(key=r.key, cached_value=r.value)

    @classmethod
    def do_update(cls):
        for r in MyOtherTable.objects.get_updated():
            obj, _ = cls.objects.get_or_create(key=r.key, cached_value=r.value)
            obj.cached_value = r.value
            obj.save()

    @classmethod
    def do_delete(cls):
        cls.objects.filter(key__in=MyOtherTable.objects.get_obsolete().values_list("key")).delete()
