"""Keys that a phase leaves out, because their rows cannot be computed or written."""

from django.db import models

from ..phases import Phase
from .base import Bookkeeping, WriteDatabaseManager
from .shard import ViewShard

__all__ = ["ParkedKey"]


class ParkedKey(Bookkeeping):
    """A key that a derived phase leaves out until its row can be written."""

    shard = models.ForeignKey(ViewShard, models.CASCADE, related_name="parked", db_constraint=False)
    phase = models.CharField(max_length=8, choices=Phase.choices)
    key = models.JSONField()
    #: The fingerprint of the definition that could not be computed.
    fingerprint = models.CharField(max_length=64)
    #: The class of the error, as in `IntegrityError`.
    error_class = models.CharField(max_length=100)
    #: SQLSTATE on PostgreSQL, the number on MariaDB and MySQL, the name of the code on SQLite.
    code = models.CharField(max_length=64, blank=True)
    #: Of the violated constraint; blank if the database does not name it.
    constraint = models.CharField(max_length=255, blank=True)
    #: Column names, if the database names them.
    columns = models.JSONField(default=list)
    #: What is wrong and what may be done, with values only if the settings allow them.
    message = models.TextField()
    #: Whether the error may be another row's fault: of a unique constraint, or a foreign key.
    involves_others = models.BooleanField(default=False)
    first_seen = models.DateTimeField()
    last_seen = models.DateTimeField()
    #: How often it has failed on its own.
    tries = models.PositiveIntegerField(default=1)
    #: When it is tried again, even if nothing changes.
    retry_at = models.DateTimeField()

    objects = WriteDatabaseManager["ParkedKey"]()

    class Meta:
        ordering = ("id",)

    def __str__(self) -> str:
        return f"parked key {self.pk} of {self.shard}"
