"""A cache of bookkeeping rows that are read again and again, for those that have not changed.

Making an object of a row, and reading its JSON, takes many times as long as comparing its columns.
"""

import json
from collections.abc import Sequence
from copy import copy
from typing import Any, Generic, TypeVar

from django.db.models import ExpressionWrapper, F, JSONField, Model, QuerySet, TextField

__all__ = ["KnownRows", "twin"]

M = TypeVar("M", bound=Model)


class KnownRows(Generic[M]):
    """The rows of a table that this process has read.

    Args:
        model: the model of the table.
        names: the fields to read, without relations to other rows; by default, all.
    """

    def __init__(self, model: type[M], names: Sequence[str] = ()) -> None:
        self._model = model
        self._fields = [
            field for field in model._meta.concrete_fields if not names or field.attname in names
        ]
        self._names = [field.attname for field in self._fields]
        #: By primary key, the columns as they were read last, and what was made of them.
        self._known: dict[Any, tuple[tuple[Any, ...], M]] = {}

    def read(
        self, rows: QuerySet[Any], *more: str, everything: bool
    ) -> list[tuple[M, tuple[Any, ...]]]:
        """The rows of a queryset, each with the values of more columns, in one statement.

        The objects are shared: do not change them, and make a `twin` to add attributes.

        Args:
            rows: the queryset.
            more: the columns.
            everything: whether the table has no other rows; then the others are forgotten.
        """
        columns = [
            ExpressionWrapper(F(field.attname), TextField())
            if isinstance(field, JSONField)
            else field.attname
            for field in self._fields
        ]
        width, at = len(columns), self._names.index(self._model._meta.pk.attname)
        found, seen = list[tuple[M, tuple[Any, ...]]](), {}
        for values in rows.values_list(*columns, *more):
            row, known = values[:width], self._known.get(values[at])
            if known is None or known[0] != row:
                known = row, self._made(rows.db, row)
            seen[values[at]] = known
            found.append((known[1], values[width:]))
        self._known = seen if everything else self._known | seen
        return found

    def _made(self, using: str, row: tuple[Any, ...]) -> M:
        values = [
            field.to_python(json.loads(value))
            if isinstance(field, JSONField) and value is not None
            else value
            for field, value in zip(self._fields, row, strict=True)
        ]
        return self._model.from_db(using, self._names, values)


def twin(row: Model, **attributes: Any) -> Any:
    """Another object with the values of one, and attributes of its own."""
    made = type(row).__new__(type(row))
    made.__dict__.update(row.__dict__, _state=copy(row._state), **attributes)
    return made
