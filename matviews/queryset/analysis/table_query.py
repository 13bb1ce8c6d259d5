"""A query of a model that reads other rows in place of the model's table."""

from typing import Any

from django.db.models import Model
from django.db.models.sql import Query
from django.db.models.sql.datastructures import BaseTable

from ...databases.sql import SQL

__all__ = ["RowsQuery", "RowsTable"]


class RowsTable(BaseTable):
    """Takes the place of the model's table in FROM; a subclass says which rows it has."""

    @staticmethod
    def rows(model: type[Model], using: str) -> SQL:
        """A query with the columns of the model's table, for the database with this alias."""
        raise NotImplementedError

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        """Django also makes one of the first table of a subquery that it has shortened."""
        model = compiler.query.model
        if self.table_name != model._meta.db_table:
            return super().as_sql(compiler, connection)
        query = self.rows(model, connection.alias)
        # Until Django 6.1 the aliases that it makes up have no quotes.
        quote = getattr(compiler, "quote_name", None) or compiler.quote_name_unless_alias
        return f"({query.text}) {quote(self.table_alias)}", query.params


class RowsQuery(Query):
    """A query that begins with a `RowsTable`; a subclass says with which."""

    base_table_class = RowsTable
