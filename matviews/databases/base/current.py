"""SQL for the statement that reads a view as of now: the bookkeeping's JSON, and typed columns.

This is the SQL of PostgreSQL; the others override what differs.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from django.db import connections

from ..fields import TEXT, WHOLE, AnyField, value_field
from ..sql import SQL, joined, qualified
from .dialect import PRECISION, Dialect

__all__ = ["ENTRIES", "Column", "CurrentSQL", "FoundKeys", "Part"]

ENTRIES = "matviews_entries"  # the changes that wait for a view: of_table, is_list, links


class Part(NamedTuple):
    """A part that precedes a query."""

    name: str
    #: Its columns, quoted; none: as the query has them.
    columns: Sequence[str]
    query: SQL
    #: Whether several others read it. It must not begin with parts of its own then.
    is_shared: bool = True


class Column(NamedTuple):
    """A column as the database has it."""

    #: Not quoted.
    name: str
    #: As `fields.family` says.
    family: str
    #: As `Dialect.kind_of` says.
    kind: str
    #: The type in the database, as `Dialect.columns` says; "" if it has none of the column.
    type_name: str
    #: "" for the default.
    collation: str


class FoundKeys(NamedTuple):
    """Keys in a JSON column."""

    #: A join that yields a row for each key; "" if there is one in each row.
    join: str
    #: The parts of the key.
    parts: list[str]


class CurrentSQL:
    """SQL on the bookkeeping's JSON columns, and on values of a view.

    Args:
        dialect: the SQL dialect of the database.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect

    @property
    def connection(self) -> Any:
        """This thread's connection."""
        return connections[self.dialect.using]

    def with_parts(self, parts: Sequence[Part], query: SQL) -> SQL:
        """A query with the parts that precede it; one that is shared is evaluated once."""
        before = joined(", ", map(self._part, parts))
        return SQL(f"{self.words} {before.text} {query.text}", (*before.params, *query.params))

    #: What parts begin with.
    words = "WITH"

    def _part(self, part: Part) -> SQL:
        names = f" ({', '.join(part.columns)})" if part.columns else ""
        return SQL(f"{part.name}{names} AS ({self._query(part)})", part.query.params)

    def _query(self, part: Part) -> str:
        return part.query.text

    def has_all(self, array: str, values: Collection[Any]) -> SQL:
        """Whether a JSON array has all of some values."""
        return SQL(f"{array} @> %s::jsonb", (json.dumps(list(values)),))

    def are_words(self, array: str, text: str) -> str:
        """Whether a JSON array has texts, and each is a word of a text."""
        words = f"to_jsonb(string_to_array({text}, ' '))"
        return f"({array} <> '[]'::jsonb AND {array} <@ {words})"

    def under(self, of: str, number: str) -> str:
        """What a JSON object has under a number; NULL if nothing."""
        return f"({of} -> {number}::text)"

    def first(self, array: str) -> str:
        """The first element of a JSON array, as JSON."""
        return f"({array} -> 0)"

    def drain(self, checkpoints: str, phase: str) -> str:
        """The number of the last drain that a phase has processed; NULL if it never succeeded."""
        return f"({checkpoints} -> '{phase}' ->> 0)::bigint"

    def fingerprint(self, checkpoints: str, phase: str) -> str:
        """The fingerprint of a phase's rows."""
        return f"({checkpoints} -> '{phase}' ->> 1)"

    def is_list(self, links: str) -> str:
        """Whether what was logged is a JSON array; false if it is NULL."""
        return f"COALESCE(jsonb_typeof({links}) = 'array', FALSE)"

    #: What stands for links that are none.
    no_links = "'[]'::jsonb"

    def may_be_misread(self, links: str, columns: Sequence[Column]) -> str:
        """Whether links may have values that SQL cannot read back; "" if there are none."""
        return ""

    def keys(self, array: str, key: Sequence[Column], *, one: bool = False) -> FoundKeys:
        """The keys in a JSON array of keys, or the `one` that the array is.

        Args:
            array: the column with the array.
            key: the columns of the view's key.
            one: whether the array is one key.
        """
        join = "" if one else f"CROSS JOIN LATERAL jsonb_array_elements({array}) matviews_key"
        of = array if one else "matviews_key.value"
        texts = (f"({of} ->> {number})" for number in range(len(key)))
        parts = [
            f"{text}::bigint" if part.kind == WHOLE else self.dialect.read_back(part.kind, text)
            for part, text in zip(key, texts, strict=True)
        ]
        return FoundKeys(join, parts)

    def logged(self, table: str, columns: Sequence[Column]) -> SQL:
        """A query for the values of columns that `ENTRIES` have of a table."""
        names = ", ".join(qualified("matviews_row", (self.dialect.name(c.name) for c in columns)))
        named = (
            "SELECT jsonb_object_agg(head.name, matviews_link.value -> (head.place - 1)::int) "
            "FROM jsonb_array_elements_text(matviews_entry.names) WITH ORDINALITY "
            "head (name, place)"
        )
        # OFFSET keeps the planner from taking the names out of the array again for each link.
        entries = f"SELECT links, links -> 0 AS names FROM {ENTRIES} WHERE of_table = %s OFFSET 0"
        return SQL(
            f"SELECT DISTINCT {names} FROM ({entries}) matviews_entry "
            f"CROSS JOIN LATERAL jsonb_array_elements(matviews_entry.links) WITH ORDINALITY "
            f"matviews_link (value, place) CROSS JOIN LATERAL "
            f"jsonb_populate_record(NULL::{self.dialect.name(table)}, ({named})) matviews_row "
            f"WHERE matviews_link.place > 1",
            (table,),
        )

    def typed(self, field: AnyField, value: str, collation: str) -> str:
        """A value in the type that the column of a field returns, with its collation.

        Args:
            field: the field.
            value: SQL of the value.
            collation: that of a text's column in the database; "" for the default.
        """
        kind = PRECISION.sub("", value_field(field).rel_db_type(self.connection) or "").strip()
        typed = f"CAST({value} AS {kind})" if kind else value
        if self.dialect.kind_of(field).partition("(")[0] not in (TEXT, "bpchar"):
            return typed
        return f"{typed} COLLATE {self.dialect.name(collation or 'default')}"

    def only_if(self, condition: str, query: SQL) -> SQL:
        """A query that is not evaluated, and has no rows, unless a condition holds.

        Args:
            condition: it depends on no row.
            query: the query.
        """
        return SQL(f"SELECT * FROM ({query.text}) matviews_part WHERE {condition}", query.params)

    def altered(self, table: str, log: str, columns: Collection[str]) -> SQL:
        """Whether columns have other types now than in a value log, where that matters."""
        return SQL("")

    def mixes_snapshots(self) -> SQL:
        """Whether this transaction may see rows that it has written as nobody else has them yet,
        on top of changes of others that it does not see.
        """
        return SQL("")
