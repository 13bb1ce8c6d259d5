"""What triggers log, and what is left to process."""

from collections.abc import Collection, Mapping
from secrets import token_hex
from typing import Any

from django.db import models
from django.utils.functional import cached_property

from ..databases import dialect_of, floors_of
from ..databases.clock import UtcNow
from ..databases.trigger_spec import TriggerSpec, ValueLog
from .base import Bookkeeping, WriteDatabaseManager
from .control import ViewControl
from .shard import ViewShard

__all__ = [
    "Change",
    "CurrentTransaction",
    "DirtyKeys",
    "LogFloor",
    "LogSecret",
    "ShardChange",
    "TableNameField",
    "TrackedTable",
    "TransactionField",
    "TransactionIndex",
    "ViewChange",
    "ViewSums",
]  # fmt: skip


class TableNameField(models.CharField):  # type: ignore[type-arg]
    """The name of a table, compared byte by byte: "Order" and "order" may be two tables."""

    def db_parameters(self, connection: Any) -> Any:
        found = super().db_parameters(connection)
        collation = dialect_of(connection.alias).exact_collation
        return {**found, "collation": collation} if collation else found


class CurrentTransaction(models.Func):
    """The ID of the transaction that writes a row; 0 where transactions have none."""

    template, arity = "0", 0

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """An ID that no other transaction of the cluster gets, before or after."""
        return self.as_sql(compiler, connection, template="pg_current_xact_id()", **context)


class TransactionField(models.Field):  # type: ignore[type-arg]
    """Transaction IDs, for PostgreSQL's `Floors`; other databases have none.

    Args:
        kind: the type of the column.
    """

    def __init__(self, kind: str = "xid8", **options: Any) -> None:
        self.kind = kind
        super().__init__(**options)

    def db_type(self, connection: Any) -> str:
        return self.kind if floors_of(connection.alias).rise else "smallint"

    def deconstruct(self) -> Any:
        name, path, args, options = super().deconstruct()
        return name, path, args, {"kind": self.kind, **options}


class TransactionIndex(models.Index):
    """An index that begins with a transaction ID; without it where all are alike."""

    def create_sql(self, model: Any, schema_editor: Any, using: str = "", **options: Any) -> Any:
        if floors_of(schema_editor.connection.alias).rise:
            return super().create_sql(model, schema_editor, using, **options)
        _transaction, *names = self.fields
        index = models.Index(fields=names, name=self.name)
        return index.create_sql(model, schema_editor, using, **options)


class TrackedTable(Bookkeeping):
    """A source table whose changes triggers log, and the views that need them.

    The views are recorded here because any worker may move the log, and its code may be of another
    version.
    """

    table = TableNameField(max_length=255, unique=True)
    #: The columns whose changes are logged; None for all.
    columns = models.JSONField(null=True)
    #: The columns whose values are logged, before and after a change.
    links = models.JSONField(default=list)
    #: The columns of which an entry says whether they changed.
    recorded = models.JSONField(default=list)
    #: The value logs that get each change: a name and columns.
    value_logs = models.JSONField(default=list)
    #: What identifies each trigger. Filled once they log and every view has a full refresh queued.
    triggers = models.JSONField(default=list)
    #: Primary keys of the views' controls.
    views = models.JSONField(default=list)
    #: The columns that each view reads, by primary key of its control; a view that is missing here
    #: reads all.
    view_columns = models.JSONField(default=dict)
    #: A value of the table that TRUNCATE changes; "" where TRUNCATE fires a trigger.
    storage = models.CharField(max_length=40, blank=True)
    #: The version of the triggers that are still to be created; "" if there are none.
    pending_version = models.CharField(max_length=8, blank=True)

    objects = WriteDatabaseManager["TrackedTable"]()

    def __str__(self) -> str:
        return str(self.table)

    def record(self, spec: TriggerSpec, views: Mapping[int, frozenset[str] | None]) -> None:
        """Set what the triggers log, and the columns that each view reads, None for all."""
        self.spec = spec
        self.columns = None if spec.columns is None else sorted(spec.columns)
        self.links, self.recorded = sorted(spec.links), sorted(spec.recorded)
        self.value_logs = sorted([log.name, *log.columns] for log in spec.value_logs)
        self.views = sorted(views)
        self.view_columns = {
            str(pk): sorted(columns) for pk, columns in views.items() if columns is not None
        }

    @cached_property
    def spec(self) -> TriggerSpec:
        """What the triggers log."""
        columns = None if self.columns is None else frozenset(self.columns)
        logs = frozenset(ValueLog(name, tuple(names)) for name, *names in self.value_logs)
        return TriggerSpec(columns, frozenset(self.links), frozenset(self.recorded), logs)

    def views_reading(self, changed: Collection[str] | None) -> list[int]:
        """The views that read one of the changed columns.

        Args:
            changed: names of columns; None if any may have changed.
        """
        if changed is None:
            return list(self.views)
        read = {view: self.columns_read(view) for view in self.views}
        return [
            view
            for view, columns in read.items()
            if columns is None or not columns.isdisjoint(changed)
        ]

    def columns_read(self, view_id: int) -> frozenset[str] | None:
        """The columns that a view reads; None for all."""
        columns = self.view_columns.get(str(view_id))
        return None if columns is None else frozenset(columns)


