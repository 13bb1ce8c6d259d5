"""What a view's page shows of its `source()`: the strategy, and the last verification."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import DatabaseError
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from .. import engine
from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..models import ViewControl
from ..queryset import plan_of
from .badges import badge
from .phrases import count_rows, number
from .presentation import time_ago

__all__ = ["source_context"]


@dataclass(frozen=True, slots=True)
class VerificationShown:
    """The last verification of a view, as its page shows it."""

    #: The value of `ViewControl.verification`.
    found: Mapping[str, Any]

    @property
    def badge(self) -> SafeString:
        """The result."""
        if not any(self.found[kind] for kind in ("missing", "differing", "surplus")):
            return badge("equal")
        return badge("differs" if self.found["repaired"] is None else "repaired")

    @property
    def when(self) -> SafeString:
        """The time since then."""
        return time_ago(datetime.fromisoformat(self.found["at"]))

    @property
    def compared(self) -> str:
        """The number of rows, and whether they were a sample."""
        sample, rows = self.found["sample"], count_rows(self.found["rows_compared"])
        if not sample:
            return _("%(rows)s, all") % {"rows": rows}
        return ngettext(
            "%(rows)s, a sample of about %(count)s key",
            "%(rows)s, a sample of about %(count)s keys",
            sample,
        ) % {"rows": rows, "count": number(sample)}

    @property
    def differences(self) -> str:
        """How many keys differed, by kind."""
        kinds = ("missing", "differing", "surplus")
        return _("%(missing)s missing, %(differing)s differing, %(surplus)s surplus") % {
            kind: number(self.found[kind]) for kind in kinds
        }

    @property
    def repaired(self) -> str:
        """The number of rows that the repair wrote; "" if there was no repair."""
        repaired = self.found["repaired"]
        return "" if repaired is None else _("%(rows)s written") % {"rows": count_rows(repaired)}


def source_context(control: ViewControl, definition: ViewDefinition | None) -> dict[str, Any]:
    """The strategy for a view's source, and its last verification; {} if it has no source."""
    if definition is None or not definition.has_source:
        return {}
    found = control.verification
    return {**_strategy(definition), "verification": VerificationShown(found) if found else None}


def _strategy(definition: ViewDefinition) -> dict[str, str]:
    try:
        strategy = plan_of(definition, engine.alias()).strategy
    except (InvalidView, DatabaseError) as error:
        return {"problem": str(error)}
    return {"strategy": strategy.name, "reason": strategy.reason}
