"""What is wrong with refreshing a view on change, for `check` and for its page in the admin."""

from collections.abc import Iterator
from typing import NamedTuple

from django.utils.translation import gettext as _

from .. import engine
from ..models import ViewControl
from ..presentation import format_duration

__all__ = ["Remark", "remarks_on"]


class Remark(NamedTuple):
    """A warning for the operator of a view, in the language that was active."""

    #: The id of the check that says it.
    id: str
    #: What it is.
    text: str
    #: What to do about it.
    hint: str


def remarks_on(control: ViewControl) -> Iterator[Remark]:
    """What a view on change cannot do as intended; nothing for other views."""
    schedules = [each for each in control.schedules.all() if each.enabled and each.refreshes]
    if not any(each.on_change for each in schedules):
        return
    if engine.has_dates(control.definition) and all(each.on_change for each in schedules):
        text = _(
            "%(view)s is refreshed only when its source tables change. But its source() depends "
            "on the current date, so its rows also change as time passes, and nothing refreshes "
            "them then."
        )
        hint = _("Add a schedule with an interval or a crontab, as often as its dates change.")
        yield Remark("matviews.W047", text % {"view": control.label}, hint)
    if missed := engine.missed_target(control):
        text = _(
            "The target of %(view)s is %(target)s, but a refresh usually takes %(takes)s, so its "
            "rows exceed the target after each change."
        ) % {
            "view": control.label,
            "takes": format_duration(missed.takes),
            "target": format_duration(missed.target),
        }
        hint = _("Raise its freshness target, or make its refreshes shorter: --explain shows how.")
        yield Remark("matviews.W048", text, hint)
