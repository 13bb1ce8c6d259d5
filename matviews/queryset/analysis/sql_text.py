"""What the text of a statement shows, whatever classes its query consists of."""

import re

__all__ = ["plain_name", "tables_named", "zones_named"]

_NAME = r'(?:"(?:[^"]|"")+"|`[^`]+`|[A-Za-z_]\w*)'
_TABLE = re.compile(
    rf"\b(FROM|JOIN)\s+(?:ONLY\s+)?({_NAME})(?:\s*\.\s*({_NAME}))?(\s*\()?", re.IGNORECASE
)
# FROM without a table: EXTRACT(year FROM x), SUBSTRING(x FROM 2), TRIM(x FROM y), IS DISTINCT FROM.
_OTHER_FROM = re.compile(
    r"(DISTINCT|\b(EXTRACT|SUBSTRING|OVERLAY|TRIM|POSITION)\s*\([^()]*)\s*\Z", re.IGNORECASE
)
_COMMON_TABLE = re.compile(
    rf"\bWITH\s+(RECURSIVE\s+)?{_NAME}\s*(\([^()]*\)\s*)?AS\s+((NOT\s+)?MATERIALIZED\s+)?\(",
    re.IGNORECASE,
)
_TEXT = re.compile(r"'(?:[^']|'')*'")
_CONVERSION = "CONVERT_TZ("
LOOKBACK_CHARACTERS = 200  # before FROM, to find the function it belongs to


def tables_named(sql: str) -> set[str]:
    """The table names after FROM and JOIN, and "WITH" if there are common table expressions.

    A table of another schema is named as in `db_table`: `schema"."table`.
    """
    sql = _TEXT.sub("''", sql)
    names = {"WITH"} if _COMMON_TABLE.search(sql) else set()
    for found in _TABLE.finditer(sql):
        word, first, second, is_function = found.groups()
        if is_function or first.upper() in ("LATERAL", "SELECT", "VALUES"):
            continue
        before = max(0, found.start() - LOOKBACK_CHARACTERS)
        if word.upper() == "FROM" and _OTHER_FROM.search(sql, before, found.start()):
            continue
        names.add(plain_name(f"{first}.{second}" if second else first))
    return names


def plain_name(name: str) -> str:
    """A name as a model's `db_table` has it, without the outer quotes."""
    return name[1:-1] if name[0] in '"`' and name[-1] == name[0] else name


def zones_named(sql: str, params: tuple[object, ...]) -> set[str]:
    """The time zones that a statement of MariaDB or MySQL converts times to."""
    zones = set()
    for found in re.finditer(re.escape(_CONVERSION), sql):
        end = _closing(sql, found.end())
        zones.add(str(params[sql.count("%s", 0, end) - 1]))
    return zones


def _closing(sql: str, start: int) -> int:
    """Where the parenthesis that was opened before `start` is closed."""
    depth = 1
    for place in range(start, len(sql)):
        depth += (sql[place] == "(") - (sql[place] == ")")
        if not depth:
            return place
    return len(sql)
