"""What a view says itself of the tables that its `source()` reads: `MatviewMeta.depends_on`."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.exceptions import EmptyResultSet, FieldDoesNotExist
from django.db import connections
from django.db.models import Model, QuerySet

from ..databases import dialect_of
from ..databases.fields import AnyField
from ..databases.keys import Key, Keys
from ..databases.sql import SQL
from ..definition import DependsOn, ViewDefinition
from ..exceptions import InvalidView
from ..project_locale import project_locale
from .columns import as_exact, exact_values, same_type
from .conditions import Inside
from .given import as_key

if TYPE_CHECKING:
    from .source import Source

__all__ = ["Declared", "declared", "declared_keys", "undeclarable"]


@dataclass(frozen=True, slots=True)
class Declared:
    """What the changes of a model's rows lead to.

    Attributes:
        model: the model.
        columns: those that are logged: they are the key, or, with `find`, identify the rows.
        find: what gives the keys of rows, from a queryset of them.
    """

    model: type[Model]
    columns: tuple[str, ...] = ()
    find: Callable[..., Iterable[Any]] | None = None

    @property
    def whole(self) -> bool:
        """Whether its changes may concern any key."""
        return not self.columns


def declared(definition: ViewDefinition) -> dict[str, Declared]:
    """What a view says, by table; to be asked only where `undeclarable` finds nothing."""
    found = {}
    for to, on in (definition.options.depends_on or {}).items():
        model = _model(to)
        found[model._meta.db_table] = _declared(model, on)
    return found


def _declared(model: type[Model], on: DependsOn) -> Declared:
    if on is None:
        return Declared(model)
    if isinstance(on, tuple):
        return Declared(model, tuple(_field(model, name).column or "" for name in on))
    return Declared(model, tuple(field.column or "" for field in model._meta.pk_fields), on)


def _model(to: type[Model] | str) -> type[Model]:
    return apps.get_model(to) if isinstance(to, str) else to


def _field(model: type[Model], name: str) -> AnyField:
    field: Any = model._meta.pk if name == "pk" else model._meta.get_field(name)
    if field not in model._meta.local_concrete_fields:
        raise FieldDoesNotExist(f"its table has no column {name!r}")
    return field  # type: ignore[no-any-return]


def declared_keys(
    said: Declared, values: Collection[Sequence[Any]], source: "Source", most: int
) -> set[Key] | None:
    """The keys that changed rows lead to, at most `most`; None for any, as where a row is gone.

    Args:
        said: what the view says of their model.
        values: values of its columns, as JSON has them, before and after the changes.
        source: the view's.
        most: how many keys to return at most.

    Raises:
        InvalidView: what the view gives as keys are none.
    """
    using, fields = source.query.using, [column.field for column in source.key]
    known = {tuple(each) for each in values if None not in each}
    if said.find is None:
        return as_exact(islice(known, most), fields, dialect_of(using))
    names = [field.attname for field in said.model._meta.pk_fields]
    among = Inside(*names, dialect=dialect_of(using), within=Keys(tuple(known)))
    rows = said.model._base_manager.using(using).filter(among)
    if rows.count() < len(known):
        return None
    try:
        with project_locale():
            found = said.find(rows)
            stored = _as_stored(found, fields, using)
            if stored is not None:
                return _fetched(stored, fields, using, most)
            return {as_key(fields, each, using) for each in islice(found, most)}
    except ValueError as error:
        raise InvalidView(
            f"{source.definition.label}: MatviewMeta.depends_on of {said.model._meta.label} gave "
            f"a key that is none: {error}"
        ) from error


def _as_stored(found: Any, fields: Sequence[AnyField], using: str) -> SQL | None:
    """The query for keys, if they are columns like those of the key: then no field need read and write them."""
    if not isinstance(found, QuerySet) or found.db != using:
        return None
    if found.query.is_sliced or found.query.combinator:
        return None
    compiler: Any = found.order_by().query.get_compiler(using)
    try:
        query = SQL(*compiler.as_sql())
    except EmptyResultSet:
        return None
    targets = [getattr(expression, "target", None) for expression, _sql, _alias in compiler.select]
    alike = len(targets) == len(fields) and all(
        target is not None and same_type(target, field, using)
        for target, field in zip(targets, fields, strict=True)
    )
    return query if alike else None


def _fetched(query: SQL, fields: Sequence[AnyField], using: str, most: int) -> set[Key]:
    dialect = dialect_of(using)
    exact = ", ".join(exact_values(fields, "matviews_found", dialect))
    with connections[using].cursor() as cursor:
        cursor.execute(
            f"WITH matviews_found ({', '.join(dialect.names(fields))}) AS ({query.text}) "
            f"SELECT DISTINCT {exact} FROM matviews_found LIMIT %s",
            (*query.params, most),
        )
        return {row for row in cursor.fetchall() if None not in row}


def undeclarable(definition: ViewDefinition, key: int) -> Iterator[str]:
    """What is wrong with what a view says, a sentence each; `key` is the number of its key's fields."""
    for to, on in (definition.options.depends_on or {}).items():
        name = to if isinstance(to, str) else to._meta.label
        try:
            model = _model(to)
            wrong = isinstance(on, tuple) and len(on) != key
            for each in on if isinstance(on, tuple) else ():
                _field(model, each)
        except (LookupError, ValueError):
            yield f"there is no model {name}"
        except FieldDoesNotExist as error:
            yield f"{name}: {error}"
        else:
            if model is definition.model:
                yield f"{name}: a view does not depend on itself"
            if wrong:
                yield f"{name}: {len(on or ())} fields cannot be the key, which has {key}"  # type: ignore[arg-type]
