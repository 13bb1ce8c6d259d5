"""Every setting with its default: the keys of the `MATVIEWS` dict in the Django settings.

No other module reads `django.conf.settings`.
"""

import re
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cache
from typing import Any, TypeGuard

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from .exceptions import InvalidSetting

__all__ = [
    "LARGEST_SIZE", "LONGEST_TIME", "SHORTEST_TIME", "Settings", "get_settings", "is_count",
    "is_seconds",
]  # fmt: skip

LARGEST_SIZE = 2**31 - 1  # rows; what an integer column holds
# Seconds; PostgreSQL counts its timeouts in whole milliseconds, in 31 bits, and 0 is no timeout.
SHORTEST_TIME, LONGEST_TIME = 0.001, 2_147_483
LONGEST_IDENTIFIER = 63  # what PostgreSQL keeps of a name
IDENTIFIER = rf"[A-Za-z_][A-Za-z0-9_]{{0,{LONGEST_IDENTIFIER - 1}}}"
VALUES_IN_ERRORS = ("all", "keys", "none")
LONGEST_KEPT = timedelta(days=36_500)  # what can be taken from any date of today


def _is_identifier(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(IDENTIFIER, value) is not None


def is_count(value: object, most: int = LARGEST_SIZE) -> TypeGuard[int]:
    """Whether a value is a whole number from 1 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def is_seconds(value: object) -> TypeGuard[float]:
    """Whether a value is a time that every database can take as a limit."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return SHORTEST_TIME <= value <= LONGEST_TIME


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The values of the `MATVIEWS` setting.

    Attributes:
        BATCH_TARGET: seconds that one batch should take; the pacer steers toward it.
        BATCH_SIZE_INITIAL: rows in the first batch of a phase that has never run. Queryset views begin
            with five times as many keys.
        BATCH_SIZE_MIN: rows that the pacer and halving never go below.
        BATCH_SIZE_MAX: rows that the pacer never goes above; hooks with `pk__in=[...]` are bound
            by the number of variables in a statement, 32,766 in SQLite. For queryset views, keys: on
            PostgreSQL 20,000 of ten source rows each are just grouped within the default work_mem.
        STATEMENT_TIMEOUT: seconds after which the database ends a statement of a transaction of ours,
            and the connection of a batch that has gone silent inside its transaction; short
            transactions may be silent, or wait for a lock, for 10 seconds at most (PostgreSQL, MariaDB;
            MySQL only limits reading statements; SQLite has no such limit).
        LEASE: seconds of silence after which `matviews.maintain` takes a message or a worker for lost.
        MAX_RESEND_INTERVAL: seconds; `matviews.maintain` doubles the interval after every message that
            no worker picks up, up to this.
        KEEP_SUCCEEDED: how long a refresh that succeeded stays in the history.
        KEEP_FAILED: how long one that failed or was stopped stays. The last of a view always stays.
        CELERY_QUEUE: Celery queue of the tasks; None leaves it to `task_routes` and the default queue.
        STAGING_SCHEMA: the schema of staging tables on PostgreSQL, on MariaDB and MySQL the database; None
            for that of our own tables. Workers must be allowed to make tables there.
        VALUES_IN_ERRORS: which values of rows may stand in errors that are stored, logged or shown:
            "all", "keys" or "none". What a hook raises is stored as it is.
    """

    BATCH_TARGET: float = 1.0
    BATCH_SIZE_INITIAL: int = 1_000
    BATCH_SIZE_MIN: int = 10
    BATCH_SIZE_MAX: int = 20_000
    STATEMENT_TIMEOUT: float = 60.0
    LEASE: float = 60.0
    MAX_RESEND_INTERVAL: float = 3600.0
    KEEP_SUCCEEDED: timedelta = timedelta(days=7)
    KEEP_FAILED: timedelta = timedelta(days=30)
    CELERY_QUEUE: str | None = None
    STAGING_SCHEMA: str | None = None
    VALUES_IN_ERRORS: str = "keys"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is timedelta:
                _check_duration(field.name, value)
            elif field.type in (int, float):
                _check_number(field.name, value, whole=field.type is int)
        if not isinstance(self.CELERY_QUEUE, str | None) or self.CELERY_QUEUE == "":
            raise InvalidSetting("MATVIEWS['CELERY_QUEUE'] must be the name of a queue, or None.")
        if self.STAGING_SCHEMA is not None and not _is_identifier(self.STAGING_SCHEMA):
            raise InvalidSetting(
                f"MATVIEWS['STAGING_SCHEMA'] must be the name of a schema (letters, digits and "
                f"underscores, at most {LONGEST_IDENTIFIER}), or None, not {self.STAGING_SCHEMA!r}."
            )
        if self.VALUES_IN_ERRORS not in VALUES_IN_ERRORS:
            raise InvalidSetting(
                f"MATVIEWS['VALUES_IN_ERRORS'] must be one of {', '.join(map(repr, VALUES_IN_ERRORS))}, "
                f"not {self.VALUES_IN_ERRORS!r}."
            )
        if not self.BATCH_SIZE_MIN <= self.BATCH_SIZE_INITIAL <= self.BATCH_SIZE_MAX:
            raise InvalidSetting(
                "MATVIEWS: BATCH_SIZE_MIN <= BATCH_SIZE_INITIAL <= BATCH_SIZE_MAX must hold."
            )


def _check_number(name: str, value: object, *, whole: bool) -> None:
    if not (is_count(value) if whole else is_seconds(value)):
        kind = (
            f"a whole number from 1 to {LARGEST_SIZE}"
            if whole
            else f"a number of seconds from {SHORTEST_TIME} to {LONGEST_TIME}"
        )
        raise InvalidSetting(f"MATVIEWS[{name!r}] must be {kind}, not {value!r}.")


def _check_duration(name: str, value: object) -> None:
    if not isinstance(value, timedelta) or not timedelta() < value <= LONGEST_KEPT:
        raise InvalidSetting(
            f"MATVIEWS[{name!r}] must be a positive timedelta of at most {LONGEST_KEPT.days} days, "
            f"not {value!r}."
        )


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
