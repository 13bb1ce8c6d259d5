"""`--health`: whether views are refreshed as they should be, for monitoring."""

from django.core.management.base import CommandError

from matviews.health import HealthState, as_dict, check_health

from .targets import Targets

__all__ = ["health"]

EXIT_STATUS = {HealthState.BROKEN: 1, HealthState.DEGRADED: 3}


def health(targets: Targets) -> None:
    """Report what is wrong.

    Raises:
        CommandError: something is; its exit status is 1 if no view is refreshed as it should be,
            and 3 if only some views are not.
    """
    found, output = check_health(), targets.output
    output.subject, output.entries = "problems", as_dict(found)["problems"]
    output.facts["state"] = found.state.value
    for problem in found.problems:
        output.say(f"{problem.state}: {problem.text}")
    if found.state is HealthState.FINE:
        output.say("fine: every view is refreshed as it should be")
        return
    count = len(found.problems)
    raise CommandError(f"{count} problem{'s' * (count > 1)}.", returncode=EXIT_STATUS[found.state])
