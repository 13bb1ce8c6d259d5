"""The flights of 2013 from New York, and four views of them.

`sources.py` holds what an airport would know. `carrier_day.py`, `route_summary.py`,
`month_total.py` and `aircraft.py` hold one view each. Django finds a view because this module
imports it.
"""

from .aircraft import Aircraft
from .carrier_day import CarrierDay
from .month_total import MonthTotal
from .route_summary import RouteSummary
from .sources import Airline, Airport, Flight, Plane

__all__ = [
    "Aircraft",
    "Airline",
    "Airport",
    "CarrierDay",
    "Flight",
    "MonthTotal",
    "Plane",
    "RouteSummary",
]
