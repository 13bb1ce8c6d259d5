"""Why refreshes and verifications wait: a code and its facts, and the sentences made from them."""

from typing import Any, NamedTuple

from django.db.models import TextChoices
from django.utils import translation
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from .presentation import localized

__all__ = ["Wait", "WaitCode"]


class WaitCode(TextChoices):
    """What a view waits for, apart from its next try after a failure."""

    #: The end of its quiet hours. Facts: `hours`.
    QUIET_HOURS = "quiet hours", _("quiet hours: %(hours)s")
    #: A replica that has caught up. This and the next two have `found` and `limit`.
    REPLICATION_LAG = (
        "replication lag",
        _("%(found)s s of replication lag, of at most %(limit)s"),
    )
    ACTIVE_SESSIONS = "active sessions", _("%(found)s active sessions, of at most %(limit)s")
    TRANSACTION_AGE = (
        "transaction age",
        _("%(found)s s since a transaction began, of at most %(limit)s"),
    )
    #: The end of a vacuum. Facts: `tables`.
    VACUUM = "vacuum", _("%(tables)s is being vacuumed")
    #: A permit. Facts: `limit`, and `queue` ("": the default).
    MAX_REFRESHES = "max refreshes", ""
    #: Its turn among the long refreshes of its queue. No facts.
    TURNS = "turns", _("takes turns with other long refreshes")
    #: The end of refreshes that it follows, of views that it reads. No facts.
    UPSTREAM = "upstream", _("waits for refreshes of views that it reads")


class Wait(NamedTuple):
    """Why something waits."""

    #: A `WaitCode`, or that of a newer version.
    code: str
    #: What the sentence about it needs, by name.
    facts: dict[str, Any] = {}  # never changed in place

    def __str__(self) -> str:
        """The sentence in English, for commands, logs and JSON."""
        with translation.override(None):
            return self._sentence({name: _english(fact) for name, fact in self.facts.items()})

    @property
    def shown(self) -> str:
        """The sentence in the language that is active."""
        return self._sentence(
            {
                name: localized(_english(fact)) if _is_number(fact) else fact
                for name, fact in self.facts.items()
            }
        )

    def _sentence(self, facts: dict[str, Any]) -> str:
        if self.code == WaitCode.MAX_REFRESHES:
            return self._of_permits(facts)
        known = self.code in WaitCode.values
        return str(WaitCode(self.code).label) % facts if known else self.code

    def _of_permits(self, facts: dict[str, Any]) -> str:
        limit = self.facts["limit"]
        if not self.facts["queue"]:
            return (
                ngettext(
                    "at most %(limit)s view is refreshed at the same time",
                    "at most %(limit)s views are refreshed at the same time",
                    limit,
                )
                % facts
            )
        return (
            ngettext(
                "at most %(limit)s view of the queue %(queue)s is refreshed at the same time",
                "at most %(limit)s views of the queue %(queue)s are refreshed at the same time",
                limit,
            )
            % facts
        )


def _is_number(fact: Any) -> bool:
    return isinstance(fact, int | float)


def _english(fact: Any) -> str:
    return f"{fact:,.0f}" if _is_number(fact) else str(fact)
