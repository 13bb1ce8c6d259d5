"""The tables of additive views, logs of values and sums by group, as far as databases differ.

A value log has a row for each changed row, with a weight and the columns that a view reads. A table
of sums has the view's key, how many rows a group has, and of each argument how many values there
are and their exact sum.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from django.db import connections

from ..sql import SQL, qualified

__all__ = [
    "GONE", "ROWS_KEPT", "UNSURE", "WEIGHT", "Extreme", "SumColumns", "SumTables", "count_name",
    "sum_name", "sum_names",
]  # fmt: skip

WEIGHT = "matviews_weight"
ENTRY = "matviews_entry"  # the number of an entry
ROWS_KEPT = "matviews_rows"  # how many rows a group has
GONE = "matviews_gone"  # the entries that are being added up
UNSURE = "matviews_unsure"  # how many entries have a group recomputed


def count_name(number: int) -> str:
    """The column with the number of an argument's values."""
    return f"matviews_count{number}"


def sum_name(number: int) -> str:
    """The column with the sum of an argument's values."""
    return f"matviews_sum{number}"


def sum_names(places: Sequence[int | None]) -> list[str]:
    """The columns with sums; `places` as in `SumTables.columns_of_sums`."""
    return [sum_name(number) for number, each in enumerate(places) if each is not None]


@dataclass(frozen=True, slots=True)
class Extreme:
    """The largest or the smallest of an argument's values in a group."""

    #: The argument's number.
    number: int
    is_largest: bool

    @property
    def name(self) -> str:
        """Its column."""
        return f"matviews_{'max' if self.is_largest else 'min'}{self.number}"

    @property
    def gone(self) -> str:
        """The column with the extreme of the values that were removed, in the rows to be added."""
        return f"{self.name}_gone"

    @property
    def net(self) -> str:
        """The column with how many rows of a group have gained or lost a value of the argument."""
        return f"matviews_net{self.number}"

    @property
    def count(self) -> str:
        """The column with the number of the argument's values."""
        return count_name(self.number)


class SumColumns(NamedTuple):
    """The columns of a table of sums, quoted."""

    key: list[str]
    #: What is added up.
    numbers: list[str]
    extremes: list[Extreme]

    @property
    def all(self) -> list[str]:
        """Their names."""
        return [*self.key, *self.numbers, *(each.name for each in self.extremes)]


