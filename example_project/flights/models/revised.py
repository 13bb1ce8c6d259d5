"""How hooks know cheaply, and for certain, which rows of a view are stale.

A view with a `source()` needs none of this: triggers log which of its keys have changed. Hooks have
to find that out themselves, or compare everything.

A plane has a `revision`, a number that is incremented by every change to the plane or to one of its
flights, *in the same transaction as the change*. A row of `Aircraft` stores the `source_revision`
that it was computed from, and is stale if the two differ. So the hooks find stale rows by comparing
planes and view row by row, over their indexes, and read only the flights of stale planes.

Why nothing is lost. Incrementing the revision locks the plane until the writer commits. So writers
to one plane come one after the other, their numbers are distinct, and a reader never sees a number
without the change that it counts. A change that commits while a batch computes is at worst computed
a second time.

Why not `modified > last_refresh`. A transaction may commit long after the time that it wrote. A
refresh in between moves the watermark past that time, and the change is never seen. The same holds
for "all ids above the last one". A comparison for equality needs no order, so nobody can be late.

What it costs. Two transactions that change flights of one plane wait for each other: keep them
short. And there are two rules, which the code below enforces for everything but raw SQL. Whoever
changes a flight touches its plane. And no plane is deleted: if it were created again, its revision
could reach the number that the view has stored.
"""

from typing import Any, NoReturn

from django.db import models, transaction
from django.db.models import F

__all__ = ["Revised"]


class RevisedQuerySet(models.QuerySet[Any]):
    """Planes; every change to one of them moves its revision."""

    def touch(self) -> None:
        """Say that a flight of each of these planes changes in this transaction."""
        with transaction.atomic():
            # In one order, so that two writers wait for each other instead of deadlocking.
            locked = list(self.order_by("pk").select_for_update().values_list("pk", flat=True))
            self.model.objects.filter(pk__in=locked).update()

    def update(self, **values: Any) -> int:
        return super().update(**values, revision=F("revision") + 1)

    def delete(self) -> NoReturn:
        raise TypeError("Planes are retired, not deleted, see flights/models/revised.py.")

    update.alters_data = True  # type: ignore[attr-defined]


RevisedManager = models.Manager.from_queryset(RevisedQuerySet)


class Revised(models.Model):
    """What flights belong to, and the count of its changes."""

    revision = models.PositiveBigIntegerField(default=1, editable=False)

    objects = RevisedManager()

    class Meta:
        abstract = True

    def save(self, **options: Any) -> None:
        if not self._state.adding:
            self.revision = F("revision") + 1
            if options.get("update_fields") is not None:
                options["update_fields"] = {*options["update_fields"], "revision"}
        super().save(**options)

    def delete(self, *_args: Any, **_options: Any) -> NoReturn:
        raise TypeError("Planes are retired, not deleted, see flights/models/revised.py.")
