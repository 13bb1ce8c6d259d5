"""What rows of an additive view's source give to their groups: keys, numbers, and a weight."""

from ...databases.base.sums import WEIGHT, count_name, sum_name
from ...databases.keys import Keys
from ...databases.sql import SQL, joined
from ..analysis.aggregates import Added
from .readers import KeyReader, as_stored
from .sums_schema import SumsSchema

__all__ = ["GivenRows"]


class GivenRows(SumsSchema):
    """The SQL of what single rows give."""

    def given(self, rows: str = "", within: Keys | None = None) -> SQL:
        """A query for what each row gives: the key as it is stored, and numbers.

        Args:
            rows: SQL with the rows of a value log and their weights; "" for the source itself.
            within: the keys; None for all.
        """
        key = [
            joined(" AS ", (as_stored(column, name, self.dialect), SQL(name)))
            for column, name in zip(self.source.key, self.key, strict=True)
        ]
        stored, raw = joined(", ", key), self._raw(rows, within)
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

    def _raw(self, rows: str, within: Keys | None) -> SQL:
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
        if within:
            query = KeyReader(self.source, self.dialect).among(within)
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


def _has_values(added: Added) -> bool:
    return added.summed or bool(added.extremes)
