"""What a view's page tells of its `source()`: the way through it, and the last verification."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import DatabaseError
from django.utils.safestring import SafeString

from .. import engine
from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..models import ViewControl
from ..presentation import pluralize
from ..queryset import plan_of
from .badges import badge
from .presentation import time_ago

__all__ = ["source_context"]


@dataclass(frozen=True, slots=True)
class VerificationShown:
    """The last verification of a view, as its page shows it.

    Attributes:
        found: what `ViewControl` keeps of it.
    """

    found: Mapping[str, Any]

    @property
    def badge(self) -> SafeString:
        """What it came to."""
        if not any(self.found[kind] for kind in ("missing", "differing", "surplus")):
            return badge("equal")
        return badge("differs" if self.found["repaired"] is None else "repaired")

    @property
    def when(self) -> SafeString:
        """How long ago it was."""
        return time_ago(datetime.fromisoformat(self.found["at"]))

    @property
    def compared(self) -> str:
        """How much of the view."""
        sample = self.found["sample"]
        extent = f"a sample of about {pluralize(sample, 'key')}" if sample else "all"
        return f"{pluralize(self.found['rows_compared'], 'row')}, {extent}"

    @property
    def differences(self) -> str:
        """How many keys differed, by kind."""
        missing, differing, surplus = (
            self.found[kind] for kind in ("missing", "differing", "surplus")
        )
        return f"{missing:,} missing, {differing:,} differing, {surplus:,} surplus"

    @property
    def repaired(self) -> str:
        """What was written to mend them; "" if that was not asked for."""
        written = self.found["repaired"]
        return "" if written is None else f"{pluralize(written, 'row')} written"


def source_context(control: ViewControl, definition: ViewDefinition | None) -> dict[str, Any]:
    """The path of a view's source and the last verification, for the template; {} without one."""
    if definition is None or not definition.has_source:
        return {}
    found = control.verification
    return {**_path(definition), "verification": VerificationShown(found) if found else None}


def _path(definition: ViewDefinition) -> dict[str, str]:
    try:
        strategy = plan_of(definition, engine.alias()).strategy
    except (InvalidView, DatabaseError) as error:
        return {"problem": str(error)}
    return {"strategy": strategy.name, "reason": strategy.reason}
