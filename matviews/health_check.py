"""The health as a check of django-health-check 4, which has to be installed."""

from dataclasses import dataclass

from health_check.base import HealthCheck
from health_check.exceptions import ServiceUnavailable

from .health import HealthState, connection_returned, recent_health

__all__ = ["Matviews"]


@dataclass
class Matviews(HealthCheck):  # type: ignore[misc]  # it has no types
    """Fails while the health is *broken*; like `matviews.health.health`, not while *degraded*."""

    def run(self) -> None:
        """Look at the health, at most once every 5 seconds.

        Raises:
            ServiceUnavailable: it is broken; the message has the problems, without values of rows.
        """
        with connection_returned():  # it is called in a thread
            found = recent_health()
        if found.state is HealthState.BROKEN:
            broken = (each.text for each in found.problems if each.state is HealthState.BROKEN)
            raise ServiceUnavailable(" ".join(broken))
