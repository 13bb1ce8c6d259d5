"""`View.current`: a queryset of a view as of the statement that reads it."""

from typing import Any, NoReturn

from django.db.models import Model, QuerySet

from .exceptions import InvalidRequest

__all__ = ["Current", "CurrentQuerySet"]


class CurrentQuerySet(QuerySet[Any]):
    """The rows of a view as of the statement that reads them.

    It filters, orders, slices and aggregates as any queryset, but writes nothing and locks nothing.
    """


_WRITES = (
    "would write to the view or lock its rows, and current only reads: write to the tables that "
    "source() reads"
)
_DEFERS = (
    "would read the other fields from the view's table, as they were refreshed last: use values() "
    "or values_list()"
)


def _refuse(name: str, why: str) -> Any:
    def refuse(self: CurrentQuerySet, *_args: Any, **_options: Any) -> NoReturn:
        raise InvalidRequest(f"{self.model.__name__}.current.{name}() {why}.")

    refuse.__name__ = name
    refuse.alters_data = True  # type: ignore[attr-defined]
    return refuse


for _name in (
    "_raw_delete", "bulk_create", "bulk_update", "create", "delete", "get_or_create",
    "select_for_update", "update", "update_or_create",
):  # fmt: skip
    setattr(CurrentQuerySet, _name, _refuse(_name, _WRITES))
for _name in ("defer", "only"):
    setattr(CurrentQuerySet, _name, _refuse(_name, _DEFERS))


class Current:
    """The attribute `current` of a view's class: a new queryset each time."""

    def __get__(self, instance: object, owner: type[Model]) -> CurrentQuerySet:
        if instance is not None:
            raise AttributeError(f"current is an attribute of {owner.__name__}, not of its rows.")
        return CurrentQuerySet(owner, query=_query(owner))


def _query(model: type[Model]) -> Any:
    from . import engine

    return engine.CurrentQuery(model)
