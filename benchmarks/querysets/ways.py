"""Ways to keep a table equal to a queryset: the refresh of this package, and its peers.

Each has a table of its own, so that all of them see the same changes.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

from django.db import connection, transaction
from django.db.models import Model, QuerySet
from django.db.models.constants import OnConflict

from matviews import engine
from matviews.engine import BatchReport
from matviews.models import Refresh
from matviews.states import RefreshState
from matviews.tasks import inline

from .loading import empty, tidy, tidy_table
from .names import LOOP, NATIVE, REFRESH, STATEMENT

__all__ = ["Loop", "Native", "Source", "Statement", "View", "Way"]

CHUNK = 2_000

Source = Callable[[], QuerySet[Any, Any]]


class Way(Protocol):
    """One way, with its table."""

    name: str

    def empty(self) -> None:
        """Leave the table as it is before the first build."""

    def build(self) -> object:
        """Fill the empty table."""

    def renew(self) -> object:
        """Bring the filled table up to date."""

    def tidy(self) -> None:
        """Do what the database's own housekeeping does with the table after a while."""


class View:
    """The refresh of all three phases by the engine, in this process.

    Attributes:
        model: the view.
        reports: of the batches of the last refresh.
    """

    name = REFRESH

    def __init__(self, model: type[Any]) -> None:
        self.model = model
        self.reports: list[BatchReport] = []

    def empty(self) -> None:
        """Also forget what earlier refreshes have learnt of the size of batches."""
        Refresh.objects.filter(view__label=self.model._meta.label).delete()
        empty(self.model)

    def build(self) -> None:
        self.reports.clear()
        refresh = inline.run_to_end(engine.request(self.model), on_report=self.reports.append)
        assert refresh.state == RefreshState.SUCCEEDED, refresh.error

    renew = build

    @property
    def longest(self) -> float:
        """Seconds of the longest batch of the last refresh, with its bookkeeping."""
        return max(report.seconds for report in self.reports)

    def tidy(self) -> None:
        tidy(self.model)


def _fields(model: type[Model], source: Source) -> dict[str, Any]:
    """The fields of a model by the names that they have in the queryset, in its order."""
    return {name: model._meta.get_field(name) for name in source().query.selected or ()}


class _Peer:
    """A peer that writes the table of a model.

    Args:
        model: the model.
        source: what its rows shall be.
        key: names of the fields that identify a row.
    """

    def __init__(self, model: type[Model], source: Source, key: tuple[str, ...]) -> None:
        self._model, self._source = model, source
        self._fields = _fields(model, source)
        self._key = [field for field in self._fields.values() if field.name in key]
        self._rest = [field for field in self._fields.values() if field.name not in key]

    def empty(self) -> None:
        empty(self._model)

    def tidy(self) -> None:
        tidy(self._model)


class Statement(_Peer):
    """One `INSERT ... SELECT`; with an upsert to renew, which writes every row."""

    name = STATEMENT

    def build(self) -> None:
        self._insert()

    def renew(self) -> None:
        self._insert(
            connection.ops.on_conflict_suffix_sql(
                (),
                OnConflict.UPDATE,
                [field.column for field in self._rest],
                [field.column for field in self._key],
            )
        )

    def _insert(self, suffix: str = "") -> None:
        quote = connection.ops.quote_name
        select, parameters = self._source().query.sql_with_params()
        columns = ", ".join(quote(field.column) for field in self._fields.values())
        table = quote(self._model._meta.db_table)
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} ({columns}) {select} {suffix}", parameters)


class Loop(_Peer):
    """What one writes with the ORM: `iterator()` and `bulk_create`; to renew, of every row."""

    name = LOOP

    def build(self) -> None:
        self._write()

    def renew(self) -> None:
        self._write(
            update_conflicts=True,
            update_fields=[field.name for field in self._rest],
            unique_fields=[field.name for field in self._key]
            if connection.features.supports_update_conflicts_with_target
            else None,
        )

    def _write(self, **options: Any) -> None:
        with transaction.atomic():
            rows = self._source().iterator(CHUNK)
            while chunk := [self._instance(row) for row in islice(rows, CHUNK)]:
                self._model._base_manager.bulk_create(chunk, **options)

    def _instance(self, row: dict[str, Any]) -> Model:
        return self._model(**{self._fields[name].attname: value for name, value in row.items()})


class Native:
    """A materialized view of PostgreSQL with a unique index, to renew concurrently.

    Args:
        model: the view whose rows it has.
        source: what its rows shall be.
        key: names of the fields that identify a row.
    """

    name = NATIVE

    def __init__(self, model: type[Model], source: Source, key: tuple[str, ...]) -> None:
        self.table = f"{model._meta.db_table}_native"
        columns = ", ".join(
            connection.ops.quote_name(name)
            for name, field in _fields(model, source).items()
            if field.name in key
        )
        select, parameters = source().query.sql_with_params()
        with connection.cursor() as cursor:
            cursor.execute(f"DROP MATERIALIZED VIEW IF EXISTS {self.table}")
            cursor.execute(
                f"CREATE MATERIALIZED VIEW {self.table} AS {select} WITH NO DATA", parameters
            )
            cursor.execute(f"CREATE UNIQUE INDEX ON {self.table} ({columns})")

    def empty(self) -> None:
        self._refresh("", "WITH NO DATA")

    def build(self) -> None:
        self._refresh("", "")

    def renew(self) -> None:
        self._refresh("CONCURRENTLY", "")

    def tidy(self) -> None:
        tidy_table(self.table)

    def _refresh(self, how: str, suffix: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"REFRESH MATERIALIZED VIEW {how} {self.table} {suffix}")
