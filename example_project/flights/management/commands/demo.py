from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection
from rich.console import Console

from flights.demo import run
from flights.loading import DataMissing

DATABASE = Path(__file__).resolve().parents[3] / "demo.sqlite3"


class Command(BaseCommand):
    help = (
        "Load real flights into an empty SQLite file, build the views, change flights, refresh, "
        "compare. Needs no server, no broker and no worker."
    )

    def handle(self, *_args: Any, **_options: Any) -> None:
        use_empty_database(DATABASE)
        try:
            equal = run(Console(), lambda: call_command("update_materialized_views"))
        except DataMissing as error:
            raise CommandError(str(error)) from error
        if not equal:
            raise CommandError("A view differs from its recomputation, see above.")


def use_empty_database(path: Path) -> None:
    """Work in a file of the demo's own for the rest of this process; what is in it goes."""
    if connection.vendor != "sqlite":
        raise CommandError("The demo works in a SQLite file: unset DATABASE_URL.")
    connection.close()
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    connection.settings_dict["NAME"] = path
