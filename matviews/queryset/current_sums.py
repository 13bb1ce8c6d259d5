"""The rows of an additive view as of now: from its sums and its value logs."""

from collections.abc import Iterator
from functools import partial

from ..databases.base.current import Part
from ..databases.base.sums import ROWS_KEPT, WEIGHT, count_name, sum_name
from ..databases.sql import SQL, equal, qualified
from .current import PARKED, CurrentRows
from .sql.sums import GroupSums

__all__ = ["CurrentSums"]

LOGGED = "matviews_totals"  # the part with what has been logged, by group
MERGED = "matviews_merged"  # the part with the sums of these groups as of now
KEPT = "matviews_kept"  # alias of the table of sums


class CurrentSums:
    """Parts and conditions of the statement that reads an additive view as of now.

    Args:
        sums: the SQL of the sums.
        rows: the queries for rows of the view.
    """

    def __init__(self, sums: GroupSums, rows: CurrentRows) -> None:
        self.sums, self.rows, self.key = sums, rows, sums.columns.key
        self.log, self.table = map(sums.dialect.name, (sums.additive.log, sums.additive.sums))

    def parts(self) -> list[Part]:
        """What has been logged, and the sums with it."""
        logged = self.sums.wide().totals(self.sums.logged(lookups={}))
        return [Part(LOGGED, [], logged), Part(MERGED, [], self._merged())]

    def _merged(self) -> SQL:
        names, key = ", ".join(self.sums.columns.all), ", ".join(self.key)
        merged = ", ".join([*self.key, *self._numbers(), *self._extremes()])
        return SQL(
            f"SELECT {merged} FROM (SELECT {names} FROM {self.table} {KEPT} "
            f"WHERE {self._is_logged(KEPT)} UNION ALL SELECT {names} FROM {LOGGED}) matviews_both "
            f"GROUP BY {key}"
        )

    def _numbers(self) -> Iterator[str]:
        tables = self.sums.tables
        yield f"{tables.whole(f'SUM({ROWS_KEPT})')} AS {ROWS_KEPT}"
        for number, places in enumerate(self.sums.places):
            count, total = count_name(number), sum_name(number)
            yield f"{tables.whole(f'SUM({count})')} AS {count}"
            if places is not None:
                exact = partial(tables.exact, places=places)
                yield f"{exact(f'SUM({total})')} AS {total}"

    def _extremes(self) -> Iterator[str]:
        for each in self.sums.columns.extremes:
            yield f"{'MAX' if each.is_largest else 'MIN'}({each.name}) AS {each.name}"

    def _is_logged(self, table: str) -> str:
        same = equal(qualified(LOGGED, self.key), qualified(table, self.key))
        return f"EXISTS (SELECT 1 FROM {LOGGED} WHERE {same})"

    def obstacles(self) -> Iterator[SQL]:
        """Why the sums as of now cannot be used: any of these conditions."""
        sums = self.sums
        unsure = f" OR {WEIGHT} = 0" if sums.tables.has_doubts else ""
        yield SQL(f"EXISTS (SELECT 1 FROM {self.log} WHERE {WEIGHT} IS NULL{unsure})")
        suspect = sums.tables.suspect(sums.places)
        yield SQL(f"EXISTS (SELECT 1 FROM {MERGED} WHERE {suspect})")
        if sums.columns.extremes:
            yield SQL(f"EXISTS ({sums.tables.left(self.table, sums.columns, LOGGED)})")
        for table, log in sums.additive.logs.items():
            yield self.rows.sql.altered(table, log.name, log.columns)
        for log in sums.additive.lookup_logs.values():  # else they are as the sums know them
            yield SQL(f"EXISTS (SELECT 1 FROM {sums.dialect.name(log.name)})")

    def queries(self) -> list[SQL]:
        """The rows of the view: of groups for which nothing is logged, and of the others."""
        key = ", ".join(self.key)
        known = f"{self.rows.dialect.row(self.key)} NOT IN (SELECT {key} FROM {PARKED})"
        kept, merged = f"{self.table} {KEPT}", MERGED
        return [
            self.rows.computed(self._made(kept, f"{known} AND NOT {self._is_logged(KEPT)}")),
            self.rows.computed(self._made(merged, known)),
        ]

    def _made(self, sums: str, where: str) -> SQL:
        made = self.sums.rows(sums, where)
        return SQL(f"({made.text})", made.params)
