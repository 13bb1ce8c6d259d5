"""Every setting with its default: the keys of the `MATVIEWS` dict in the Django settings.

No other module reads `django.conf.settings`.
"""

import re
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cache
from typing import Any

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from .exceptions import InvalidSetting
from .limits import BATCH_SECONDS, BATCH_SIZE, RETENTION, DurationRange, Range

__all__ = ["Settings", "get_settings"]

MAX_IDENTIFIER_LENGTH = 63  # characters that PostgreSQL keeps of a name
IDENTIFIER = rf"[A-Za-z_][A-Za-z0-9_]{{0,{MAX_IDENTIFIER_LENGTH - 1}}}"
VALUES_IN_ERRORS = ("all", "keys", "none")
RANGES: dict[Any, Range | DurationRange] = {
    int: BATCH_SIZE,
    float: BATCH_SECONDS,
    timedelta: RETENTION,
}


def _is_identifier(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(IDENTIFIER, value) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The values of the `MATVIEWS` setting."""

    #: Seconds that one batch should take; the pacer adjusts batch sizes toward it.
    BATCH_TARGET: float = 1.0
    #: Rows in the first batch of a phase that has never run. Queryset views start with five times
    #: as many keys.
    BATCH_SIZE_INITIAL: int = 1_000
    #: Rows that the pacer and halving never go below.
    BATCH_SIZE_MIN: int = 10
    #: Rows that the pacer never exceeds. Hooks that filter by `pk__in=[...]` are limited by the
    #: number of variables in a statement, 32,766 in SQLite. For queryset views it counts keys:
    #: PostgreSQL can just group 20,000 keys of ten source rows each within the default work_mem.
    BATCH_SIZE_MAX: int = 20_000
    #: Seconds after which the database cancels a statement of a matviews transaction, or closes the
    #: connection of a batch that is idle inside its transaction. Short transactions may be idle, or
    #: wait for a lock, for at most 10 seconds. Applies to PostgreSQL and MariaDB; MySQL limits only
    #: statements that read; SQLite has no such limit.
    STATEMENT_TIMEOUT: float = 60.0
    #: Seconds of silence after which `matviews.maintain` considers a message or worker lost.
    LEASE: float = 60.0
    #: The longest interval between messages, in seconds. `matviews.maintain` doubles the interval
    #: after every message that no worker picks up.
    MAX_RESEND_INTERVAL: float = 3600.0
    #: How long a succeeded refresh stays in the history.
    KEEP_SUCCEEDED: timedelta = timedelta(days=7)
    #: How long a failed or stopped one stays. The last refresh of a view to end always stays.
    KEEP_FAILED: timedelta = timedelta(days=30)
    #: The Celery queue of the tasks; None leaves it to `task_routes` and the default queue.
    CELERY_QUEUE: str | None = None
    #: The schema of staging tables on PostgreSQL, their database on MariaDB and MySQL; None for
    #: that of our own tables. Workers need the right to create tables there.
    STAGING_SCHEMA: str | None = None
    #: Which values of rows stored, logged and shown errors may contain: "all", "keys" or "none".
    #: Errors that hooks raise are stored as they are.
    VALUES_IN_ERRORS: str = "keys"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            limits = RANGES.get(field.type)
            if limits and (fault := limits.fault(value)):
                raise InvalidSetting(f"MATVIEWS[{field.name!r}] must be {fault}, not {value!r}.")
        if not isinstance(self.CELERY_QUEUE, str | None) or self.CELERY_QUEUE == "":
            raise InvalidSetting("MATVIEWS['CELERY_QUEUE'] must be the name of a queue, or None.")
        if self.STAGING_SCHEMA is not None and not _is_identifier(self.STAGING_SCHEMA):
            raise InvalidSetting(
                f"MATVIEWS['STAGING_SCHEMA'] must be the name of a schema (letters, digits and "
                f"underscores, at most {MAX_IDENTIFIER_LENGTH}), or None, not "
                f"{self.STAGING_SCHEMA!r}."
            )
        if self.VALUES_IN_ERRORS not in VALUES_IN_ERRORS:
            raise InvalidSetting(
                f"MATVIEWS['VALUES_IN_ERRORS'] must be one of "
                f"{', '.join(map(repr, VALUES_IN_ERRORS))}, not {self.VALUES_IN_ERRORS!r}."
            )
        if not self.BATCH_SIZE_MIN <= self.BATCH_SIZE_INITIAL <= self.BATCH_SIZE_MAX:
            raise InvalidSetting(
                "MATVIEWS: BATCH_SIZE_MIN <= BATCH_SIZE_INITIAL <= BATCH_SIZE_MAX must hold."
            )


@cache
def get_settings() -> Settings:
    """The settings in force.

    Raises:
        InvalidSetting: a key is unknown or a value is invalid.
    """
    given = getattr(django_settings, "MATVIEWS", {})
    if not isinstance(given, dict):
        raise InvalidSetting(f"MATVIEWS must be a dict, not {given!r}.")
    known = {field.name for field in fields(Settings)}
    if unknown := sorted(map(str, set(given) - known)):
        raise InvalidSetting(
            f"MATVIEWS has no setting {', '.join(unknown)}; "
            f"the settings are {', '.join(sorted(known))}."
        )
    return Settings(**given)


def _clear_cache(*, setting: str, **_kwargs: Any) -> None:
    if setting == "MATVIEWS":
        get_settings.cache_clear()


setting_changed.connect(_clear_cache, dispatch_uid="matviews.conf")
