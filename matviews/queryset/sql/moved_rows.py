"""Rows of an additive view's table that move because a lookup has changed."""

from collections.abc import Iterator, Mapping

from ...databases import Dialect, SumTables
from ...databases.base.sums import WEIGHT
from ..strategy.additive import Additive
from ..strategy.joins import Lookup

__all__ = ["MovedRows"]

NET = "matviews_net"  # the parts with what has changed of the tables of lookups
CHANGED = "matviews_changed"  # the parts with the keys of lookups behind which something changed
KNOWN = "matviews_known"  # the parts with the lookups as the sums know them


class MovedRows:
    """Parts of a statement: the lookups with which the sums were computed, and the rows that move.

    Args:
        additive: what is kept of the view's source.
        tables: the tables of additive views on its database.
        dialect: its SQL dialect.
    """

    #: The rows to be added with the lookups that the sums know: entries, and rows that move away.
    before = "matviews_before"
    #: The rows of the aggregated table behind lookups that have changed.
    concerned = "matviews_concerned"

    def __init__(self, additive: Additive, tables: SumTables, dialect: Dialect) -> None:
        self.additive, self.tables, self.dialect = additive, tables, dialect
        #: What stands in place of the tables of lookups, by alias.
        self.lookups = {
            each.alias: f"{KNOWN}{number}" for number, each in enumerate(additive.lookups)
        }

    def parts(self, rows: str, lookups: Mapping[str, str]) -> str:
        """The parts, from WITH on.

        Args:
            rows: SQL for FROM with the entries of the aggregated table.
            lookups: the same of the lookups, by table.
        """
        return f"WITH {', '.join([*self._net(lookups), *self._concerned(), *self._known(rows)])} "

    def counted(self, lookups: Mapping[str, str], most: int) -> str:
        """A query for how many rows are concerned, counting up to `most`."""
        parts = ", ".join([*self._net(lookups), *self._concerned()])
        few = f"SELECT 1 AS matviews_row FROM {self.concerned} LIMIT {most}"
        return f"WITH {parts} SELECT COUNT(*) FROM ({few}) matviews_few"

    def _net(self, lookups: Mapping[str, str]) -> Iterator[str]:
        """The net change of each table: rows as they are now, and as they were."""
        for number, table in enumerate(self.additive.lookup_logs):
            names, entries = self._names(table), lookups[table]
            total, grouped = f"SUM({WEIGHT})", ", ".join(map(self.tables.identity, names))
            yield (
                f"{NET}{number} AS (SELECT {', '.join(names)}, {total} AS {WEIGHT} "
                f"FROM {entries} matviews_entries WHERE {WEIGHT} IS NOT NULL "
                f"GROUP BY {grouped} HAVING {total} <> 0)"
            )

    def _concerned(self) -> Iterator[str]:
        """The rows that lead to a changed lookup, from the last lookup to the first."""
        for number, each in reversed([*enumerate(self.additive.lookups)]):
            key = self.dialect.name(each.key)
            found = [f"SELECT DISTINCT {key} FROM {self._net_of(each)}"]
            found += self._rows_behind([key], each.table, each.alias)
            yield f"{CHANGED}{number} AS ({' UNION '.join(found)})"
        table = self.additive.table
        pk = self.dialect.names(self.additive.model._meta.pk_fields)
        names = list(dict.fromkeys([*pk, *self._names(table)]))
        rows = self._rows_behind(names, table, table)
        yield f"{self.concerned} AS ({' UNION '.join(rows)})"

    def _known(self, rows: str) -> Iterator[str]:
        """The lookups with which the sums were computed, where needed, in their order."""
        names = ", ".join(self._names(self.additive.table))
        yield (
            f"{self.before} AS (SELECT {WEIGHT}, {names} FROM {rows} matviews_entries UNION ALL "
            f"SELECT -1, {names} FROM {self.concerned})"
        )
        for number, each in enumerate(self.additive.lookups):
            key, names = self.dialect.name(each.key), ", ".join(self._names(each.table))
            parent = self.lookups.get(each.parent, self.before)
            net = self._net_of(each)
            yield (
                f"{KNOWN}{number} AS (SELECT {names} FROM {self.dialect.name(each.table)} "
                f"WHERE {key} IN (SELECT {self.dialect.name(each.column)} FROM {parent}) "
                f"AND {key} NOT IN (SELECT {key} FROM {net} WHERE {key} IS NOT NULL) UNION ALL "
                f"SELECT {names} FROM {net} WHERE {WEIGHT} < 0)"
            )

    def _rows_behind(self, names: list[str], table: str, alias: str) -> Iterator[str]:
        """Queries for the rows of a table that lead to a changed lookup."""
        for number, each in enumerate(self.additive.lookups):
            if each.parent == alias:
                column, key = map(self.dialect.name, (each.column, each.key))
                changed = f"{CHANGED}{number}"
                yield self.tables.behind(names, self.dialect.name(table), column, changed, key)

    def _net_of(self, lookup: Lookup) -> str:
        return f"{NET}{[*self.additive.lookup_logs].index(lookup.table)}"

    def _names(self, table: str) -> list[str]:
        return [self.dialect.name(column) for column in self.additive.logs[table].columns]
