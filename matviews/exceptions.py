"""Every error that this package raises on purpose; the base class is `MatviewsError`."""

__all__ = [
    "HookError",
    "IllegalTransition",
    "InvalidRequest",
    "InvalidSetting",
    "InvalidView",
    "MatviewsError",
    "NotAdvancing",
    "NotPermitted",
    "RefreshFailed",
    "TablesHeld",
    "UnknownView",
    "ViewBusy",
    "ViewDisabled",
    "ViewNotReady",
]


class MatviewsError(Exception):
    """Base of every error of this package."""


class InvalidSetting(MatviewsError):
    """An entry of the `MATVIEWS` setting is unknown or has a value that cannot work."""


class UnknownView(MatviewsError):
    """No view has this label."""


class InvalidView(MatviewsError):
    """The view's definition has faults that the system checks name."""


class ViewBusy(MatviewsError):
    """A view could not be mended because its batches kept running."""


class ViewDisabled(MatviewsError):
    """An operator has switched the view off."""


class ViewNotReady(MatviewsError):
    """The view has no table, no column of it, or no bookkeeping rows yet: `migrate` makes them."""


class InvalidRequest(MatviewsError):
    """A refresh was asked for with phases or sizes that cannot be."""


class NotAdvancing(MatviewsError):
    """A walk through the keys of a view would come to the same ones again, or pass some over."""


class NotPermitted(MatviewsError):
    """The database user lacks a right that this needs."""


class TablesHeld(MatviewsError):
    """Somebody writes to tables whose triggers are to be removed."""


class HookError(MatviewsError):
    """A hook returned something else than its contract says."""


class RefreshFailed(MatviewsError):
    """A refresh that a test waited for did not succeed; says why."""


class IllegalTransition(MatviewsError):
    """A refresh or a phase run was about to change into a state it cannot reach."""
