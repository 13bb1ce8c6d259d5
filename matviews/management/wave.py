"""`--wave`: the refreshes that one has followed and led to, with their times."""

from datetime import datetime
from typing import Any

from matviews import engine
from matviews.models import Refresh
from matviews.presentation import format_duration, format_time, pluralize

from .options import refusal
from .targets import Targets

__all__ = ["wave", "wave_as_dict"]


def wave(targets: Targets) -> None:
    """Show the wave of a refresh, a line for each, with the times since the first request.

    Raises:
        CommandError: there is no such refresh.
    """
    refresh = Refresh.objects.filter(pk=targets.options.wave or 0).first()
    if refresh is None:
        raise refusal(f"There is no refresh {targets.options.wave}, or it has been deleted.")
    steps, output = engine.wave_of(refresh), targets.output
    output.subject = "wave"
    output.entries += map(wave_as_dict, steps)
    began = steps[0].requested_at
    output.say(f"The first was requested at {format_time(began)}.")
    for step in steps:
        output.say(_line(step, began))


def _line(step: Any, began: datetime) -> str:
    after = f"requested after {format_duration(step.requested_at - began)}"
    ended = step.finished_at
    took = f", took {format_duration(ended - step.requested_at)}" if ended else ""
    followed = ", ".join(map(str, step.upstream_refreshes))
    follows = f", follows {followed}" if followed else ""
    rows = pluralize(step.rows_written or 0, "row")
    return f"{step.pk} {step.view.label}: {step.state}, {after}{took}, {rows}{follows}"


def wave_as_dict(step: Any) -> dict[str, Any]:
    """A refresh of a wave. Times are in ISO 8601."""
    return {
        "view": step.view.label,
        "refresh": step.pk,
        "origin": step.origin,
        "upstream_refreshes": step.upstream_refreshes,
        "state": step.state,
        "rows": step.rows_written or 0,
        **{
            name: time and time.isoformat()
            for name in ("requested_at", "started_at", "finished_at")
            for time in [getattr(step, name)]
        },
    }