class ViewSums(Bookkeeping):
    """The tables of an additive view: its value log, and the sums of its groups.

    `migrate` creates and drops them for one definition of the view; workers with another definition
    use neither.
    """

    view = models.ForeignKey(
        ViewControl, models.CASCADE, related_name="sums", db_constraint=False, db_index=False
    )
    #: Digest of the definition.
    fingerprint = models.CharField(max_length=64)
    #: The names of the tables: the value log of the aggregated table, those of lookups, the sums.
    log = models.CharField(max_length=40, unique=True)
    lookups = models.JSONField(default=list)
    table = models.CharField(max_length=40)
    #: The last drain of the shard when the sums were computed; `STALE` or `FAILED` if they may not
    #: be used.
    drain_number = models.BigIntegerField(default=-1)
    #: The refresh that computed them; 0 for none.
    refresh = models.BigIntegerField(default=0)
    #: Why they, or those of some groups, were last recomputed; "" if never.
    reason = models.CharField(max_length=255, blank=True)

    objects = WriteDatabaseManager["ViewSums"]()

    STALE = -1
    FAILED = -2

    class Meta(Bookkeeping.Meta):
        verbose_name_plural = "view sums"
        indexes = (models.Index(fields=("view",), name="matviews_viewsums_view"),)

    def __str__(self) -> str:
        return f"the sums of {self.view}"

    @property
    def logs(self) -> list[str]:
        """The names of all value logs."""
        return [self.log, *self.lookups]


class Change(Bookkeeping):
    """An entry of the change log, written by a trigger: rows of a table have changed."""

    table = TableNameField(max_length=255)
    #: A list of column names, then lists of their values before or after the change. None if any
    #: row may have changed, or a text that says why.
    links = models.JSONField(null=True)
    #: The number of lists of values.
    count = models.PositiveIntegerField(db_default=1)
    #: Names of the recorded columns that an UPDATE changed; None if any column may have changed.
    changed = models.JSONField(null=True)
    logged_at = models.DateTimeField(db_default=UtcNow())
    transaction = TransactionField(db_default=CurrentTransaction(), editable=False)

    objects = WriteDatabaseManager["Change"]()

    class Meta:
        indexes = (TransactionIndex(fields=("transaction", "table"), name="matviews_change_xact"),)

    def __str__(self) -> str:
        return f"change {self.pk} of {self.table}"


class LogSecret(Bookkeeping):
    """What a session must know to switch logging off, as `untracked()` does; one row.

    Who can read it can write without being logged, so only the roles of matviews may.
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    value = models.CharField(max_length=64, default=token_hex)

    objects = WriteDatabaseManager["LogSecret"]()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return "the secret of untracked()"


class ViewChange(Bookkeeping):
    """An entry of a view's change queue. Equal entries are merged, and the oldest time is kept."""

    view = models.ForeignKey(
        ViewControl, models.CASCADE, related_name="changes", db_constraint=False, db_index=False
    )
    #: Blank if no table changed: then `links` has marked keys, or the reason why all are dirty.
    table = TableNameField(max_length=255, blank=True)
    #: As in the log.
    links = models.JSONField(null=True)
    #: The number of keys or lists of values; 0 if all keys are dirty whatever else is queued.
    count = models.PositiveIntegerField(db_default=1)
    logged_at = models.DateTimeField(db_default=UtcNow())
    transaction = TransactionField(db_default=CurrentTransaction(), editable=False)

    objects = WriteDatabaseManager["ViewChange"]()

    class Meta(Bookkeeping.Meta):
        indexes = (
            models.Index(fields=("view", "transaction"), name="matviews_viewchange_view"),
            models.Index(fields=("transaction",), name="matviews_viewchange_xact"),
        )

    def __str__(self) -> str:
        return f"change {self.pk} for {self.view}"


class ShardChange(Bookkeeping):
    """An entry of a shard's own queue, of a view with several shards derived from `source()`."""

    shard = models.ForeignKey(
        ViewShard, models.CASCADE, related_name="changes", db_constraint=False, db_index=False
    )
    #: These are as in `ViewChange`.
    table = TableNameField(max_length=255, blank=True)
    links = models.JSONField(null=True)
    count = models.PositiveIntegerField()
    logged_at = models.DateTimeField()

    objects = WriteDatabaseManager["ShardChange"]()

    class Meta(Bookkeeping.Meta):
        indexes = (models.Index(fields=("shard",), name="matviews_shardchange_shard"),)

    def __str__(self) -> str:
        return f"change {self.pk} for {self.shard}"


class LogFloor(Bookkeeping):
    """Where the entries of the log and of the queues begin; only on PostgreSQL, see its `Floors`.

    The newest counts.
    """

    #: The ID of the transaction that wrote it.
    transaction = TransactionField(db_default=CurrentTransaction(), editable=False)
    #: The transaction ID that came next.
    next = TransactionField()
    #: The lowest transaction ID of an entry of the log.
    log = TransactionField()
    #: The IDs of the transactions that were running.
    running = TransactionField("xid8[]")
    #: The views with entries in their queues: primary keys of their controls.
    views = TransactionField("bigint[]")
    #: For each, the lowest transaction ID of an entry.
    least = TransactionField("xid8[]")

    objects = WriteDatabaseManager["LogFloor"]()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"floor {self.pk} of the log"


class DirtyKeys(Bookkeeping):
    """Keys of a view whose rows may be out of date, from one drain of its queue."""

    shard = models.ForeignKey(
        ViewShard, models.CASCADE, related_name="dirty", db_constraint=False, db_index=False
    )
    #: The drain. A phase whose checkpoint is below it has these keys to process.
    drain_number = models.BigIntegerField()
    count = models.PositiveIntegerField()
    keys = models.JSONField()

    objects = WriteDatabaseManager["DirtyKeys"]()

    class Meta:
        verbose_name_plural = "dirty keys"
        indexes = (models.Index(fields=("shard", "drain_number"), name="matviews_dirtykeys_drain"),)

    def __str__(self) -> str:
        return f"{self.count} keys of {self.shard}"
