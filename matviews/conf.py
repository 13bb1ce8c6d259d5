"""Every setting with its default: the keys of the `MATVIEWS` dict in the Django settings.

No other module reads `django.conf.settings`.
"""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from .exceptions import InvalidSetting

__all__ = ["Settings", "get_settings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The values of the `MATVIEWS` setting.

    Attributes:
        BATCH_TARGET: seconds that one batch should take; the pacer steers toward it.
        BATCH_SIZE_START: rows in the first batch of a phase that has never run.
        BATCH_SIZE_FLOOR: rows that the pacer and halving never go below.
        BATCH_SIZE_CEILING: rows that the pacer never goes above.
        STATEMENT_TIMEOUT: seconds after which the database ends a statement of a batch, and the
            connection of a batch that has gone silent inside its transaction (PostgreSQL,
            MariaDB; MySQL only limits reading statements; SQLite has no such limit).
        LEASE: seconds of silence after which `watch` takes a message or a worker for lost.
        PATIENCE_CEILING: seconds; `watch` doubles its patience with every re-sent message that
            nobody took, up to this.
        QUEUE: Celery queue of the tasks; None leaves it to `task_routes` and the default queue.
    """

    BATCH_TARGET: float = 1.0
    BATCH_SIZE_START: int = 1_000
    BATCH_SIZE_FLOOR: int = 10
    BATCH_SIZE_CEILING: int = 100_000
    STATEMENT_TIMEOUT: float = 60.0
    LEASE: float = 60.0
    PATIENCE_CEILING: float = 3600.0
    QUEUE: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "QUEUE":
                _check_positive(field.name, getattr(self, field.name), whole=field.type is int)
        if not isinstance(self.QUEUE, str | None) or self.QUEUE == "":
            raise InvalidSetting("MATVIEWS['QUEUE'] must be the name of a queue, or None.")
        if not self.BATCH_SIZE_FLOOR <= self.BATCH_SIZE_START <= self.BATCH_SIZE_CEILING:
            raise InvalidSetting(
                "MATVIEWS: BATCH_SIZE_FLOOR <= BATCH_SIZE_START <= BATCH_SIZE_CEILING must hold."
            )


def _check_positive(name: str, value: object, *, whole: bool) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0:
        kind = "whole number" if whole else "number"
        raise InvalidSetting(f"MATVIEWS[{name!r}] must be a positive {kind}, not {value!r}.")


@cache
def get_settings() -> Settings:
    """The settings in force.

    Raises:
        InvalidSetting: an unknown key, or a value that cannot work.
    """
    given = getattr(django_settings, "MATVIEWS", {})
    if not isinstance(given, dict):
        raise InvalidSetting(f"MATVIEWS must be a dict, not {given!r}.")
    known = {field.name for field in fields(Settings)}
    if unknown := sorted(map(str, set(given) - known)):
        raise InvalidSetting(
            f"MATVIEWS has no setting {', '.join(unknown)}; it knows {', '.join(sorted(known))}."
        )
    return Settings(**given)


def _forget(*, setting: str, **_kwargs: Any) -> None:
    if setting == "MATVIEWS":
        get_settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="matviews.conf")
