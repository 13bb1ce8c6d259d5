"""Views as of now, as tests compare them with their sources."""

from typing import Any

from django.db import connection

from matviews import engine
from matviews.databases.sql import SQL
from matviews.engine.current import FINE, current_statement
from matviews.queryset import plan_of
from matviews.queryset.sql.readers import whole
from matviews.registry import registry

__all__ = ["differences_now", "reads_table"]


def reads_table(view: type[Any]) -> bool:
    """Whether a view as of now is read from its tables, except for the keys that wait."""
    plan = plan_of(registry.find(view), engine.alias())
    query = current_statement(plan).asked(SQL(f"SELECT COUNT(*) FROM {FINE}"))
    with connection.cursor() as cursor:
        cursor.execute(*query)
        return bool(cursor.fetchone()[0])


def differences_now(view: type[Any]) -> list[tuple[Any, ...]]:
    """How a view as of now differs from its source, in one statement."""
    plan = plan_of(registry.find(view), engine.alias())
    names = [column.field.attname for column in plan.source.columns]
    of_view, params = view.current.values_list(*names).query.sql_with_params()
    of_source = whole(plan.source, plan.dialect)
    given = ", ".join(f"c{number}" for number in range(len(names)))
    nothing = ", ".join(["NULL"] * len(names))
    with connection.cursor() as cursor:
        cursor.execute(
            f"WITH of_view ({given}) AS ({of_view}), of_source ({given}) AS ({of_source.text}), "
            f"more AS (SELECT * FROM of_view EXCEPT SELECT * FROM of_source), "
            f"less AS (SELECT * FROM of_source EXCEPT SELECT * FROM of_view) "
            f"SELECT 'more' AS side, more.* FROM more UNION ALL SELECT 'less', less.* FROM less "
            f"UNION ALL SELECT 'count', {nothing} "
            f"WHERE (SELECT COUNT(*) FROM of_view) <> (SELECT COUNT(*) FROM of_source)",
            [*params, *of_source.params],
        )
        return list(cursor.fetchall())
