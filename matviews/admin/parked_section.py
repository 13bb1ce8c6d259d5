"""The parked keys of a view on its page."""

from dataclasses import dataclass
from typing import Any

from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from .. import engine
from ..databases.keys import from_json, shown
from ..definition import ViewDefinition
from ..models import ParkedKey, ViewControl
from ..redact import may_show_keys
from .presentation import time_ago

__all__ = ["parked_context"]

MAX_LISTED = 100  # the others follow when these are gone


@dataclass(frozen=True, slots=True)
class ParkedShown:
    """A parked key, as the page shows it."""

    row: ParkedKey

    @property
    def key(self) -> str:
        """Its values, if the settings allow them."""
        return shown(from_json(self.row.key)) if may_show_keys() else _("left out")

    @property
    def first_seen(self) -> SafeString:
        """When it failed for the first time."""
        return time_ago(self.row.first_seen)

    @property
    def last_seen(self) -> SafeString:
        """When it failed last."""
        return time_ago(self.row.last_seen)

    @property
    def next_try(self) -> SafeString | str:
        """When it is tried again at the earliest."""
        when = self.row.retry_at
        return time_ago(when) if when > engine.now() else _("with the next refresh")


def parked_context(control: ViewControl, definition: ViewDefinition | None) -> dict[str, Any]:
    """The parked keys of a view, those that were tried last first; {} if its phases park none."""
    rows = ParkedKey.objects.filter(shard__view=control).order_by("-last_seen", "-pk")
    listed = [ParkedShown(row) for row in rows[:MAX_LISTED]]
    if not listed and not (definition and definition.parking):
        return {}
    count = len(listed) if len(listed) < MAX_LISTED else rows.count()
    return {
        "count": count,
        "listed": listed,
        "more": count - len(listed),
        "has_hooks": bool(definition and set(definition.options.phases) - definition.parking),
    }
