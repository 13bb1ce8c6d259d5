"""Which changes are pending for a view, as parts of the statement that reads it as of now.

The rows of a view, except for keys with pending changes, may be read from its table if `STATE` has
a row, triggers log all changes, and each pending change leads to keys. A snapshot shows a change
both in the source and among the pending ones, or in neither.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from django.db import connections

from ..databases import current_of, dialect_of, triggers_of
from ..databases.base.current import ENTRIES, Column, FoundKeys
from ..databases.sql import SQL, joined
from ..databases.trigger_spec import TriggerSpec
from ..models import Change, DirtyKeys, ParkedKey, TrackedTable, ViewChange, ViewControl, ViewShard
from ..phases import Phase
from .tracking_spec import Tracking

__all__ = ["STATE", "WaitingSQL"]

STATE = "matviews_state"  # the part with the view's shard, if its rows have been computed


class WaitingSQL:
    """Queries for the pending changes of a view.

    Args:
        label: the label of the view.
        tracking: what the view depends on.
        in_parts: those of its tables that have partitions or are partitions.
        using: alias of the database.
    """

    def __init__(
        self, label: str, tracking: Tracking, in_parts: Collection[str], using: str
    ) -> None:
        self.label, self.tracking, self.in_parts, self.using = label, tracking, in_parts, using
        self.sql, self.dialect = current_of(using), dialect_of(using)
        models = (ViewControl, ViewShard, TrackedTable, Change, ViewChange, DirtyKeys, ParkedKey)
        names = [self._name(model._meta.db_table) for model in models]
        self.control, self.shard, self.tracked, self.log, self.queue, *names = names
        self.dirty_keys, self.parked = names

    def _name(self, name: str) -> str:
        quoted: str = connections[self.using].ops.quote_name(name)
        return quoted

    def state(self, columns: str, joins: SQL, conditions: Iterable[SQL]) -> SQL:
        """The query of `STATE`.

        Args:
            columns: more of its columns.
            joins: more tables than `control` and `shard`.
            conditions: on these tables; if they hold, rows without pending changes are right.
        """
        # Rows of a view with several shards are computed: each shard has a queue of its own.
        alone = SQL(
            f"NOT EXISTS (SELECT 1 FROM {self.shard} other "
            f"WHERE other.view_id = control.id AND other.number > 0)"
        )
        label = SQL("control.label = %s", (self.label,))
        where = joined(" AND ", [label, alone, *conditions])
        return SQL(
            f"SELECT control.id AS view_id, shard.id AS shard_id{columns} "
            f"FROM {self.control} control JOIN {self.shard} shard ON shard.view_id = control.id"
            f"{joins.text} WHERE {where.text}",
            (*joins.params, *where.params),
        )

    def processed(self, phases: Collection[Phase], fingerprint: str) -> tuple[str, list[SQL]]:
        """The last drain that all phases have processed, and whether they can continue from it."""
        drains, conditions = [], []
        for phase in phases:
            drain = self.sql.drain("shard.checkpoints", phase.value)
            drains.append(drain)
            of = self.sql.fingerprint("shard.checkpoints", phase.value)
            conditions.append(SQL(f"{drain} >= 0 AND {drain} >= shard.full_refresh_after"))
            conditions.append(SQL(f"{of} = %s", (fingerprint,)))
        reached = drains[0]
        for drain in drains[1:]:
            reached = self.dialect.smaller(reached, drain)
        return reached, conditions

    def logged(self) -> SQL:
        """Whether triggers log all changes of all tables for the view of `STATE`."""
        views, view = self.dialect.numbers_in("tracked.views")
        table = f"tracked.{self._name('table')}"
        of_each = [self._table_logged(*each, table) for each in self.tracking.tables.items()]
        either = joined(" OR ", of_each)
        return SQL(
            f"(SELECT COUNT(*) FROM {self.tracked} tracked {views} "
            f"WHERE {view} = {STATE}.view_id AND ({either.text})) = {len(of_each)}",
            either.params,
        )

    def _table_logged(self, name: str, spec: TriggerSpec, table: str) -> SQL:
        """As `is_tracked`."""
        in_parts = name in self.in_parts
        present = triggers_of(self.using).present_sql(table, in_parts=in_parts)
        words = self.sql.are_words("tracked.triggers", present.text)
        of_view = self.sql.under("tracked.view_columns", f"{STATE}.view_id")
        conditions = [
            SQL(f"{table} = %s", (name,)),
            SQL(words, present.params * words.count(present.text)),
            self._covered("tracked.columns", spec.columns),
            self._covered(of_view, spec.columns),
            self._has_all("tracked.links", spec.links),
            self._has_all("tracked.value_logs", [[x.name, *x.columns] for x in spec.value_logs]),
        ]
        return SQL(*joined(" AND ", conditions))

    def _covered(self, array: str, columns: Collection[str] | None) -> SQL:
        if not columns:
            return SQL("" if columns is not None else f"{array} IS NULL")
        covered = self._has_all(array, sorted(columns))
        return SQL(f"({array} IS NULL OR {covered.text})", covered.params)

    def _has_all(self, array: str, values: Collection[object]) -> SQL:
        return self.sql.has_all(array, values) if values else SQL("")

    def entries(self) -> SQL:
        """The query of `ENTRIES`: the entries of the log and of the queue."""
        table, links = self._name("table"), self._name("links")
        concerned = self.dialect.shares_name(
            "log.changed", "readers.view_columns", f"{STATE}.view_id"
        )
        tables = list(self.tracking.tables)
        marks = ", ".join(["%s"] * len(tables))

        def selected(alias: str) -> str:
            is_list = self.sql.is_list(f"{alias}.{links}")
            return (
                f"{alias}.{table} AS of_table, {is_list} AS is_list, "
                f"CASE WHEN {is_list} THEN {alias}.{links} ELSE {self.sql.no_links} END AS links"
            )

        return SQL(
            f"SELECT {selected('log')} FROM {STATE} JOIN {self.log} log ON 1 = 1 "
            f"JOIN {self.tracked} readers ON readers.{table} = log.{table} "
            f"WHERE log.{table} IN ({marks}) AND {concerned} "
            f"UNION ALL SELECT {selected('queued')} FROM {STATE} "
            f"JOIN {self.queue} queued ON queued.view_id = {STATE}.view_id",
            tuple(tables),
        )

    def unresolved(self, links: Mapping[str, Sequence[Column]]) -> SQL:
        """Whether an entry leads to no key in particular.

        Args:
            links: the columns that lead to keys, by table; "" for marked keys.
        """
        cases = [SQL(f"NOT {ENTRIES}.is_list")]
        if links:
            marks = ", ".join(["%s"] * len(links))
            cases.append(SQL(f"{ENTRIES}.of_table NOT IN ({marks})", tuple(links)))
        for table, columns in links.items():
            wrong = list(self._misread(table, columns))
            if wrong:
                either = joined(" OR ", wrong)
                cases.append(
                    SQL(f"{ENTRIES}.of_table = %s AND ({either.text})", (table, *either.params))
                )
        either = joined(" OR ", cases)
        return SQL(f"EXISTS (SELECT 1 FROM {ENTRIES} WHERE {either.text})", either.params)

    def _misread(self, table: str, columns: Sequence[Column]) -> Iterable[SQL]:
        if misread := self.sql.may_be_misread(f"{ENTRIES}.links", columns):
            yield SQL(misread)
        if table and columns:
            head = self.sql.first(f"{ENTRIES}.links")
            has_all = self.sql.has_all(head, sorted({column.name for column in columns}))
            yield SQL(f"NOT COALESCE({has_all.text}, FALSE)", has_all.params)

    def dirty(self, key: Sequence[Column]) -> SQL:
        """The keys that some phase has yet to process."""
        found = self.sql.keys("dirty.keys", key)
        return self._keys(
            found,
            f"{STATE} JOIN {self.dirty_keys} dirty ON dirty.shard_id = {STATE}.shard_id "
            f"AND dirty.drain_number > {STATE}.reached",
        )

    def has_dirty(self) -> SQL:
        """Whether there are dirty keys."""
        return SQL(
            f"EXISTS (SELECT 1 FROM {STATE} JOIN {self.dirty_keys} dirty "
            f"ON dirty.shard_id = {STATE}.shard_id AND dirty.drain_number > {STATE}.reached)"
        )

    def has_unreadable_dirty(self, key: Sequence[Column]) -> SQL:
        """Whether there may be dirty keys that SQL cannot read back."""
        if not (misread := self.sql.may_be_misread("dirty.keys", key)):
            return SQL("")
        return SQL(
            f"EXISTS (SELECT 1 FROM {STATE} JOIN {self.dirty_keys} dirty "
            f"ON dirty.shard_id = {STATE}.shard_id AND dirty.drain_number > {STATE}.reached "
            f"WHERE {misread})"
        )

    def marked(self, key: Sequence[Column]) -> SQL:
        """The keys that were marked by hand."""
        found = self.sql.keys(f"{ENTRIES}.links", key)
        keys = self._keys(found, ENTRIES)
        return SQL(f"{keys.text} WHERE {ENTRIES}.of_table = ''", keys.params)

    def parked_keys(self, key: Sequence[Column], fingerprint: str) -> SQL:
        """The keys whose rows cannot be computed or written, by this definition of the view."""
        keys = self._keys(
            self.sql.keys(f"parked.{self._name('key')}", key, one=True),
            f"{self.control} control JOIN {self.shard} shard ON shard.view_id = control.id "
            f"JOIN {self.parked} parked ON parked.shard_id = shard.id",
        )
        return SQL(
            f"{keys.text} WHERE control.label = %s AND parked.fingerprint = %s",
            (self.label, fingerprint),
        )

    def _keys(self, found: FoundKeys, tables: str) -> SQL:
        return SQL(f"SELECT {', '.join(found.parts)} FROM {tables} {found.join}")
