"""Reading a view as of now on MariaDB and MySQL."""

import json
from collections.abc import Collection, Sequence
from typing import Any

from ..base.current import ENTRIES, Column, CurrentSQL, FoundKeys, Part
from ..fields import DATE, DATETIME, NUMBER, TEXT, WHOLE, AnyField, family, value_field
from ..sql import SQL

__all__ = ["MySQLCurrentSQL"]

DIGITS = 65  # the largest precision of a DECIMAL
CASTS = {DATE: "DATE", DATETIME: "DATETIME(6)"}


class MySQLCurrentSQL(CurrentSQL):
    """Texts from JSON get the collation of their column: two different ones cannot be compared."""

    words = "WITH RECURSIVE"

    def _query(self, part: Part) -> str:
        """MariaDB evaluates a part again for each part that reads it, unless it is recursive."""
        again = f" UNION ALL SELECT * FROM {part.name} WHERE 1 = 0" if part.is_shared else ""
        return f"{part.query.text}{again}"

    def has_all(self, array: str, values: Collection[Any]) -> SQL:
        return SQL(f"JSON_CONTAINS({array}, %s)", (json.dumps(list(values)),))

    def are_words(self, array: str, text: str) -> str:
        words = f"""CONCAT('["', REPLACE(COALESCE({text}, ''), ' ', '","'), '"]')"""
        return f"(JSON_LENGTH({array}) > 0 AND JSON_CONTAINS({words}, {array}))"

    def under(self, of: str, number: str) -> str:
        return f"JSON_EXTRACT({of}, CONCAT('$.\"', {number}, '\"'))"

    def first(self, array: str) -> str:
        return f"JSON_EXTRACT({array}, '$[0]')"

    def drain(self, checkpoints: str, phase: str) -> str:
        return f"CAST(JSON_EXTRACT({checkpoints}, '$.{phase}[0]') AS SIGNED)"

    def fingerprint(self, checkpoints: str, phase: str) -> str:
        return f"JSON_UNQUOTE(JSON_EXTRACT({checkpoints}, '$.{phase}[1]'))"

    def is_list(self, links: str) -> str:
        return f"COALESCE(JSON_TYPE({links}) = 'ARRAY', FALSE)"

    no_links = "'[]'"

    def may_be_misread(self, links: str, columns: Sequence[Column]) -> str:
        """With NO_ZERO_DATE in `sql_mode`, a cast turns 0000-00-00 into NULL."""
        has_dates = any(column.family in (DATE, DATETIME) for column in columns)
        return f"{links} LIKE '%%-00%%'" if has_dates else ""

    def keys(self, array: str, key: Sequence[Column], *, one: bool = False) -> FoundKeys:
        types = (_whole(part, "BIGINT") if part.kind == WHOLE else "LONGTEXT" for part in key)
        columns = ", ".join(
            f"part{number} {kind} PATH '$[{number}]'" for number, kind in enumerate(types)
        )
        path = "$" if one else "$[*]"
        join = f"CROSS JOIN JSON_TABLE({array}, '{path}' COLUMNS ({columns})) matviews_key"
        parts = [
            _as(part, self.dialect.read_back(part.kind, f"matviews_key.part{number}"))
            for number, part in enumerate(key)
        ]
        return FoundKeys(join, parts)

    def logged(self, table: str, columns: Sequence[Column]) -> SQL:
        """The triggers log one or two rows in an entry."""
        values, params = [], []
        for column in columns:
            # JSON_SEARCH looks for a pattern.
            pattern = column.name.replace("\\", r"\\").replace("_", r"\_").replace("%", r"\%")
            found = f"JSON_SEARCH(JSON_EXTRACT({ENTRIES}.links, '$[0]'), 'one', %s)"
            place = f"SUBSTR(JSON_UNQUOTE({found}), 2)"
            value = (
                f"JSON_EXTRACT({ENTRIES}.links, "
                f"CONCAT('$[', matviews_link.place - 1, ']', {place}))"
            )
            text = f"IF(JSON_TYPE({value}) = 'NULL', NULL, JSON_UNQUOTE({value}))"
            values.append(f"{_as(column, text)} AS {self.dialect.name(column.name)}")
            params += [pattern, pattern]
        return SQL(
            f"SELECT DISTINCT {', '.join(values)} FROM {ENTRIES} "
            f"CROSS JOIN JSON_TABLE({ENTRIES}.links, '$[*]' "
            f"COLUMNS (place FOR ORDINALITY)) matviews_link "
            f"WHERE {ENTRIES}.of_table = %s AND matviews_link.place > 1",
            (*params, table),
        )

    def typed(self, field: AnyField, value: str, collation: str) -> str:
        """CAST would clip a number that does not fit, and DIV is an error then."""
        of, holds = family(field), value_field(field)
        if of == WHOLE:
            kind = holds.rel_db_type(self.connection) or ""
            one = "CAST(1 AS UNSIGNED)" if _is_unsigned(kind) else "1"
            return f"(CAST({value} AS DECIMAL({DIGITS})) DIV {one})"
        places = getattr(holds, "decimal_places", None)
        if of == NUMBER and places is not None:
            return f"CAST({value} AS DECIMAL({DIGITS}, {places}))"
        return _collated(value, collation) if of == TEXT and collation else value

    def altered(self, table: str, log: str, columns: Collection[str]) -> SQL:
        """A trigger stores what fits; nobody can alter tables while a statement reads them."""
        marks = ", ".join(["%s"] * len(columns))
        return SQL(
            "EXISTS (SELECT 1 FROM (SELECT column_name FROM information_schema.columns "
            "WHERE table_schema = DATABASE() AND table_name IN (%s, %s) "
            f"AND column_name IN ({marks}) GROUP BY column_name, column_type, "
            "COALESCE(collation_name, '') HAVING COUNT(*) <> 2) matviews_altered)",
            (table, log, *columns),
        )

    def mixes_snapshots(self) -> SQL:
        """With REPEATABLE READ, a writer changes the rows that others have committed last.

        MySQL does not say whether a transaction is open.
        """
        mariadb, version = self.connection.mysql_is_mariadb, self.connection.mysql_version
        level = "tx_isolation" if mariadb and version < (11, 1, 1) else "transaction_isolation"
        is_open = " AND @@in_transaction = 1" if mariadb else ""
        return SQL(f"@@{level} = 'REPEATABLE-READ'{is_open}")


def _is_unsigned(type_name: str) -> bool:
    """Whether a type has numbers that no other type of whole numbers has."""
    return "bigint" in type_name.lower() and "unsigned" in type_name.lower()


def _whole(column: Column, signed: str) -> str:
    """The type in which values of a column are read; a negative one may wait for unsigned keys."""
    return "DECIMAL(20)" if _is_unsigned(column.type_name) else signed


def _as(column: Column, text: str) -> str:
    if column.family == WHOLE:
        return f"CAST({text} AS {_whole(column, 'SIGNED')})"
    if column.family in CASTS:
        return f"CAST({text} AS {CASTS[column.family]})"
    if column.family == TEXT and column.collation:
        return _collated(text, column.collation)
    return text


def _collated(text: str, collation: str) -> str:
    charset = collation.partition("_")[0]
    return f"CONVERT({text} USING {charset}) COLLATE {collation}"
