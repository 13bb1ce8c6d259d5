from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from flights.loading import DataMissing, load_flights


class Command(BaseCommand):
    help = "Load the flights of 2013 from New York; does nothing if there are flights already."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--days", type=int, help="Load only the first DAYS days of the year.")

    def handle(self, *_args: Any, days: int | None, **_options: Any) -> None:
        try:
            loaded = load_flights(self.show, days=days)
        except DataMissing as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{loaded:,} flights loaded." if loaded else "There are flights already.")

    def show(self, loaded: int) -> None:
        if loaded % 50_000 == 0:
            self.stdout.write(f"{loaded:,} flights ...")
