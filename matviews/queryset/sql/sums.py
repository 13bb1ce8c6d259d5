"""The sums of an additive view: what rows contribute to groups, and the rows made of them."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from django.db.models import Aggregate

from ...databases.base.sums import ROWS_KEPT, UNSURE, WEIGHT, Extreme, count_name, sum_name
from ...databases.fields import Column
from ...databases.keys import Key, Keys
from ...databases.sql import SQL, joined
from ..analysis.aggregates import COUNT, LARGEST, SMALLEST, SUM, Added, replaced
from .given_rows import GivenRows, Logged
from .readers import as_stored
from .stage_reader import StageReader

__all__ = ["GroupSums", "SumsReader"]

KEPT = "matviews_kept"  # alias of the view's rows, made from the sums


class GroupSums(GivenRows):
    """The SQL of an additive view's sums."""

    def wide(self) -> "GroupSums":
        """The same, in types that hold any result of computing with a row."""
        copy = GroupSums(self.source, self.additive, self.dialect)
        copy.is_wide = True
        return copy

    def totals(self, logged: Logged | None = None, within: Keys | None = None) -> SQL:
        """A query for what rows contribute to their groups, as the columns of the table of sums.

        For logged rows, also the extremes of deleted values, and which groups are unsure.

        Args:
            logged: what is logged, with weights; None for the source itself.
            within: the keys of the groups; None for all.
        """
        rows = self.tables.whole(f"SUM({WEIGHT})" if logged else "COUNT(*)")
        values = [f"{rows} AS {ROWS_KEPT}"]
        for number, each in enumerate(self.additive.added):
            values += self._totals_of(each, number, weighted=logged is not None)
        for extreme in self.columns.extremes:
            values += self._extremes_of(extreme, weighted=logged is not None)
        if logged and self.tables.has_doubts:
            values.append(f"SUM(CASE WHEN {WEIGHT} = 0 THEN 1 ELSE 0 END) AS {UNSURE}")
        given, key = self.given(logged, within), ", ".join(self.key)
        if logged:
            given = self._netted(given)
        keyed = " AND ".join(f"{name} IS NOT NULL" for name in self.key)
        return SQL(
            f"SELECT {key}, {', '.join(values)} FROM ({given.text}) matviews_given "
            f"WHERE {keyed} GROUP BY {key}",
            given.params,
        )

    def _totals_of(self, added: Added, number: int, *, weighted: bool) -> list[str]:
        whole, exact = self.tables.whole, partial(self.tables.exact, places=added.places)
        count, total = count_name(number), sum_name(number)
        counted = f"SUM({count} * {WEIGHT})" if weighted else f"SUM({count})"
        found = [f"{whole(counted)} AS {count}"]
        if added.summed:
            summed = f"SUM({exact(total)} * {WEIGHT})" if weighted else f"SUM({total})"
            found.append(f"{exact(f'COALESCE({summed}, 0)')} AS {total}")
        return found

    def _extremes_of(self, extreme: Extreme, *, weighted: bool) -> list[str]:
        function, value = "MAX" if extreme.is_largest else "MIN", sum_name(extreme.number)
        if not weighted:
            return [f"{function}({value}) AS {extreme.name}"]
        return [
            f"{function}(CASE WHEN {extreme.net} > 0 THEN {value} END) AS {extreme.name}",
            f"{function}(CASE WHEN {extreme.net} < 0 THEN {value} END) AS {extreme.gone}",
        ]

    def _netted(self, given: SQL) -> SQL:
        """Also how many rows of a group have gained or lost each value of an argument."""
        nets = {
            f"SUM({WEIGHT}) OVER (PARTITION BY {', '.join(self.key)}, {sum_name(each.number)}) "
            f"AS {each.net}"
            for each in self.columns.extremes
        }
        if not nets:
            return given
        counted = ", ".join(sorted(nets))
        return SQL(
            f"SELECT matviews_each.*, {counted} FROM ({given.text}) matviews_each", given.params
        )

    def gained(self, totals: SQL, names: Sequence[str], recomputed: Keys | None) -> SQL:
        """A query for what is added to the sums; for groups that are recomputed, their sums.

        Args:
            totals: SQL for FROM, with what is logged.
            names: the columns; those that the table of sums does not have are NULL for groups that
                are recomputed.
            recomputed: the keys of these groups.
        """
        changed = f"({self.changed})"
        if UNSURE in names:
            changed = f"({self.changed} OR {UNSURE} > 0)"
        columns = ", ".join(names)
        found = SQL(f"SELECT {columns} FROM {totals.text} WHERE {changed}", totals.params)
        if not recomputed:
            return found
        among, source = self.among(recomputed), self.totals(within=recomputed)
        own = set(self.columns.all)
        values = ", ".join(name if name in own else f"NULL AS {name}" for name in names)
        return SQL(
            f"{found.text} AND NOT ({among.text}) UNION ALL "
            f"SELECT {values} FROM ({source.text}) matviews_recomputed",
            (*found.params, *among.params, *source.params),
        )

    def keys(self, keys: Collection[Key]) -> Keys:
        """Keys, as statements take them."""
        kinds = [self.dialect.kind_of(column.field) for column in self.source.key]
        return Keys(tuple(keys), tuple(kinds))

    def among(self, keys: Keys) -> SQL:
        """Whether a row of the table of sums, or of totals, has one of the keys."""
        return self.dialect.among(self.key, keys, [column.field for column in self.source.key])

    def rows(self, sums: str, where: str = "") -> SQL:
        """A query for the rows of the view, from sums, as they will be stored.

        Args:
            sums: the table of sums, or a part of the statement with its columns; quoted.
            where: a condition on the sums.
        """
        raw = joined(", ", (self._kept(column) for column in self.source.columns))
        names = self.dialect.names([column.field for column in self.source.columns])
        stored = joined(
            ", ",
            (
                SQL(name)
                if column in self.source.key
                else joined(" AS ", (as_stored(column, name, self.dialect), SQL(name)))
                for column, name in zip(self.source.columns, names, strict=True)
            ),
        )
        hidden, more = self._having(), f" AND {where}" if where else ""
        return SQL(
            f"SELECT {stored.text} FROM (SELECT {raw.text} FROM {sums} "
            f"WHERE {ROWS_KEPT} > 0{more}{hidden.text}) matviews_sums",
            (*stored.params, *raw.params, *hidden.params),
        )

    def _having(self) -> SQL:
        """The condition on groups; a group that it excludes has sums, too."""
        _of_rows, condition = self.source.query.conditions
        if condition is None:
            return SQL("")
        text, params = self.source.query.compile_condition(replaced(condition, self._known))
        return SQL(f" AND ({text})", params)

    def _kept(self, column: Column) -> SQL:
        """A column of the source, computed from the sums."""
        [name] = self.dialect.names([column.field])
        if column in self.source.key:
            return SQL(name)
        expression = replaced(column.expression, self._known)
        text, params = self.source.query.compile_expression(expression)
        return SQL(f"{text} AS {name}", params)

    def _known(self, part: Any) -> str:
        """What an aggregate returns; "" if the part is not an aggregate."""
        if not isinstance(part, Aggregate):
            return ""
        kind, number = self.additive.returned[self.source.query.compile_expression(part)]
        if number is None:
            return ROWS_KEPT
        count, total = count_name(number), sum_name(number)
        if kind == COUNT:
            return count
        if kind in (LARGEST, SMALLEST):
            return f"(CASE WHEN {count} > 0 THEN {Extreme(number, kind == LARGEST).name} END)"
        mean = self.tables.mean(total, count, self.additive.added[number].places)
        return f"(CASE WHEN {count} > 0 THEN {total if kind == SUM else mean} END)"

    def logged(self, rows: str = "", lookups: Mapping[str, str] | None = None) -> Logged:
        """What is logged.

        Args:
            rows: SQL for FROM with the entries of the aggregated table; "" for those of the log.
            lookups: the same of lookups, by table; None for those of their logs.
        """
        own = rows or self.dialect.name(self.additive.log)
        if lookups is None:
            of = self.additive.lookup_logs.items()
            lookups = {table: self.dialect.name(log.name) for table, log in of}
        return Logged(f"(SELECT * FROM {own} matviews_rows WHERE {WEIGHT} IS NOT NULL)", lookups)

    def differing(self, log: str, sums: str) -> SQL:
        """A query for the number of groups in which sums plus entries differ from the source.

        Groups that are to be recomputed do not count. One statement sees one snapshot.
        """
        key, numbers, extremes = self.columns
        names = [each.name for each in extremes]
        nothing = [f"NULL AS {name}" for name in names]
        minus = [f"-{name} AS {name}" for name in numbers]
        logged = self.totals(self.logged(self.dialect.name(log)))
        of_source = self.totals()
        unsure = UNSURE if self.tables.has_doubts else "0"
        parts = [
            ([*key, *numbers, *names, "0 AS matviews_logged, 0 AS matviews_unknown"],
             self.dialect.name(sums)),
            ([*key, *numbers, *nothing, "1", unsure], f"({logged.text}) matviews_log"),
            ([*key, *minus, *names, "0", "0"], f"({of_source.text}) matviews_source"),
        ]  # fmt: skip
        each = " UNION ALL ".join(f"SELECT {', '.join(part)} FROM {rows}" for part, rows in parts)
        differs = [self.tables.differs(name, "SUM(matviews_logged)") for name in numbers]
        differs += [
            f"SUM(matviews_logged) = 0 AND (COUNT({name}) = 1 OR MIN({name}) <> MAX({name}))"
            for name in names
        ]
        return SQL(
            f"SELECT COUNT(*) FROM (SELECT {', '.join(key)} FROM ({each}) matviews_each "
            f"GROUP BY {', '.join(key)} "
            f"HAVING SUM(matviews_unknown) = 0 AND ({' OR '.join(differs)})) matviews_groups",
            (*logged.params, *of_source.params),
        )


class SumsReader(StageReader):
    """Reads the rows of the view from its sums.

    Args:
        sums: the SQL of the sums.
        table: the name of the table of sums.
    """

    def __init__(self, sums: GroupSums, table: str) -> None:
        super().__init__(sums.source, sums.dialect, table=KEPT)
        rows = sums.rows(sums.dialect.name(table))
        self.table = SQL(f"({rows.text}) {KEPT}", rows.params)
        self.is_stored = False
