"""What a table of PostgreSQL was made to write: rows, and bytes of the write-ahead log."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.models import Model

__all__ = ["Written", "written"]

RELATIONS = """
SELECT pg_relation_filenode(%s::regclass) UNION ALL
SELECT pg_relation_filenode(indexrelid) FROM pg_index WHERE indrelid = %s::regclass
"""
# A record names the blocks that it changes as "blkref #0: rel 1663/16384/16399 fork main blk 7".
BYTES = """
SELECT coalesce(sum(record_length), 0) FROM pg_get_wal_records_info(%s, %s)
WHERE block_ref ~ %s
"""
ROWS = """
SELECT n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables WHERE relid = %s::regclass
"""


@dataclass(kw_only=True)
class Written:
    """Of one table and its indexes, by whoever wrote them.

    Attributes:
        rows: inserted, updated and deleted.
        wal: bytes; None where the extension pg_walinspect, of PostgreSQL 15, cannot be had.
    """

    rows: int = 0
    wal: int | None = None


@contextmanager
def written(model: type[Model]) -> Iterator[Written]:
    """Measure what is written inside; the result is filled in at the end."""
    table, result = model._meta.db_table, Written()
    inspects = _can_inspect()
    rows, start = _rows(table), _value("SELECT pg_current_wal_insert_lsn()")
    yield result
    result.rows = _rows(table) - rows
    if inspects:
        # What was committed is flushed; beyond that, others may still be writing.
        result.wal = _bytes(table, start, _value("SELECT pg_current_wal_flush_lsn()"))


def _can_inspect() -> bool:
    if not _value("SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_walinspect'"):
        return False
    with connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect")
    return True


def _rows(table: str) -> int:
    if connection.get_database_version() >= (15,):
        _value("SELECT 1 FROM pg_stat_force_next_flush()")
    else:
        _value("SELECT 1 FROM pg_sleep(1.1)")  # what a session has done is counted once a second
    return int(_value(ROWS, table))


def _bytes(table: str, start: Any, end: Any) -> int:
    """Bytes of the records between two positions that touch the table or an index of it."""
    if _value("SELECT %s::pg_lsn >= %s::pg_lsn", start, end):
        return 0
    with connection.cursor() as cursor:
        cursor.execute(RELATIONS, [table, table])
        files = "|".join(str(file) for (file,) in cursor)
    return int(_value(BYTES, start, end, rf"rel \d+/\d+/({files}) "))


def _value(sql: str, *parameters: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        (value,) = cursor.fetchone()
    return value
