"""Which views the command works on, and requesting their refreshes."""

import getpass
from dataclasses import dataclass, field
from typing import Any

from django.core.management.base import CommandError

from matviews import engine
from matviews.engine import Order
from matviews.exceptions import InvalidRequest, MatviewsError
from matviews.models import Origin, Refresh, ViewControl
from matviews.phases import Phase
from matviews.presentation import pluralize
from matviews.registry import registry

from .options import Options, refusal
from .output import Output

__all__ = ["Targets"]


@dataclass(kw_only=True)
class Targets:
    """The views that the command works on."""

    options: Options
    #: Where lines, entries and errors go.
    output: Output
    #: The labels of the views that have failed so far.
    failed: list[str] = field(default_factory=list)
    #: Those that are refreshed because they read the named ones.
    downstream: tuple[str, ...] = ()

    def labels(self) -> list[str]:
        """The views that were named, or else those of a refresh of all that have the phases.

        Those around the named ones are included if they were asked for, except disabled ones.

        Raises:
            CommandError: no view is defined, or none has the phases.
        """
        if self.options.labels:
            around = engine.neighbours(
                self.options.labels,
                upstream=self.options.upstream,
                downstream=self.options.downstream,
            )
            self.downstream = around.downstream
            return [*around.upstream, *self.options.labels, *around.downstream]
        self.refuse_without_views()
        included = engine.views_to_refresh()
        labels = [label for label in included if self.phases_of(label) != ()]
        if included and not labels:
            phases = " or ".join(self.options.phases or ())
            raise refusal(f"Nothing to refresh: no view has the phase {phases}.")
        if not labels:
            self.output.say(f"Nothing to refresh: {_why_none()}. Name views with --models.")
        return labels

    def labels_with_source(self) -> list[str]:
        """The same, but only views that have a `source()`.

        Raises:
            CommandError: also if a view that was named has none.
        """
        labels = self.labels()
        without = [label for label in labels if not registry.find(label).has_source]
        if without and self.options.labels:
            verb, possessive = ("has", "its") if len(without) == 1 else ("have", "their")
            raise refusal(
                f"{', '.join(without)} {verb} no source(); only {possessive} hooks know "
                f"{possessive} rows. Name views with a source()."
            )
        if without:
            self.output.say(f"Skipped (no source()): {', '.join(without)}.")
        return [label for label in labels if label not in without]

    def refuse_in_transaction(self) -> None:
        """End the command if its caller is in a transaction, which it would have to commit.

        Raises:
            CommandError: it is.
        """
        try:
            engine.check_no_transaction("update_materialized_views")
        except InvalidRequest as error:
            raise refusal(str(error)) from error

    def refuse_without_views(self) -> None:
        """End the command if the code defines no view.

        Raises:
            CommandError: it defines none.
        """
        if not list(registry):
            raise refusal(
                "Nothing to refresh: no view is defined. Is its app in INSTALLED_APPS, and is the "
                "class a model that is not abstract?"
            )

    def phases_of(self, label: str) -> tuple[Phase, ...] | None:
        """The requested phases; if the view was not named, only those that it has."""
        phases = self.options.phases
        if phases is None or label in self.options.labels:
            return phases
        return tuple(phase for phase in registry.find(label).options.phases if phase in phases)

    def request(self, label: str, order: Order) -> Refresh | None:
        """Request a refresh; if it is refused, report why and return None.

        Args:
            label: the view.
            order: what was requested before. If any of it is open and of a view that this one
                reads, the refresh waits for that.
        """
        try:
            requested = engine.request(
                label,
                phases=self.phases_of(label),
                origin=Origin.DEPENDENCY if label in self.downstream else Origin.COMMAND,
                upstream_refreshes=order.follows(label),
                waits_for_upstream=True,
                requested_by=_user(),
                batch_size=self.options.batch_size,
                force=True,
            )
        except MatviewsError as error:
            self.fail(label, str(error))
            self.output.entries.append(_refused(label, str(error)))
            return None
        order.add(label, requested)
        return requested

    def fail(self, label: str, error: str) -> None:
        """Report an error of a view, each line after its label."""
        self.failed.append(label)
        for line in error.splitlines():
            self.output.warn(f"{label}: {line.removeprefix(f'{label}: ')}")

    def failure(self, labels: list[str]) -> str:
        """How many of the views failed and which, in a sentence; "" if none did."""
        if not self.failed:
            return ""
        return f"{len(self.failed)} of {len(labels)} views failed: {', '.join(self.failed)}."

    def raise_failed(self, labels: list[str]) -> None:
        """End the command with status 1 if a view failed.

        Raises:
            CommandError: one did.
        """
        if failure := self.failure(labels):
            raise CommandError(failure)


def _why_none() -> str:
    """Why a refresh of all views includes none: how many are disabled, paused or excluded."""
    counts = {"disabled": 0, "paused": 0, "excluded from a refresh of all": 0}
    for control in ViewControl.objects.filter(label__in=[each.label for each in registry]):
        reason = "disabled" if not control.enabled else "paused" if control.paused else ""
        counts[reason or "excluded from a refresh of all"] += 1
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
    return f"of {pluralize(sum(counts.values()), 'view')}, {reasons}"


def _refused(label: str, error: str) -> dict[str, Any]:
    return {"view": label, "refresh": None, "state": "refused", "error": error}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return ""