class SumTables:
    """How such tables are created on SQLite, and how numbers are added; the others override it.

    Args:
        using: alias of the database.
    """

    #: Whether sums of decimals are exact.
    adds_decimals = False
    #: Whether a trigger stores another value where a column of a log is too narrow for it.
    stores_what_fits = False
    #: Whether a value log compares texts as their table does.
    copies_collations = False
    #: Whether an entry may have the weight 0: the group of this row is to be recomputed.
    has_doubts = True

    def __init__(self, using: str) -> None:
        self.using = using

    def name(self, name: str) -> str:
        """A quoted identifier, for a statement without parameters."""
        quoted: str = connections[self.using].ops.quote_name(name)
        return quoted

    def present(self) -> set[str]:
        """The tables that exist, whoever owns them."""
        return set(connections[self.using].introspection.table_names())

    def may_read(self, names: Sequence[str]) -> bool:
        """Whether the role of this connection may read tables whose columns the catalog shows."""
        return True

    def home(self, name: str) -> str:
        """A table of ours, as `Meta.db_table` would name it, independent of the search path."""
        return name

    def create_log(self, log: str, columns: Mapping[str, tuple[str, str]]) -> str:
        """A statement that creates a value log.

        Args:
            log: its name, quoted.
            columns: the types and collations ("" for the default) of its columns.
        """
        named = [f"{WEIGHT} BIGINT"]
        for column, (kind, collation) in columns.items():
            collate = f" COLLATE {self.name(collation)}" if collation else ""
            named.append(f"{self.name(column)} {kind}{collate}{self.nullable}")
        return f"CREATE TABLE {log} ({', '.join([*self.numbered, *named])})"

    #: The column with the number of an entry, where each has one.
    numbered: tuple[str, ...] = ()
    #: The clause that allows NULL, where that is not the default for all types.
    nullable = ""

    def unlimited(self, kind: str) -> str:
        """The type of a value log's column, so that it holds what a column of type `kind` does."""
        return kind

    def is_reserved(self, column: str) -> bool:
        """Whether no column of the source or of the key may have this name."""
        return (
            column.lower().startswith("matviews_")
            or column.lower() in self.reserved
            or "%" in column
        )

    #: Names that mean the number of a row.
    reserved: tuple[str, ...] = ("rowid", "oid", "_rowid_")

    def accepts(self, kind: str, places: int | None) -> bool:
        """Whether equal values of a column are identical, and numbers exact.

        Args:
            kind: the type of the column.
            places: the digits after the decimal point that numbers may have; None for other values.
        """
        return True

    def is_unique(self, table: str, columns: Sequence[str]) -> bool:
        """Whether an index over all rows of a table ensures that no two agree in some columns."""
        query = (
            "SELECT '', name, pk FROM pragma_table_xinfo(%s) WHERE pk > 0 UNION ALL "
            "SELECT l.name, i.name, i.seqno FROM pragma_index_list(%s) l, "
            "pragma_index_info(l.name) i "
            'WHERE l."unique" AND NOT l.partial'
        )
        found: dict[str, list[str]] = {}
        with connections[self.using].cursor() as cursor:
            cursor.execute(query, [table, table])
            for index, column, _place in cursor.fetchall():
                found.setdefault(index, []).append(column)
        return any(set(each) == {*columns} for each in found.values())

    def hides_rows(self, tables: Collection[str]) -> str:
        """Which table shows some roles fewer rows than triggers log; "" if none does."""
        return ""

    def identity(self, column: str) -> str:
        """What GROUP BY needs so that only identical values of a column are one group."""
        return column

    def behind(self, names: Sequence[str], table: str, column: str, changed: str, key: str) -> str:
        """A query for the rows of a table that refer to changed ones, which are few.

        Args:
            names: the columns to select.
            table: the table, quoted.
            column: its column that refers to `key`.
            changed: the part of the statement with the changed keys, each once.
            key: their column there.
        """
        return (
            f"SELECT {', '.join(names)} FROM {table} "
            f"WHERE {column} IN (SELECT {key} FROM {changed})"
        )

    def differs(self, name: str, logged: str) -> str:
        """Whether two sums of a group differ, which are given as two rows, one of them negated.

        Args:
            name: the column with the numbers.
            logged: how many of the rows come from the value log.
        """
        return f"SUM({name}) <> 0"

    def columns_of_sums(self, places: Sequence[int | None]) -> list[str]:
        """The definitions of the columns beside the key.

        Args:
            places: of each argument, the digits after the decimal point of its sum; None if it has
                none.
        """
        columns = [f"{ROWS_KEPT} BIGINT NOT NULL DEFAULT 0"]
        for number, each in enumerate(places):
            columns.append(f"{count_name(number)} BIGINT NOT NULL DEFAULT 0")
            if each is not None:
                columns.append(f"{sum_name(number)} {self.sum_type(each)} NOT NULL DEFAULT 0")
        return columns

    def sum_type(self, places: int) -> str:
        """The type of a column with an exact sum."""
        return "BIGINT"

    def whole(self, value: str) -> str:
        """A sum of whole numbers as a count."""
        return value

    def exact(self, value: str, places: int) -> str:
        """A number in the type in which it is added up."""
        return value

    def wide(self, column: str) -> str:
        """A column of whole numbers in a type that holds their products."""
        return column

    def mean(self, total: str, count: str, places: int) -> str:
        """What AVG returns for one or more values with this sum.

        Args:
            total: the sum.
            count: how many values there are.
            places: their digits after the decimal point.
        """
        return f"CAST({total} AS REAL) / {count}"

    def suspect(self, places: Sequence[int | None]) -> str:
        """Whether the sums of a group cannot be right, or will not be after the next change."""
        of_each = [f"typeof({name}) <> 'integer'" for name in sum_names(places)]
        return " OR ".join([*self._impossible(places), *of_each])

    def _impossible(self, places: Sequence[int | None]) -> list[str]:
        """Conditions: a negative number of rows or values, or a sum of no values."""
        found = [f"{ROWS_KEPT} < 0"]
        for number, each in enumerate(places):
            count, total = count_name(number), sum_name(number)
            found.append(f"{count} < 0 OR {count} > {ROWS_KEPT}")
            if each is not None:
                found.append(f"{count} = 0 AND {total} <> 0")
        return found

    #: The functions that return the larger and the smaller of two values.
    larger, smaller = "MAX", "MIN"

    def further(self, extreme: "Extreme", one: str, other: str) -> str:
        """The larger or the smaller of two values that may be NULL."""
        chosen = self.larger if extreme.is_largest else self.smaller
        return f"COALESCE({chosen}({one}, {other}), {one}, {other})"

    def upsert(self, table: str, columns: "SumColumns", rows: SQL) -> SQL:
        """Add rows to those with the same key.

        Args:
            table: the table of sums, quoted.
            columns: of the table.
            rows: a query for the rows.
        """
        names, key = ", ".join(columns.all), ", ".join(columns.key)
        return SQL(
            f"INSERT INTO {table} ({names}) SELECT {names} FROM ({rows.text}) added "
            f"WHERE 1 = 1 ORDER BY {key} "
            f"ON CONFLICT ({key}) DO UPDATE SET {self._sets(table, columns, 'excluded.{}')}",
            rows.params,
        )

    def _sets(self, table: str, columns: "SumColumns", given: str) -> str:
        """The assignments of an upsert, extremes first: MariaDB assigns one after the other."""
        found = []
        for each in columns.extremes:
            old, new = f"{table}.{each.name}", given.format(each.name)
            count = f"{table}.{each.count} + {given.format(each.count)}"
            kept = f"CASE WHEN {count} > 0 THEN {self.further(each, old, new)} END"
            found.append(f"{each.name} = {kept}")
        found += [f"{name} = {table}.{name} + {given.format(name)}" for name in columns.numbers]
        return ", ".join(found)

    def left(self, table: str, columns: "SumColumns", rows: str) -> str:
        """A query for the groups that may have lost an extreme value. Run it before adding.

        Args:
            table: the table of sums, quoted.
            columns: of the table.
            rows: SQL with the rows to be added, and the extremes of the removed values.
        """
        same = " AND ".join(f"kept.{name} = given.{name}" for name in columns.key)
        lost = []
        for each in columns.extremes:
            gone, beyond = f"given.{each.gone}", ">=" if each.is_largest else "<="
            best = self.further(each, f"kept.{each.name}", f"given.{each.name}")
            lost.append(
                f"{gone} IS NOT NULL AND (kept.{ROWS_KEPT} IS NULL OR "
                f"kept.{each.count} + given.{each.count} > 0 AND {gone} {beyond} {best})"
            )
        return (
            f"SELECT {', '.join(qualified('given', columns.key))} FROM {rows} given "
            f"LEFT JOIN {table} kept ON {same} WHERE {' OR '.join(lost) or '1 = 0'}"
        )

    #: The number of an entry of a log.
    entry = "rowid"

    def temporary(self, name: str) -> str:
        """A temporary table, as statements name it."""
        return f"temp.{name}"

    def drop_copy(self, copy: str) -> str:
        """A statement that drops the temporary table, if there is one."""
        return f"DROP TABLE IF EXISTS temp.{copy}"

    def delete_copied(self, copy: str, log: str, where: str = "1 = 1") -> str:
        """A statement that deletes the entries of a value log, quoted, whose numbers were copied.

        Args:
            copy: the temporary table with the numbers.
            log: the value log.
            where: which rows of the temporary table have numbers of this log.
        """
        copied = f"SELECT {ENTRY} FROM {self.temporary(copy)} WHERE {where}"
        return f"DELETE FROM {log} WHERE {self.entry} IN ({copied})"

    def trim(self, log: str, most: int) -> None:
        """Delete up to `most` committed entries of a value log, quoted, waiting for no other."""
        some = f"SELECT {self.entry} FROM {log} LIMIT {most}"
        with connections[self.using].cursor() as cursor:
            cursor.execute(f"DELETE FROM {log} WHERE {self.entry} IN ({some})")
