"""The flights of 2013 from New York, and three views of them.

`sources.py` holds what an airport would know. `carrier_day.py`, `route_summary.py` and
`aircraft.py` hold one view each. Django finds a view because this module imports it.
"""

from .aircraft import Aircraft
from .carrier_day import CarrierDay
from .route_summary import RouteSummary
from .sources import Airline, Airport, Flight, Plane

__all__ = [
    "Aircraft",
    "Airline",
    "Airport",
    "CarrierDay",
    "Flight",
    "Plane",
    "RouteSummary",
]
