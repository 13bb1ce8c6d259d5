"""Every setting with its default: the keys of the `MATVIEWS` dict in the Django settings.

No other module reads `django.conf.settings`.
"""

import re
from dataclasses import Field, dataclass, fields
from datetime import timedelta
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from .exceptions import InvalidSetting
from .limits import (
    BATCH_COUNT,
    BATCH_SECONDS,
    BATCH_SIZE,
    FAILURE_COUNT,
    PARKED_KEYS,
    PULSE_SECONDS,
    RETENTION,
    SESSION_COUNT,
    VIEW_COUNT,
    DurationRange,
    Range,
    queue_fault,
)

__all__ = ["Settings", "get_settings"]

MAX_IDENTIFIER_LENGTH = 63  # characters that PostgreSQL keeps of a name
IDENTIFIER = rf"[A-Za-z_][A-Za-z0-9_]{{0,{MAX_IDENTIFIER_LENGTH - 1}}}"
VALUES_IN_ERRORS = ("all", "keys", "none")
RANGES: dict[Any, Range | DurationRange] = {
    int: BATCH_SIZE,
    float: BATCH_SECONDS,
    timedelta: RETENTION,
    "SUSPEND_AFTER_FAILURES": FAILURE_COUNT,
    "MAX_PARKED_KEYS": PARKED_KEYS,
    "PULSE_SECONDS": PULSE_SECONDS,
    "MAX_LONG_BATCHES": BATCH_COUNT,
    "GOVERNOR_REPLICATION_LAG": BATCH_SECONDS,
    "GOVERNOR_ACTIVE_SESSIONS": SESSION_COUNT,
    "GOVERNOR_TRANSACTION_AGE": BATCH_SECONDS,
}


