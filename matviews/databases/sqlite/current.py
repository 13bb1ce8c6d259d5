"""Reading a view as of now on SQLite."""

import json
from collections.abc import Collection, Sequence
from typing import Any

from ..base.current import ENTRIES, Column, CurrentSQL, FoundKeys
from ..fields import NUMBER, TEXT, WHOLE, AnyField, family
from ..sql import SQL

__all__ = ["SQLiteCurrentSQL"]


class SQLiteCurrentSQL(CurrentSQL):
    """Any column may hold any value: what JSON holds as an object is not read back."""

    def has_all(self, array: str, values: Collection[Any]) -> SQL:
        return SQL(
            f"NOT EXISTS (SELECT 1 FROM json_each(%s) wanted "
            f"WHERE wanted.value NOT IN (SELECT value FROM json_each({array})))",
            (json.dumps(list(values)),),
        )

    def are_words(self, array: str, text: str) -> str:
        """The text is evaluated once, and not for each element."""
        return (
            f"(json_array_length({array}) > 0 AND NOT EXISTS (SELECT 1 "
            f"FROM (SELECT ' ' || COALESCE({text}, '') || ' ' AS words) given "
            f"CROSS JOIN json_each({array}) one "
            f"WHERE instr(given.words, ' ' || one.value || ' ') = 0))"
        )

    def under(self, of: str, number: str) -> str:
        return f"json_extract({of}, '$.\"' || {number} || '\"')"

    def first(self, array: str) -> str:
        return f"json_extract({array}, '$[0]')"

    def drain(self, checkpoints: str, phase: str) -> str:
        return f"json_extract({checkpoints}, '$.{phase}[0]')"

    def fingerprint(self, checkpoints: str, phase: str) -> str:
        return f"json_extract({checkpoints}, '$.{phase}[1]')"

    def is_list(self, links: str) -> str:
        return f"CASE WHEN json_valid({links}) THEN json_type({links}) = 'array' ELSE 0 END"

    no_links = "'[]'"

    def may_be_misread(self, links: str, columns: Sequence[Column]) -> str:
        return f"instr({links}, '{{\"')"

    def keys(self, array: str, key: Sequence[Column], *, one: bool = False) -> FoundKeys:
        of = array if one else "matviews_key.value"
        join = "" if one else f"CROSS JOIN json_each({array}) matviews_key"
        return FoundKeys(join, [f"json_extract({of}, '$[{n}]')" for n in range(len(key))])

    def logged(self, table: str, columns: Sequence[Column]) -> SQL:
        values = ", ".join(
            "(SELECT item.value FROM json_each(matviews_link.value) item "
            f"JOIN json_each({ENTRIES}.links, '$[0]') head ON head.key = item.key "
            f"WHERE head.value = %s) AS {self.dialect.name(column.name)}"
            for column in columns
        )
        return SQL(
            f"SELECT DISTINCT {values} FROM {ENTRIES} "
            f"CROSS JOIN json_each({ENTRIES}.links) matviews_link "
            f"WHERE {ENTRIES}.of_table = %s AND matviews_link.key > 0",
            (*(column.name for column in columns), table),
        )

    def typed(self, field: AnyField, value: str, collation: str) -> str:
        """With the affinity of the column: parameters have none, and JSON holds numbers, too."""
        kind = {WHOLE: "INTEGER", NUMBER: "NUMERIC", TEXT: "TEXT"}.get(family(field))
        return f"CAST({value} AS {kind})" if kind else value

    def only_if(self, condition: str, query: SQL) -> SQL:
        """FROM would be evaluated before a condition, but not before a limit of 0."""
        limit = f"CASE WHEN {condition} THEN -1 ELSE 0 END"
        return SQL(
            f"SELECT * FROM (SELECT * FROM ({query.text}) matviews_part LIMIT ({limit}))",
            query.params,
        )
