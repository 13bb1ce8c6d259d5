"""The sums of an additive view: what rows give to groups, and the view's rows from that."""

from functools import partial
from typing import Any

from django.db.models import Aggregate

from ...databases.base.sums import ROWS_KEPT, WEIGHT, Extreme, count_name, sum_name
from ...databases.fields import Column
from ...databases.sql import SQL, joined
from ..analysis.aggregates import COUNT, LARGEST, SMALLEST, SUM, Added, replaced
from .readers import as_stored
from .stage_reader import StageReader
from .sums_schema import SumsSchema

__all__ = ["GroupSums", "SumsReader"]

KEPT = "matviews_kept"  # alias of the view's rows, made from the sums


class GroupSums(SumsSchema):
    """The SQL of an additive view's sums."""

    def totals(self, rows: str = "") -> SQL:
        """A query for what rows give to their groups, as the columns of the table of sums.

        Of a value log, also for the extremes of what has gone.

        Args:
            rows: SQL with the rows of a value log and their weights; "" for the source itself.
        """
        values = [f"{self.tables.whole(f'SUM({WEIGHT})' if rows else 'COUNT(*)')} AS {ROWS_KEPT}"]
        for number, each in enumerate(self.additive.added):
            values += self._totals_of(each, number, weighted=bool(rows))
        for extreme in self.columns.extremes:
            values += self._extremes_of(extreme, weighted=bool(rows))
        given, key = self._given(rows), ", ".join(self.key)
        if rows:
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
        """Also how many rows of a group have got or lost a value: most changes are of others."""
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

    def _given(self, rows: str) -> SQL:
        """A query for what each row gives: the key as it is stored, and numbers."""
        key = [
            joined(" AS ", (as_stored(column, name, self.dialect), SQL(name)))
            for column, name in zip(self.source.key, self.key, strict=True)
        ]
        stored, raw = joined(", ", key), self._raw(rows)
        return SQL(
            f"SELECT {stored.text}, {', '.join([WEIGHT, *self._given_names()])} "
            f"FROM ({raw.text}) matviews_raw",
            (*stored.params, *raw.params),
        )

    def _given_names(self) -> list[str]:
        names = []
        for number, each in enumerate(self.additive.added):
            names += [count_name(number), *([sum_name(number)] if _has_values(each) else [])]
        return names

    def _raw(self, rows: str) -> SQL:
        query = self.source.query
        values = [
            SQL(f"{text} AS {name}", params)
            for column, name in zip(self.source.key, self.key, strict=True)
            for text, params in [query.compile_expression(column.expression)]
        ]
        for number, each in enumerate(self.additive.added):
            values += self._numbers_of(each, number)
        values.append(SQL(f"{WEIGHT if rows else 1} AS {WEIGHT}"))
        table = self.dialect.name(self.additive.model._meta.db_table)
        of_rows, _of_groups = query.conditions
        where = SQL("")
        if of_rows is not None:
            text, params = query.compile_condition(of_rows)
            where = SQL(f" WHERE {text}", params)
        selected = joined(", ", values)
        return SQL(
            f"SELECT {selected.text} FROM {rows and f'{rows} '}{table}{where.text}",
            (*selected.params, *where.params),
        )

    def _numbers_of(self, added: Added, number: int) -> list[SQL]:
        """How many values a row has, 0 or 1, and which one."""
        query, applies, value = self.source.query, list[SQL](), SQL("")
        if added.condition is not None:
            text, params = query.compile_condition(added.condition)
            applies.append(SQL(f"({text})", params))
        counted = [*applies]
        if added.argument is not None:
            value = SQL(*query.compile_expression(added.argument))
            counted.append(SQL(f"({value.text}) IS NOT NULL", value.params))
        when = joined(" AND ", counted)
        one = SQL(
            f"CASE WHEN {when.text} THEN 1 ELSE 0 END AS {count_name(number)}", when.params
        )  # fmt: skip
        if not _has_values(added):
            return [one]
        if applies:
            [when] = applies
            params = (*when.params, *value.params)
            value = SQL(f"CASE WHEN {when.text} THEN {value.text} END", params)
        return [one, SQL(f"{value.text} AS {sum_name(number)}", value.params)]

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
        """The condition on groups: those that it hides have sums all the same."""
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

    def differing(self, log: str, sums: str) -> SQL:
        """A query for how many groups differ between the sums with what is logged, and the source.

        One statement sees one snapshot.
        """
        key, numbers, extremes = self.columns
        names = [each.name for each in extremes]
        nothing = [f"NULL AS {name}" for name in names]
        minus = [f"-{name} AS {name}" for name in numbers]
        logged = self.totals(f"(SELECT * FROM {self.dialect.name(log)})")
        of_source = self.totals()
        parts = [
            ([*key, *numbers, *names, "0 AS matviews_logged"], self.dialect.name(sums)),
            ([*key, *numbers, *nothing, "1"], f"({logged.text}) matviews_log"),
            ([*key, *minus, *names, "0"], f"({of_source.text}) matviews_source"),
        ]
        each = " UNION ALL ".join(f"SELECT {', '.join(part)} FROM {rows}" for part, rows in parts)
        differs = [self.tables.differs(f"SUM({name})") for name in numbers]
        differs += [
            f"SUM(matviews_logged) = 0 AND (COUNT({name}) = 1 OR MIN({name}) <> MAX({name}))"
            for name in names
        ]
        return SQL(
            f"SELECT COUNT(*) FROM (SELECT {', '.join(key)} FROM ({each}) matviews_each "
            f"GROUP BY {', '.join(key)} HAVING {' OR '.join(differs)}) matviews_groups",
            (*logged.params, *of_source.params),
        )


def _has_values(added: Added) -> bool:
    return added.summed or bool(added.extremes)


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
