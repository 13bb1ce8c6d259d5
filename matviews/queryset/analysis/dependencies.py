"""The dependencies that a view declares itself: `MatviewMeta.depends_on`."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model

from ...databases.fields import AnyField
from ...definition import DependsOn, ViewDefinition

__all__ = ["Dependency", "declared_dependencies", "declared_tables", "dependency_faults"]


@dataclass(frozen=True, slots=True)
class Dependency:
    """Which keys the changes of a model's rows concern."""

    #: The model whose rows change.
    model: type[Model]
    #: The logged columns: the key, or with `get_keys` the row's primary key.
    columns: tuple[str, ...] = ()
    #: Returns the keys that a queryset of changed rows concerns.
    get_keys: Callable[..., Iterable[Any]] | None = None

    @property
    def concerns_any_key(self) -> bool:
        """Whether a change may concern any key."""
        return not self.columns


def declared_dependencies(definition: ViewDefinition) -> dict[str, Dependency]:
    """The declared dependencies by table; call it only if `dependency_faults` finds none."""
    found = {}
    for to, on in (definition.options.depends_on or {}).items():
        model = _model(to)
        found[model._meta.db_table] = _declared(model, on)
    return found


def declared_tables(definition: ViewDefinition) -> set[str]:
    """The tables of the models that a view declares to depend on, as far as they exist."""
    tables = set()
    for to in definition.options.depends_on or {}:
        with suppress(LookupError, ValueError):
            tables.add(_model(to)._meta.db_table)
    return tables


def _declared(model: type[Model], on: DependsOn) -> Dependency:
    if on is None:
        return Dependency(model)
    if isinstance(on, tuple):
        return Dependency(model, tuple(_field(model, name).column or "" for name in on))
    return Dependency(model, tuple(field.column or "" for field in model._meta.pk_fields), on)


def _model(to: type[Model] | str) -> type[Model]:
    return apps.get_model(to) if isinstance(to, str) else to


def _field(model: type[Model], name: str) -> AnyField:
    field: Any = model._meta.pk if name == "pk" else model._meta.get_field(name)
    if field not in model._meta.local_concrete_fields:
        raise FieldDoesNotExist(f"its table has no column {name!r}")
    return field  # type: ignore[no-any-return]


def dependency_faults(definition: ViewDefinition, key: int) -> Iterator[str]:
    """What is wrong with the declared dependencies, a sentence each; `key` is the key's length."""
    for to, on in (definition.options.depends_on or {}).items():
        name = to if isinstance(to, str) else to._meta.label
        try:
            model = _model(to)
            wrong = isinstance(on, tuple) and len(on) != key
            for field in on if isinstance(on, tuple) else ():
                _field(model, field)
        except (LookupError, ValueError):
            yield f"there is no model {name}"
        except FieldDoesNotExist as error:
            yield f"{name}: {error}"
        else:
            if model is definition.model:
                yield f"{name}: a view cannot depend on itself"
            if wrong:
                count = len(on or ())  # type: ignore[arg-type]
                yield f"{name}: {count} fields cannot be the key, which has {key}"
