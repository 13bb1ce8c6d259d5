"""Views that read others whose rows are not kept up to date: because they fail, or are held."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from django.db.models import OuterRef, Subquery

from ...definition import ViewDefinition
from ...models import Refresh, ViewControl
from ...queryset import fault_of
from ...registry import registry
from ...states import RefreshState
from ..transactions import alias
from .view_graph import reached, views_upstream

__all__ = ["NO_PROBLEM", "Upstream", "fault_of_class", "upstream_problems", "with_problems"]


class Upstream(NamedTuple):
    """Labels of the views that a view reads, directly or not, and that have a problem."""

    #: Those that are invalid, suspended or have failed, and are not held.
    failed: tuple[str, ...] = ()
    #: Those that a person has paused or disabled.
    held: tuple[str, ...] = ()

    def of(self, label: str, reads: Mapping[str, Collection[str]]) -> "Upstream":
        """Those of them that a view reads.

        Args:
            label: the view.
            reads: the views that each view reads.
        """
        if not (self.failed or self.held) or not reads.get(label):
            return NO_PROBLEM
        above = reached([label], reads) - {label}
        return Upstream(*(tuple(sorted(above.intersection(labels))) for labels in self))


NO_PROBLEM = Upstream()


def with_problems(controls: Mapping[str, Any]) -> Upstream:
    """Those of the views that have a problem.

    Args:
        controls: by label, annotated with the `last_state` of a refresh.
    """
    failed, held = [], []
    for label, control in controls.items():
        definition = registry.find(label) if label in registry else None
        if control.paused or not control.enabled:
            held.append(label)
        elif definition and (
            control.suspended_at
            or control.failures
            or control.last_state == RefreshState.FAILED
            or fault_of_class(definition)
        ):
            failed.append(label)
    return Upstream(tuple(failed), tuple(held))


def upstream_problems(label: str) -> Upstream:
    """The views that a view reads and that have a problem: one statement, none if it reads none."""
    reads = views_upstream(label)
    if len(reads) < 2:
        return NO_PROBLEM
    ended = Refresh.objects.filter(state__in=(RefreshState.SUCCEEDED, RefreshState.FAILED))
    last = ended.filter(view=OuterRef("pk")).order_by("-pk").values("state")[:1]
    needed = "label", "paused", "enabled", "suspended_at", "failures"
    controls = ViewControl.objects.filter(label__in=reads.keys() - {label}).only(*needed)
    rows = controls.annotate(last_state=Subquery(last))
    return with_problems({control.label: control for control in rows})


def fault_of_class(definition: ViewDefinition) -> str:
    """Why the view cannot be refreshed, "" if it can."""
    if definition.errors:
        return " ".join(str(each.msg) for each in definition.errors)
    return fault_of(definition, alias()) if definition.derived else ""
