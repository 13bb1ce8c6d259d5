"""Which views the command is about, and asking for their refreshes."""

import getpass
from dataclasses import dataclass, field
from typing import Any

from django.core.management.base import CommandError

from matviews import engine
from matviews.exceptions import InvalidRequest, MatviewsError
from matviews.models import Origin, Refresh
from matviews.phases import Phase
from matviews.registry import registry

from .options import Asked, refusal
from .output import Output

__all__ = ["Requests"]


@dataclass(kw_only=True)
class Requests:
    """The views that the command is about.

    Attributes:
        asked: the options.
        output: where errors go.
        failed: the views that failed so far.
    """

    asked: Asked
    output: Output
    failed: list[str] = field(default_factory=list)

    def labels(self) -> list[str]:
        """The views that were named, else those of a refresh of all that have the phases.

        Raises:
            CommandError: there is no view that could be meant.
        """
        if self.asked.labels:
            return list(self.asked.labels)
        self.refuse_without_views()
        included = engine.views_to_refresh()
        labels = [label for label in included if self.phases_of(label) != ()]
        if included and not labels:
            raise refusal(
                f"Nothing to do: no view has the phase {' or '.join(self.asked.phases or ())}."
            )
        if not labels:
            self.output.say(
                "Nothing to do: every view is disabled, paused or left out of a refresh of all. Name one "
                "with --models."
            )
        return labels

    def refuse_in_transaction(self) -> None:
        """End the command where it is called within a transaction, and would have to commit.

        Raises:
            CommandError: it is.
        """
        try:
            engine.check_no_transaction("update_materialized_views")
        except InvalidRequest as error:
            raise refusal(str(error)) from error

    def refuse_without_views(self) -> None:
        """End the command where the code defines no view.

        Raises:
            CommandError: it defines none.
        """
        if not list(registry):
            raise refusal(
                "Nothing to do: no view is defined. Is the app that defines one in INSTALLED_APPS, and is the "
                "class a model that is not abstract?"
            )

    def phases_of(self, label: str) -> tuple[Phase, ...] | None:
        """The phases asked for; those that a view lacks are left out unless it was named."""
        asked = self.asked.phases
        if asked is None or self.asked.labels:
            return asked
        return tuple(phase for phase in registry.find(label).options.phases if phase in asked)

    def request(self, label: str) -> Refresh | None:
        """Ask for a refresh; None, and told why, if that is refused."""
        try:
            return engine.request(
                label,
                phases=self.phases_of(label),
                origin=Origin.COMMAND,
                requested_by=_user(),
                batch_size=self.asked.batch_size,
            )
        except MatviewsError as error:
            self.fail(label, str(error))
            self.output.entries.append(_refused(label, str(error)))
            return None

    def fail(self, label: str, error: str) -> None:
        """Tell an error of a view, under its name."""
        self.failed.append(label)
        for line in error.splitlines():
            self.output.warn(f"{label}: {line.removeprefix(f'{label}: ')}")

    def raise_failed(self, labels: list[str]) -> None:
        """End the command with status 1 if a view failed.

        Raises:
            CommandError: one did.
        """
        if self.failed:
            names = ", ".join(self.failed)
            raise CommandError(f"{len(self.failed)} of {len(labels)} views failed: {names}.")


def _refused(label: str, error: str) -> dict[str, Any]:
    return {"view": label, "refresh": None, "state": "refused", "error": error}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""
