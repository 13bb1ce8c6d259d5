"""PostgreSQL keeps deleted entries, and their index entries, while any transaction may see them.

One long transaction anywhere, such as a `pg_dump`, keeps all entries that are deleted while it
lasts, and a statement that looks for the oldest entry would scan each of them. So entries have the
ID of the transaction that wrote them, and a *floor* says which IDs a statement has to look for.

A floor is computed by one statement, whose snapshot says which transactions were running, and which
ID comes next. For the log it says

* `log`: the lowest ID of an entry that the snapshot sees, or `next` if that is lower, or if it sees
  none;
* `running`: the IDs of the transactions that were running.

A statement that sees the floor reads the entries from `log` on, and those of `running`, and no
others. Proof: take an entry that a later snapshot sees. If the floor's snapshot saw it, its ID is
not below `log`. If not, its transaction had not ended then: either it was running, or it had no ID
yet and got one that is not below the next. An entry that the floor's snapshot did not see because
it had been deleted is not seen later either. And a statement that sees the floor has a later
snapshot than the floor had.

Commits out of order, rollbacks, sequences and clocks do not matter, and transactions that last for
hours cost one look-up each. Queues have floors in the same way: `views` with entries have an ID in
`least`, and for all others it is `next`. Entries with IDs above `next` come from another cluster.

Transaction IDs are valid in one cluster only. A floor that was dumped and loaded into another
cluster is not used: it also has the ID of the transaction that wrote it, which no longer is that of
its row. Floors in a physical copy, such as a standby, are as correct as in the original. Entries
that somebody has loaded with old IDs, below the floor, get new ones: see `renumber`.
"""

from collections.abc import Collection

from ..base.floors import LOG_FLOOR, QUEUE, Floors
from ..base.triggers import CHANGE_LOG

__all__ = ["PostgreSQLFloors"]

FLOOR = "matviews_floor"
XID = '"transaction"'
KEPT = 50  # floors that are kept: whoever deletes one passes all that are dead
#: Higher than any ID. With two bounds planners expect few rows, though they know neither.
LAST = "'18446744073709551615'::xid8"
BETWEEN = f"{XID} >= ids.low AND {XID} <= ids.high"
#: Of the transactions that were running, those that have ended: what the others have written,
#: nobody else sees.
LATE = (
    "ids.low < ids.least AND (pg_visible_in_snapshot(ids.low, pg_current_snapshot()) "
    "OR ids.low = pg_current_xact_id_if_assigned())"
)


