"""SQLite files for the demos."""

from pathlib import Path

from django.core.management.base import CommandError
from django.db import connection

__all__ = ["use_file"]


def use_file(path: Path, *, empty: bool) -> None:
    """Work in this SQLite file for the rest of this process; if `empty`, what is in it goes.

    Raises:
        CommandError: the settings name another kind of database.
    """
    if connection.vendor != "sqlite":
        raise CommandError("The demo works in a SQLite file: unset DATABASE_URL.")
    connection.close()
    for suffix in ("", "-wal", "-shm") if empty else ():
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    connection.settings_dict["NAME"] = path
