"""The secret by which a session proves that it may suppress the log of changes."""

from django.db import DatabaseError, transaction

from ..exceptions import NotPermitted
from ..models import LogSecret

__all__ = ["log_secret"]


def log_secret(using: str) -> str:
    """The secret that triggers compare with; created if it is missing, as after a flush.

    Raises:
        NotPermitted: this role may not read it.
    """
    secrets = LogSecret.objects.using(using)
    try:
        with transaction.atomic(using=using):
            if not (found := secrets.first()):
                secrets.bulk_create([LogSecret()], ignore_conflicts=True)
                found = secrets.get()
    except DatabaseError as error:
        raise NotPermitted(
            f"untracked() needs the right to read {LogSecret._meta.db_table}: "
            f"{str(error).strip()}. Grant it only to the roles of web processes and "
            f"workers, and run `manage.py migrate` if the table does not exist."
        ) from error
    return found.value
