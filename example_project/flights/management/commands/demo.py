from functools import partial
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console

from flights.demo import run
from flights.loading import DataMissing
from flights.management.databases import use_file

DATABASE = Path(__file__).resolve().parents[3] / "demo.sqlite3"


class Command(BaseCommand):
    help = (
        "Load real flights into an empty SQLite file, build the views, change flights, refresh, "
        "verify, compare. Needs no server, no broker and no worker."
    )

    def handle(self, *_args: Any, **_options: Any) -> None:
        use_file(DATABASE, empty=True)
        try:
            equal = run(Console(), partial(call_command, "update_materialized_views"))
        except DataMissing as error:
            raise CommandError(str(error)) from error
        if not equal:
            raise CommandError("A view differs from its recomputation, see above.")
