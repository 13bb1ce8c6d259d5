"""Which views an entry of the change log concerns, in SQL."""

from ..databases import dialect_of

__all__ = ["concerned_sql"]


def concerned_sql(tracked: str, view: str, using: str) -> str:
    """Whether an entry concerns a view, as `TrackedTable.concerned` says.

    Args:
        tracked: the alias of the table's record; the entry has the alias `log`.
        view: the primary key of the view's control, in SQL.
        using: alias of the database.
    """
    shares = dialect_of(using).shares_name("log.changed", f"{tracked}.view_columns", view)
    return f"({shares} AND NOT (log.by_batch AND COALESCE({tracked}.own_view, 0) = {view}))"
