import time
from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from django.core.management.base import BaseCommand
from django.db import OperationalError

from flights.traffic import Traffic

PAUSE = 0.4  # seconds between two changes


class Command(BaseCommand):
    help = "Keep adding, delaying, cancelling and withdrawing flights of January 2014."

    def handle(self, *_args: Any, **_options: Any) -> None:
        traffic = Traffic()
        self.stdout.write("Flights change until Ctrl-C.")
        try:
            while True:
                self.change(traffic)
                time.sleep(PAUSE)
        except KeyboardInterrupt:
            self.stdout.write("Stopped.")

    def change(self, traffic: Traffic) -> None:
        try:
            self.stdout.write(traffic.change())
        # Somebody holds SQLite's one lock for long, or has removed what was to change.
        except (OperationalError, ObjectDoesNotExist) as error:
            self.stderr.write(f"Not done: {error}")
