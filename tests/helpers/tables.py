"""Models with tables that a test makes for itself, and that are gone when it ends."""

# ruff: noqa: N806 - variables that are models

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.db import connection, models
from django.db.models import F, QuerySet

from matviews import MaterializedView, changes, engine
from matviews.models import Refresh
from matviews.registry import registry
from matviews.states import RefreshState
from tests.helpers import view_classes

__all__ = [
    "Source",
    "alone",
    "defined",
    "derived_view",
    "execute",
    "key",
    "made",
    "model",
    "refreshed",
    "tracked_view_of",
    "unique",
]

Source = Callable[[type[Any]], QuerySet[Any, Any]]

MODULE = "tests.shapes.models"


def model(
    name: str,
    *,
    bases: tuple[type, ...] = (models.Model,),
    meta: dict[str, Any] | None = None,
    **members: Any,
) -> type[Any]:
    """A model of the project. Within `alone`."""
    Meta = type("Meta", (), {"app_label": "shapes", **(meta or {})})
    return type(name, bases, {"__module__": MODULE, "Meta": Meta, **members})


def derived_view(
    source: Source,
    *,
    name: str = "Made",
    key: list[str] | None = None,
    options: dict[str, Any] | None = None,
    bases: tuple[type, ...] = (models.Model,),
    meta: dict[str, Any] | None = None,
    **members: Any,
) -> type[Any]:
    """A view with `source()`. Within `alone`.

    Args:
        source: what `source()` returns.
        name: of the class.
        key: `MatviewMeta.key`.
        options: more of `MatviewMeta`.
        bases: of the class, after the mixin.
        meta: more of `Meta`.
        members: fields and whatever else the class has.
    """
    of_key = {"key": key} if key else {}
    MatviewMeta = type("MatviewMeta", (), {**of_key, **(options or {})})
    return model(
        name,
        bases=(MaterializedView, *bases),
        meta=meta,
        MatviewMeta=MatviewMeta,
        source=classmethod(source),
        **members,
    )


def key(**options: Any) -> Any:
    """A field that is a key."""
    return models.BigIntegerField(unique=True, **options)


def unique(*fields: str, **options: Any) -> dict[str, Any]:
    """A `Meta` with a unique constraint."""
    return {
        "constraints": [
            models.UniqueConstraint(fields=fields, name=f"made_{'_'.join(fields)}", **options)
        ]
    }


@contextmanager
def alone() -> Iterator[None]:
    """What is defined within is the project's until the end, and the only views are among it."""
    with view_classes.own_models():
        for definition in registry:
            registry.unregister(definition.label)
        yield


@contextmanager
def made(*wanted: type[Any]) -> Iterator[None]:
    """The tables of the models are there until the end, and the controls of views."""
    with ExitStack() as stack:
        for each in wanted:
            with connection.schema_editor() as editor:
                editor.create_model(each)
            stack.callback(_drop, each)
        engine.sync_controls()
        yield


def _drop(each: type[Any]) -> None:
    with connection.schema_editor() as editor:
        editor.delete_model(each)


def refreshed(view: type[Any], **request: Any) -> dict[str, int]:
    """Refresh a view; the rows that each phase has written."""
    refresh: Refresh = view_classes.run(view, **request)
    assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    return {run.phase: run.rows for run in refresh.runs.all()}


def execute(*statements: str) -> None:
    """Run SQL that has no parameters."""
    with connection.cursor() as cursor:
        for each in statements:
            cursor.execute(each)


@contextmanager
def defined(*statements: str, undone: str | tuple[str, ...]) -> Iterator[None]:
    """What the statements define is there until the end."""
    execute(*statements)
    try:
        yield
    finally:
        execute(*((undone,) if isinstance(undone, str) else undone))


@contextmanager
def tracked_view_of(table: str) -> Iterator[type[Any]]:
    """A view of a table with the columns `id` and `n`, with whatever triggers that can have."""
    rows = model(
        "Rows", n=models.IntegerField(null=True), meta={"db_table": table, "managed": False}
    )
    view = derived_view(
        lambda cls: rows.objects.values("n", ref=F("pk")),
        ref=key(),
        n=models.IntegerField(null=True),
    )
    with made(view):
        changes.install(engine.alias())
        try:
            yield view
        finally:
            changes.remove(engine.alias())
