"""Traffic for the live demo: small changes at random, made as an application would make them.

The flights that it adds, delays, cancels and withdraws are in January 2014, where there are none at
first. Their number is bounded, however long it goes on.
"""

import random
from datetime import date, timedelta

from django.db.models import F, Max

from .models import Flight, Plane

__all__ = ["Traffic"]

FIRST_DAY = date(2014, 1, 1)
DAYS = 31
MOST_FLIGHTS = 2_000
MOST_RETIRED = 20  # planes


class Traffic:
    """Each change returns a line that says what it was.

    Raises `ObjectDoesNotExist` where somebody else has removed what it would change.
    """

    def __init__(self) -> None:
        self._flown = Flight.objects.filter(day__lt=FIRST_DAY)
        self._coming = Flight.objects.filter(day__gte=FIRST_DAY)
        self._retired = Plane.objects.filter(retired=FIRST_DAY)
        self._last_flown = self._flown.aggregate(last=Max("pk"))["last"]

    def change(self) -> str:
        coming = self._coming.count()
        if coming == 0:
            return self._add()
        if coming >= MOST_FLIGHTS:
            return self._withdraw()
        changes = {
            self._add: 10, self._delay: 8, self._cancel: 4, self._withdraw: 1, self._retire: 1,
        }  # fmt: skip
        return random.choices(list(changes), list(changes.values()))[0]()

    def _add(self) -> str:
        """A flight of 2013 once more."""
        flight = self._flown.filter(pk__gte=random.randint(1, self._last_flown)).earliest("pk")
        day = FIRST_DAY + timedelta(days=random.randrange(DAYS))
        flight.pk = None
        flight.scheduled += day - flight.day
        flight.day = day
        flight.save()
        return f"{flight} added"

    def _delay(self) -> str:
        flight, minutes = self._any_coming(), random.randint(10, 60)
        Flight.objects.filter(pk=flight.pk).update(
            departure_delay=F("departure_delay") + minutes,
            arrival_delay=F("arrival_delay") + minutes,
        )
        return f"{flight} delayed by {minutes} minutes"

    def _cancel(self) -> str:
        flight = self._any_coming()
        Flight.objects.filter(pk=flight.pk).update(
            cancelled=True, departure_delay=None, arrival_delay=None, air_time=None
        )
        return f"{flight} cancelled"

    def _withdraw(self) -> str:
        flight = self._any_coming()
        rows, _ = Flight.objects.filter(carrier=flight.carrier_id, day=flight.day).delete()
        return f"flights of {flight.carrier_id} of {flight.day} withdrawn: {rows}"

    def _retire(self) -> str:
        if self._retired.count() >= MOST_RETIRED:
            plane = self._retired.earliest("pk")
            Plane.objects.filter(pk=plane.pk).update(retired=None)
            return f"plane {plane} back in service"
        plane = Plane.objects.filter(retired=None).order_by("?")[:1].get()
        Plane.objects.filter(pk=plane.pk).update(retired=FIRST_DAY)
        return f"plane {plane} retired"

    def _any_coming(self) -> Flight:
        return self._coming.order_by("?")[:1].get()
