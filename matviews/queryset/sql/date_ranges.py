"""Ranges of a date column in which keys that are computed from it lie: an index may serve them."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.db.models import DateTimeField
from django.db.models.functions import ExtractYear
from django.db.models.functions.datetime import TruncBase

from ...databases.fields import column_of
from ...databases.keys import Keys

__all__ = ["DateBound", "date_bounds", "ranged_column"]

# Days in the longest period. Databases know others, like "decade".
PERIOD_DAYS = {
    "year": 366, "quarter": 92, "month": 31, "week": 7,
    **dict.fromkeys(("day", "date", "hour", "minute", "second"), 1),
}  # fmt: skip
# More than any two time zones differ: the database compares in one, and computes in another.
MARGIN = timedelta(days=2)


class DateBound(str):
    """An end of the range of a column as a parameter, which depends on the keys."""

    __slots__ = ("is_upper", "part")

    #: Which part of the view's key is computed from the column.
    part: int
    #: Whether it is the upper end.
    is_upper: bool


def ranged_column(expression: Any) -> Any:
    """The column that a part of a key is computed from, if that bounds it; else None.

    A subclass of a project's own may compute anything.
    """
    if type(expression).__module__ != TruncBase.__module__:
        return None
    if isinstance(expression, TruncBase):
        is_bounding = expression.kind in PERIOD_DAYS
    else:
        is_bounding = isinstance(expression, ExtractYear)
    return expression.lhs if is_bounding and column_of(expression.lhs) else None


def date_bounds(expression: Any, within: Keys, part: int) -> list[DateBound]:
    """Below and above all values of the column with these keys; [] if Python does not know them.

    Args:
        expression: the part of the key.
        within: the keys.
        part: which part it is.
    """
    try:
        low, high = _range(expression, [key[part - within.first_part] for key in within.keys])
    except (ValueError, OverflowError):  # infinity, years before Christ, 0000-00-00
        return []
    plain = not isinstance(expression.lhs.output_field, DateTimeField)
    bounds = [DateBound(each.date() if plain else each) for each in (low, high)]
    for bound, is_upper in zip(bounds, (False, True), strict=True):
        bound.part, bound.is_upper = part, is_upper
    return bounds


def _range(expression: Any, values: Iterable[Any]) -> tuple[datetime, datetime]:
    if isinstance(expression, ExtractYear):
        moments, days = [datetime(int(year), 1, 1, tzinfo=UTC) for year in values], 366
    else:
        moments = [_moment(value) for value in values]
        days = PERIOD_DAYS[expression.kind]
    high = max(moments) + timedelta(days=days) + MARGIN
    return (min(moments) - MARGIN).replace(tzinfo=None), high.replace(tzinfo=None)


def _moment(value: Any) -> datetime:
    """A truncated date or time, as `Dialect.exact` writes it."""
    moment = value if isinstance(value, date) else datetime.fromisoformat(str(value))
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
