"""What the bookkeeping's models share."""

from typing import Any, TypeVar

from django.db import models, router

__all__ = ["Bookkeeping", "M", "WriteDatabaseManager"]


M = TypeVar("M", bound=models.Model)


class WriteDatabaseManager(models.Manager[M]):
    """Reads where it writes: a replica that lags would answer with an old token."""

    def get_queryset(self) -> models.QuerySet[M]:
        return super().get_queryset().using(self._db or router.db_for_write(self.model))


class Bookkeeping(models.Model):
    """State that is true of this database only, so `loaddata` and fixtures skip its rows.

    A row from a dump would overwrite the state here, or claim work that was done elsewhere.
    """

    objects: Any = WriteDatabaseManager()

    class Meta:
        abstract = True
        base_manager_name = (
            "objects"  # what a row refers to, and refresh_from_db(), is read there too
        )

    def _save_table(self, raw: bool = False, *args: Any, **kwargs: Any) -> bool:
        return True if raw else super()._save_table(raw, *args, **kwargs)  # type: ignore[misc]
