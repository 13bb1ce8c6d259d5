"""A query of a model that reads other rows in place of the model's table."""

from collections.abc import Sequence
from typing import Any

from django.db.models import Model
from django.db.models.sql import Query
from django.db.models.sql.datastructures import BaseTable

from ...databases.fields import AnyField
from ...databases.sql import SQL

__all__ = ["RowsQuery", "RowsTable"]


class RowsTable(BaseTable):
    """Takes the place of the model's table in FROM; a subclass says which rows it has."""

    @staticmethod
    def rows(model: type[Model], using: str) -> SQL:
        """A query with the columns of the model's table, for the database with this alias."""
        raise NotImplementedError

    @staticmethod
    def key(model: type[Model], using: str) -> Sequence[AnyField]:
        """The fields that identify a row, which need not have a primary key."""
        raise NotImplementedError

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        """Django also makes one of the first table of a subquery that it has shortened."""
        model = compiler.query.model
        if not self.is_of(model):
            return super().as_sql(compiler, connection)
        query = self.rows(model, connection.alias)
        # Until Django 6.1 the aliases that it makes up have no quotes.
        quote = getattr(compiler, "quote_name", None) or compiler.quote_name_unless_alias
        return f"({query.text}) {quote(self.table_alias)}", query.params

    def is_of(self, model: type[Model]) -> bool:
        """Whether it takes the place of a model's table."""
        return self.table_name == model._meta.db_table


class RowsQuery(Query):
    """A query that begins with a `RowsTable`; a subclass says with which."""

    base_table_class = RowsTable

    def get_compiler(self, *args: Any, **options: Any) -> Any:
        """Its GROUP BY does not take the primary key for what identifies a row."""
        compiler = super().get_compiler(*args, **options)
        model: Any = self.model
        collapse, using = compiler.collapse_group_by, compiler.connection.alias

        def separate(expressions: list[Any], having: Any) -> list[Any]:
            own = [each for each in expressions if self._is_column(each)]
            others = [each for each in expressions if not self._is_column(each)]
            keys = [
                field.get_col(each.alias)
                for each in own
                if each.target.primary_key
                for field in self.base_table_class.key(model, using)
            ]
            return [*own, *keys, *collapse(others, having)]

        compiler.collapse_group_by = separate
        return compiler

    def _is_column(self, expression: Any) -> bool:
        """Whether an expression is a column of the rows."""
        if not hasattr(expression, "target"):
            return False
        table, model = self.alias_map.get(expression.alias), self.model
        return isinstance(table, RowsTable) and model is not None and table.is_of(model)