def _is_identifier(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(IDENTIFIER, value) is not None


def _is_token(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[!-~]+", value) is not None


def _is_dotted_path(value: object) -> bool:
    names = value.split(".") if isinstance(value, str) else []
    return len(names) > 1 and all(name.isidentifier() for name in names)


def _is_web_address(value: object) -> bool:
    if not _is_token(value):
        return False
    try:
        parts = urlsplit(str(value))
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid port, or half an IPv6 address
        return False


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
    #: The longest wait of a failing view before its next try, in seconds. The wait begins at the
    #: interval of its schedule, at least 10 seconds, and doubles with each failure.
    MAX_RETRY_DELAY: float = 3600.0
    #: A view is suspended after this many consecutive failures of its own, but not before the first
    #: of them is `SUSPEND_AFTER` ago.
    SUSPEND_AFTER_FAILURES: int = 20
    SUSPEND_AFTER: timedelta = timedelta(hours=6)
    #: The maximum number of parked keys of a view, each counted once per phase; beyond that, a
    #: phase fails. 0 parks none.
    MAX_PARKED_KEYS: int = 1_000
    #: How long a succeeded refresh stays in the history.
    KEEP_SUCCEEDED: timedelta = timedelta(days=7)
    #: How long a failed or stopped one stays. The last refresh of a view to end always stays.
    KEEP_FAILED: timedelta = timedelta(days=30)
    #: How often, in seconds, a worker checks for refreshes that are due on change, while a schedule
    #: is on change; 0: never, because `update_materialized_views --follow` does.
    PULSE_SECONDS: int = 1
    #: Whether a commit of this process that changes the source of a view on change sends a worker
    #: to check at once, instead of with the next pulse.
    HINT_ON_COMMIT: bool = False
    #: The Celery queue of the tasks; None leaves it to `task_routes` and the default queue. A view
    #: may have another one.
    CELERY_QUEUE: str | None = None
    #: How many views are refreshed at the same time in each queue: a number, or a dict of numbers
    #: by queue, "" for that of views that have none; the others wait. None is no limit.
    MAX_REFRESHES: int | dict[str, int] | None = None
    #: How many batches of long refreshes run at once in each queue; None: as many as workers can.
    MAX_LONG_BATCHES: int | None = None
    #: The governor: batches wait while a replica is behind by more seconds, more sessions are
    #: active, a transaction is open for more seconds, or a table of the view or its source is being
    #: vacuumed. None, or False, is no limit.
    GOVERNOR_REPLICATION_LAG: float | None = None
    GOVERNOR_ACTIVE_SESSIONS: int | None = None
    GOVERNOR_TRANSACTION_AGE: float | None = None
    GOVERNOR_VACUUM: bool = False
    #: How long a refresh waits for that; then it runs to its end.
    GOVERNOR_MAX_WAIT: timedelta = timedelta(minutes=30)
    #: The schema of staging tables on PostgreSQL, their database on MariaDB and MySQL; None for
    #: that of our own tables. Workers need the right to create tables there.
    STAGING_SCHEMA: str | None = None
    #: Which values of rows stored, logged and shown errors may contain: "all", "keys" or "none".
    #: Errors that hooks raise are stored as they are.
    VALUES_IN_ERRORS: str = "keys"
    #: The token that requests of `matviews.health` and `matviews.metrics` must send as
    #: `Authorization: Bearer ...`; None: none.
    HEALTH_TOKEN: str | None = None
    #: How long a problem must last before its alarm is raised, and be gone before it ends.
    ALARM_AFTER: timedelta = timedelta(minutes=5)
    #: How long until people are notified again of an alarm that has not ended.
    ALARM_REPEAT: timedelta = timedelta(hours=4)
    #: Whether alarms are sent by mail to ADMINS.
    ALARM_MAIL: bool = False
    #: The dotted path of a function that is called with a list of alarms; None: none.
    ALARM_HOOK: str | None = None
    #: A URL that `matviews.maintain` gets each time it has run, so that somebody notices when it
    #: no longer does; None: none.
    CHECK_IN_URL: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            self._check_range(field)
        if self.CELERY_QUEUE is not None and (fault := queue_fault(self.CELERY_QUEUE)):
            raise InvalidSetting(
                f"MATVIEWS['CELERY_QUEUE'] must be {fault}, or None, not {self.CELERY_QUEUE!r}."
            )
        if self.HEALTH_TOKEN is not None and not _is_token(self.HEALTH_TOKEN):
            raise InvalidSetting(
                "MATVIEWS['HEALTH_TOKEN'] must be a non-empty string of ASCII characters without "
                "spaces, or None."
            )
        self._check_alarms()
        self._check_max_refreshes()
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

    def _check_alarms(self) -> None:
        if self.ALARM_HOOK is not None and not _is_dotted_path(self.ALARM_HOOK):
            raise InvalidSetting(
                "MATVIEWS['ALARM_HOOK'] must be the dotted path of a function, as in "
                "'proj.alarms.tell', or None."
            )
        if self.CHECK_IN_URL is not None and not _is_web_address(self.CHECK_IN_URL):
            raise InvalidSetting(
                "MATVIEWS['CHECK_IN_URL'] must be a URL that begins with http:// or https://, or "
                "None."
            )

    def _check_max_refreshes(self) -> None:
        limits = self.MAX_REFRESHES
        by_queue = limits if isinstance(limits, dict) else {"": limits}
        named = all(queue == "" or not queue_fault(queue) for queue in by_queue)
        if limits is not None and not (
            named and all(map(VIEW_COUNT.__contains__, by_queue.values()))
        ):
            raise InvalidSetting(
                f"MATVIEWS['MAX_REFRESHES'] must be {VIEW_COUNT.fault(None)}, a dict of these by "
                f"the name of a queue, '' for views without one, or None, not {limits!r}."
            )

    def _check_range(self, field: Field[Any]) -> None:
        value, optional = getattr(self, field.name), field.default is None
        if field.type is bool and not isinstance(value, bool):
            raise InvalidSetting(f"MATVIEWS[{field.name!r}] must be True or False.")
        limits = RANGES.get(field.name) or RANGES.get(field.type)
        if limits is None or (optional and value is None):
            return
        if fault := limits.fault(value):
            allowed = f"{fault}, or None" if optional else fault
            raise InvalidSetting(f"MATVIEWS[{field.name!r}] must be {allowed}, not {value!r}.")


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
