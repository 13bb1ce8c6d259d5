"""`View.current`: a queryset of a view as of the statement that reads it."""

from typing import Any, NoReturn

from django.db.models import Model, QuerySet

from .exceptions import InvalidRequest

__all__ = ["Current", "CurrentQuerySet"]


class CurrentQuerySet(QuerySet[Any]):
    """The rows of a view as of the statement that reads them.

    It filters, orders, slices and aggregates as any queryset, but writes nothing and locks nothing.
    """


def _refuse(name: str) -> Any:
    def refuse(self: CurrentQuerySet, *_args: Any, **_options: Any) -> NoReturn:
        raise InvalidRequest(
            f"{self.model.__name__}.current.{name}() would write to the view or lock its rows, "
            f"and current only reads: write to the tables that source() reads."
        )

    refuse.__name__ = name
    refuse.alters_data = True  # type: ignore[attr-defined]
    return refuse


for _name in (
    "bulk_create", "bulk_update", "create", "delete", "get_or_create", "select_for_update",
    "update", "update_or_create",
):  # fmt: skip
    setattr(CurrentQuerySet, _name, _refuse(_name))


class Current:
    """The attribute `current` of a view's class: a new queryset each time."""

    def __get__(self, instance: object, owner: type[Model]) -> CurrentQuerySet:
        if instance is not None:
            raise AttributeError(f"current is an attribute of {owner.__name__}, not of its rows.")
        return CurrentQuerySet(owner, query=_query(owner))


def _query(model: type[Model]) -> Any:
    from . import engine

    return engine.CurrentQuery(model)
