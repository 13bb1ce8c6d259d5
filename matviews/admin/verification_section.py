"""What a view's page shows of verifications: the running one, and what the last one found."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..engine import Verifying, ViewStatus
from ..models import ViewControl
from .badges import badge
from .phrases import count_rows, duration, number
from .presentation import time_ago

__all__ = ["verification_context", "verifying_text"]


@dataclass(frozen=True, slots=True)
class VerificationShown:
    """The last verification of a view, as its page shows it."""

    #: The value of `ViewControl.verification`.
    found: Mapping[str, Any]

    @property
    def differ(self) -> bool:
        """Whether it found a difference."""
        return any(self.found.get(kind) for kind in ("missing", "differing", "surplus", "sums"))

    @property
    def badge(self) -> SafeString:
        """The result."""
        if self.error:
            return badge("failed")
        if not self.differ:
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
        if self.error:
            return rows
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
    def sums(self) -> str:
        """In how many groups the sums of an additive view differ; "" if they were not compared."""
        groups = self.found.get("sums")
        if groups is None:
            return ""
        differing = ngettext("%(count)s group differs", "%(count)s groups differ", groups)
        return differing % {"count": number(groups)}

    @property
    def repaired(self) -> str:
        """The number of rows that the repair wrote; "" if there was no repair."""
        repaired = self.found["repaired"]
        return "" if repaired is None else _("%(rows)s written") % {"rows": count_rows(repaired)}

    @property
    def error(self) -> str:
        """Why it ended early, or which keys could not be computed."""
        return str(self.found["error"])

    @property
    def untracked(self) -> str:
        """Why differences may be changes since the last refresh; "" if they cannot."""
        return str(self.found["untracked"])

    @property
    def left_out(self) -> str:
        """How many keys were left out, and why; "" if all were."""
        pending, parked = self.found["pending"], self.found["parked"]
        texts = []
        if pending:
            texts.append(_("%(count)s with pending changes") % {"count": number(pending)})
        if parked:
            texts.append(_("%(count)s parked") % {"count": number(parked)})
        return ", ".join(texts)

    @property
    def keys(self) -> list[str]:
        """The first keys that differ, as far as the settings allow to show them."""
        return [
            f"{each['kind']}: {', '.join(f'{n}={v}' for n, v in each['key'].items())}"
            for each in self.found["examples"]
        ]

    @property
    def by(self) -> str:
        """Who requested it; "" if that is unknown."""
        return self.found["requested_by"] or ""

    @property
    def took(self) -> str:
        """How long it took; "" if that is unknown."""
        seconds = self.found["seconds"]
        return "" if seconds is None else duration(timedelta(seconds=seconds))


def verification_context(control: ViewControl, status: ViewStatus) -> dict[str, Any]:
    """The running verification, and the last one; {} if the view has no source."""
    if control.definition is None or not control.definition.has_source:
        return {}
    found = control.verification
    return {
        "last": VerificationShown(found) if found else None,
        "running": verifying_text(status.verifying),
        "differing_since": control.differing
        and time_ago(datetime.fromisoformat(control.differing["since"])),
    }


def verifying_text(verifying: Verifying | None) -> str:
    """How far the running verification is; "" without one."""
    if verifying is None:
        return ""
    if verifying.wait:
        return _("waits: %(reason)s") % {"reason": verifying.wait.shown}
    if not verifying.running:
        return _("waits for a worker")
    if verifying.repair:
        return _("repairing, %(rows)s compared") % {"rows": count_rows(verifying.rows_compared)}
    return _("verifying, %(rows)s compared") % {"rows": count_rows(verifying.rows_compared)}
