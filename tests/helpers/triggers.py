"""The triggers of the project's views: what they need is worked out only once.

That takes longer than creating them.
"""

from typing import Any, NamedTuple
from unittest import mock

from matviews import changes
from matviews.changes import triggers
from matviews.changes.tracking_spec import mistyped, tracked_tables
from matviews.registry import registry


class _Known(NamedTuple):
    views: list[type[Any]]
    wanted: Any
    mistyped: dict[str, str]


_known: dict[str, _Known] = {}


def _views() -> list[type[Any]]:
    return [each.model for each in registry]


def remember(alias: str) -> None:
    """Find out what the views that are there now want."""
    _known[alias] = _Known(_views(), tracked_tables(alias), mistyped(alias))


def install(alias: str) -> None:
    """`changes.install`, of the views that are there."""
    known = _known[alias]
    if _views() != known.views:
        changes.install(alias)
        return
    with (
        mock.patch.object(triggers, "tracked_tables", return_value=known.wanted),
        mock.patch.object(triggers, "mistyped", return_value=known.mistyped),
    ):
        changes.install(alias)
