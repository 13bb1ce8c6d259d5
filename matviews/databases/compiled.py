"""Queries that every batch runs, compiled once.

Django takes several times longer to build such a query than the database takes to run it. In a
compiled query `PK_PLACEHOLDER` stands for the primary key, and `TOKEN_PLACEHOLDER` for the token,
of each run.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from django.db import connections, models, transaction
from django.db.models import Model, QuerySet
from django.db.models.sql import UpdateQuery

__all__ = [
    "MAX_BIGINT", "PK_PLACEHOLDER", "TOKEN_PLACEHOLDER", "CompiledSelect", "CompiledUpdate",
    "insert_rows", "run_middle_command", "update_rows",
]  # fmt: skip

# Values that fit the columns but that no row has.
PK_PLACEHOLDER, TOKEN_PLACEHOLDER = -(2**62) - 1, -(2**62) - 2
MAX_BIGINT = 2**63 - 1  # a message may claim a higher key


class CompiledUpdate:
    """A compiled `QuerySet.update`.

    The SQL `around` the statement may begin and end a transaction, on PostgreSQL with psycopg 3.
    """

    def __init__(
        self,
        rows: QuerySet[Any],
        changes: dict[str, Any],
        *,
        around: tuple[str, str] | None = None,
    ) -> None:
        self._using = rows.db
        query: Any = rows.query.chain(UpdateQuery)
        query.add_update_values(changes)
        sql, self._params = query.get_compiler(self._using).as_sql()
        before, after = around or ("", "")
        self._sql, self._has_commands_around = f"{before}{sql}{after}", bool(after)

    def run(self, key: int, token: int = 0) -> int:
        """Run it, and return the number of rows it matched."""
        if not _can_be_stored(key, token):
            return 0
        given = _given(self._params, key, token)
        with (
            transaction.mark_for_rollback_on_error(using=self._using),
            connections[self._using].cursor() as cursor,
        ):
            if self._has_commands_around:
                run_middle_command(cursor, self._sql, given)
            else:
                cursor.execute(self._sql, given)
            return int(cursor.rowcount)


def update_rows(
    model: type[Model],
    where: Mapping[str, Any],
    changes: Mapping[str, Any],
    added: Mapping[str, float] | None = None,
    *,
    using: str,
) -> int:
    """Update rows like `QuerySet.update`, but without compiling a query each time, which is slow.

    Args:
        model: the model; its managers and signals have no part in it.
        where: values that the rows have, by the names of their fields.
        changes: values to set, by the names of their fields.
        added: numbers to add, by the names of their fields.
        using: alias of the database.

    Returns:
        The number of rows.
    """
    connection: Any = connections[using]
    quote, params = connection.ops.quote_name, list[Any]()

    def assigned(values: Mapping[str, Any], form: str) -> list[str]:
        found = []
        for name, value in values.items():
            field: Any = model._meta.get_field(name)
            params.append(field.get_db_prep_save(value, connection))
            found.append(form.format(quote(field.column)))
        return found

    sets = [*assigned(changes, "{0} = %s"), *assigned(added or {}, "{0} = {0} + %s")]
    conditions = assigned(where, "{0} = %s")
    sql = (
        f"UPDATE {quote(model._meta.db_table)} SET {', '.join(sets)} "
        f"WHERE {' AND '.join(conditions)}"
    )
    with transaction.mark_for_rollback_on_error(using=using), connection.cursor() as cursor:
        cursor.execute(sql, params)
        return int(cursor.rowcount)


def insert_rows(rows: Sequence[Model], *, using: str) -> None:
    """Insert instances of one model like `bulk_create`, but several times faster.

    The model's managers and signals have no part in it. The primary keys, which the database
    assigns, are set on the instances.

    Args:
        rows: the instances, without primary keys.
        using: alias of the database.
    """
    connection: Any = connections[using]
    at_once = connection.features.can_return_rows_from_bulk_insert
    for some in [rows] if at_once else [[row] for row in rows]:
        if some:
            _insert(some, connection, returns_keys=at_once)


def _insert(rows: Sequence[Model], connection: Any, *, returns_keys: bool) -> None:
    meta, quote, params = rows[0]._meta, connection.ops.quote_name, list[Any]()
    key: Any = meta.pk
    fields: Any = [field for field in meta.concrete_fields if field is not key]

    def given(row: Model) -> str:
        texts = []
        for field in fields:
            value = field.pre_save(row, True)
            text = _literal(value, field)
            if text == "%s":
                params.append(field.get_db_prep_save(value, connection))
            texts.append(text)
        return f"({', '.join(texts)})"

    columns = ", ".join(quote(field.column) for field in fields)
    sql = f"INSERT INTO {quote(meta.db_table)} ({columns}) VALUES {', '.join(map(given, rows))}"
    if returns_keys:
        sql += f" RETURNING {quote(key.column)}"
    with (
        transaction.mark_for_rollback_on_error(using=connection.alias),
        connection.cursor() as cursor,
    ):
        cursor.execute(sql, params)
        keys = [found for (found,) in cursor.fetchall()] if returns_keys else [cursor.lastrowid]
    for row, found in zip(rows, keys, strict=True):
        row.pk, row._state.adding, row._state.db = found, False, connection.alias


def _literal(value: object, field: Any) -> str:
    """The SQL of a value that neither a field nor a driver need adapt; "%s" for any other."""
    if value is None:
        return "NULL"
    if type(value) is bool:
        return "TRUE" if value else "FALSE"
    fits = type(value) is int and abs(value) <= MAX_BIGINT
    return str(value) if fits and isinstance(field, models.IntegerField) else "%s"


def run_middle_command(cursor: Any, sql: str, params: Sequence[Any]) -> None:
    """Run three commands: the first begins a transaction, and the last ends it.

    Afterwards the cursor has the result of the second.
    """
    try:
        cursor.execute(sql, params)
    except BaseException:
        with suppress(Exception):  # a lost connection has rolled back
            cursor.db.connection.rollback()
        raise
    cursor.nextset()


class CompiledSelect:
    """A compiled query for columns, as `QuerySet.values_list` makes it."""

    def __init__(self, rows: QuerySet[Any]) -> None:
        self._using, self._query = rows.db, rows.query
        compiler = self._query.get_compiler(self._using)
        self._sql, self._params = compiler.as_sql()
        self._columns = [column for column, *_rest in compiler.select]
        quote = connections[self._using].ops.quote_name
        self._table = quote(rows.model._meta.db_table)
        self._converters: dict[bool, Any] = {}

    def run(
        self, key: int = 0, token: int = 0, *, entries: str = "", before: str = ""
    ) -> list[list[Any]]:
        """Run it, and return the rows, with values converted as the models' fields convert them.

        Args:
            key: the primary key.
            token: the token.
            entries: what stands in a FROM for the table, as `Floors` return it; "" for itself.
            before: SQL without parameters that the statement begins with.
        """
        if not _can_be_stored(key, token):
            return []
        sql = self._sql
        if entries not in ("", self._table):
            sql = sql.replace(f" FROM {self._table}", f" FROM {entries} {self._table}", 1)
        with connections[self._using].cursor() as cursor:
            cursor.execute(f"{before}{sql}", _given(self._params, key, token))
            rows = list(map(list, cursor.fetchall()))
        connection: Any = connections[self._using]
        for place, (converters, expression) in self._conversions(connection).items():
            for row in rows:
                for convert in converters:
                    row[place] = convert(row[place], expression, connection)
        return rows

    def _conversions(self, connection: Any) -> Any:
        """The converters of each column, which depend on USE_TZ on MariaDB and MySQL."""
        aware = connection.timezone is not None
        if aware not in self._converters:
            compiler = self._query.get_compiler(self._using)
            self._converters[aware] = compiler.get_converters(self._columns)
        return self._converters[aware]


def _can_be_stored(key: int, token: int) -> bool:
    return max(abs(key), abs(token)) <= MAX_BIGINT


def _given(params: tuple[Any, ...], key: int, token: int) -> list[Any]:
    values = {PK_PLACEHOLDER: key, TOKEN_PLACEHOLDER: token}
    # psycopg's integers have types of their own.
    return [type(param)(values[param]) if _is_placeholder(param) else param for param in params]


def _is_placeholder(param: Any) -> bool:
    return isinstance(param, int) and param in (PK_PLACEHOLDER, TOKEN_PLACEHOLDER)
