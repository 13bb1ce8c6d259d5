"""The secret by which a session proves that it may write without being logged."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DatabaseError, transaction

from ..databases import triggers_of
from ..exceptions import NotPermitted
from ..models import LogSecret

__all__ = ["as_batch", "log_secret"]


def log_secret(using: str) -> str:
    """The secret that triggers compare with; created if it is missing, as after a flush.

    Raises:
        NotPermitted: this role may not read it.
    """
    with _explained("untracked()"), transaction.atomic(using=using):
        return _read(using)


def _read(using: str) -> str:
    secrets = LogSecret.objects.using(using)
    if not (found := secrets.first()):
        secrets.bulk_create([LogSecret()], ignore_conflicts=True)
        found = secrets.get()
    return found.value


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """A context whose errors mean that this role may not read the secret, which `what` needs."""
    try:
        yield
    except DatabaseError as error:
        raise NotPermitted(
            f"{what} needs the right to read {LogSecret._meta.db_table}: "
            f"{str(error).strip()}. Grant it only to the roles of web processes and "
            f"workers, and run `manage.py migrate` if the table does not exist."
        ) from error


@contextmanager
def as_batch(using: str, table: str) -> Iterator[None]:
    """A context, in a transaction, in which a batch writes to the table of its read-only view.

    Raises:
        NotPermitted: this role may not read the secret.
    """
    with _explained("A batch of a view with MatviewMeta.read_only"):
        secret = _read(using)
    with triggers_of(using).as_batch(table, secret):
        yield
