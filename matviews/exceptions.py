"""Every error that this package raises on purpose, all derived from `MatviewsError`."""

__all__ = [
    "NOT_MIGRATED",
    "HookError",
    "IllegalTransition",
    "InvalidRequest",
    "InvalidSetting",
    "InvalidView",
    "KeyFailed",
    "MatviewsError",
    "NotAdvancing",
    "NotPermitted",
    "RefreshFailed",
    "TablesLocked",
    "UnknownView",
    "ViewBusy",
    "ViewDisabled",
    "ViewNotReady",
]

#: What `ViewNotReady` says if tables of this package are missing.
NOT_MIGRATED = "Tables of matviews are missing or out of date: run `manage.py migrate`."


class MatviewsError(Exception):
    """Base class of every error of this package."""


class InvalidSetting(MatviewsError):
    """An entry of the `MATVIEWS` setting is unknown or has an invalid value."""


class UnknownView(MatviewsError):
    """No view has this label."""


class InvalidView(MatviewsError):
    """The view's definition has faults, which the system checks name."""


class ViewBusy(MatviewsError):
    """A view could not be repaired because its batches kept running."""


class ViewDisabled(MatviewsError):
    """An operator has disabled the view."""


class ViewNotReady(MatviewsError):
    """The view's table, a column of it, or its bookkeeping is missing: `migrate` creates them."""


class InvalidRequest(MatviewsError):
    """A request has invalid phases or sizes, or asks to verify a view without `source()`."""


class NotAdvancing(MatviewsError):
    """Paging through the keys of a view would repeat keys or skip some."""


class NotPermitted(MatviewsError):
    """The database role has no right to do this."""


class TablesLocked(MatviewsError):
    """Open transactions have written to tables whose triggers are to be dropped."""


class HookError(MatviewsError):
    """A hook returned something that its contract does not allow."""


class KeyFailed(MatviewsError):
    """What a hook that declares `parked` raises for a row that it cannot compute or write.

    The batch is rolled back, the key is parked, and the hook is called again, without this key.
    Raise it `from` the error, which is recorded. If the row is not to blame for that (a lost
    connection, a timeout), no key is parked, and the batch fails.

    Args:
        key: a string, an integer, or a tuple of these. From then on, the hook finds it in `parked`.
        message: what is wrong, if there is no error to raise it from.
    """

    def __init__(self, key: str | int | tuple[str | int, ...], message: str = "") -> None:
        super().__init__(message or f"The row of {key!r} cannot be written.")
        self.key = key


class RefreshFailed(MatviewsError):
    """A refresh that a test waited for did not succeed; the message says why."""


class IllegalTransition(MatviewsError):
    """A refresh or phase run was about to change to a state that it cannot reach."""