class PostgreSQLFloors(Floors):
    """A statement finds the floor and the entries above it at once, in one snapshot.

    `OFFSET 0` keeps planners from finding the entries by another index, or by none.
    """

    rise = True

    @property
    def part(self) -> str:
        """The newest floor that is of this cluster, or one below all entries."""
        return (
            f"{FLOOR} AS MATERIALIZED ((SELECT next, log, running, views, least "
            f"FROM {self.name(LOG_FLOOR)} WHERE xmin = {XID}::xid "
            f"AND next <= pg_snapshot_xmax(pg_current_snapshot()) ORDER BY id DESC LIMIT 1) "
            f"UNION ALL SELECT '0', '0', '{{}}', '{{}}', '{{}}' LIMIT 1), "
        )

    def log(self, limit: int = 0, tables: Collection[str] = (), *, alone: bool = True) -> str:
        names = ", ".join(map(literal, sorted(tables)))
        only = f"{self.name('table')} IN ({names}) AND " * bool(tables)
        some = f"ORDER BY {XID} LIMIT {limit:d}" if limit else "OFFSET 0"
        return self._above(alone, self._rows(CHANGE_LOG, "log", only, some))

    def queue(self, view: str) -> str:
        least = f"coalesce(least[array_position(views, {view})], next)"
        return self._above(True, self._rows(QUEUE, least, f"view_id = {view} AND "))

    def queues(self, views: Collection[int]) -> str:
        if len(views) == 1:
            return self.queue(f"{next(iter(views)):d}::bigint")
        keys = ", ".join(f"({view:d}::bigint)" for view in views) or "(NULL::bigint)"
        return (
            f"(SELECT entry.* FROM (VALUES {keys}) of_view (id) "
            f"CROSS JOIN LATERAL {self.queue('of_view.id')} entry OFFSET 0)"
        )

    def queued(self, views: str = "", *, alone: bool = True) -> str:
        among = f"WHERE of_view.id IN ({views})" * bool(views)
        first = (
            f"SELECT * FROM {self.name(QUEUE)} WHERE view_id = of_view.id "
            f"AND {XID} >= of_view.least AND {XID} <= {LAST} ORDER BY {XID} LIMIT 1"
        )
        return self._above(
            alone,
            self._rows(QUEUE, "next"),
            f"SELECT entry.* FROM {FLOOR}, unnest(views, least) of_view (id, least) "
            f"CROSS JOIN LATERAL ({first}) entry {among}",
        )

    def raise_floor(self) -> None:
        """Nobody needs to wait for it or for each other: any floor is right, the newest best.

        A statement of a transaction that has written itself would take what that writes later for
        seen.
        """
        floors = self.name(LOG_FLOOR)
        log = f"SELECT {XID} FROM {self.log(1, alone=False)} entry ORDER BY {XID} LIMIT 1"
        queues = (
            f"SELECT DISTINCT ON (view_id) view_id, "
            f"least(pg_snapshot_xmax(pg_current_snapshot()), {XID}) AS least "
            f"FROM {self.queued(alone=False)} entry ORDER BY view_id, {XID}"
        )
        with self.connection.cursor() as cursor:
            cursor.execute(
                f"WITH {self.part}seen AS MATERIALIZED (SELECT pg_current_snapshot() AS snapshot), "
                f"queues AS (SELECT array_agg(view_id) AS views, array_agg(least) AS least "
                f"FROM ({queues}) queue), made AS ("
                f"INSERT INTO {floors} (next, log, running, views, least) "
                f"SELECT pg_snapshot_xmax(snapshot), least(pg_snapshot_xmax(snapshot), ({log})), "
                f"ARRAY(SELECT pg_snapshot_xip(snapshot)), coalesce(views, '{{}}'), "
                f"coalesce(least, '{{}}') FROM seen, queues WHERE "
                f"coalesce(pg_current_xact_id_if_assigned() >= pg_snapshot_xmax(snapshot), true) "
                f"ON CONFLICT (id) DO NOTHING RETURNING id) "
                f"DELETE FROM {floors} WHERE id IN (SELECT id FROM {floors} WHERE id < "
                f"(SELECT id FROM made WHERE id % {KEPT} = 0) FOR UPDATE SKIP LOCKED)"
            )

    def renumber(self) -> None:
        for table, least in (
            (CHANGE_LOG, "log"),
            (QUEUE, "coalesce(least[array_position(views, view_id)], next)"),
        ):
            with self.connection.cursor() as cursor:
                cursor.execute(
                    f"WITH {self.part[:-2]} UPDATE {self.name(table)} SET {XID} = DEFAULT "
                    f"FROM {FLOOR} WHERE {XID} < {least} AND {XID} <> ALL(running)"
                )

    def _rows(self, table: str, least: str, only: str = "", some: str = "OFFSET 0") -> str:
        """A query for the rows of a table with IDs from `least` on, or late ones.

        Args:
            table: its name.
            least: SQL of an ID, by the columns of the floor.
            only: a condition on the rows, with AND.
            some: ORDER and LIMIT.
        """
        return (
            f"SELECT entry.* FROM (SELECT unnest(running || least) AS low, "
            f"unnest(running || {LAST}) AS high, least FROM (SELECT running, {least} AS least "
            f"FROM {FLOOR}) floor) ids CROSS JOIN LATERAL (SELECT * FROM {self.name(table)} "
            f"WHERE {only}{BETWEEN} {some}) entry WHERE ids.high = {LAST} OR {LATE}"
        )

    def _above(self, alone: bool, *queries: str) -> str:
        """What several queries find."""
        found = " UNION ALL ".join(queries)
        return f"({f'WITH {self.part[:-2]} ' if alone else ''}{found} OFFSET 0)"


def literal(text: str) -> str:
    """A text in a statement with parameters."""
    return "'{}'".format(text.replace("'", "''").replace("%", "%%"))
