"""Views that a test defines for itself: without a table, and forgotten when the test ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.apps import apps
from django.apps.registry import Apps
from django.db import models

from matviews import MaterializedView, engine
from matviews.definition import ViewDefinition, define
from matviews.models import PhaseRun, Refresh
from matviews.phases import Phase
from matviews.registry import registry
from matviews.tasks import inline

INSERT_ONLY = {"phases": ["insert"]}


def nothing_needed(cls: type) -> bool:
    return False


def nothing_done(cls: type) -> int:
    return 0


def six_hooks(**others: Any) -> dict[str, Any]:
    """The hooks of a view that never has work, and others in their place."""
    hooks: dict[str, Any] = {}
    for phase in Phase:
        hooks[phase.needs_hook] = classmethod(nothing_needed)
        hooks[phase.do_hook] = classmethod(nothing_done)
    return {**hooks, **others}


def make_view(
    name: str = "Made",
    *,
    bases: tuple[type, ...] = (MaterializedView, models.Model),
    options: dict[str, Any] | None = None,
    meta: dict[str, Any] | None = None,
    **members: Any,
) -> type[Any]:
    """A model outside the project's own models, so that nothing registers it.

    Args:
        name: of the class.
        bases: of the class.
        options: its `MatviewMeta`, none where this is None.
        meta: more of its `Meta`.
        members: hooks and whatever else the class has.
    """
    Meta = type("Meta", (), {"app_label": "sample", "apps": Apps(), **(meta or {})})  # noqa: N806
    if options is not None:
        members["MatviewMeta"] = type("MatviewMeta", (), options)
    return type(name, bases, {"__module__": "tests.sample.models", "Meta": Meta, **members})


def defined(**members: Any) -> ViewDefinition:
    """What a view that `make_view` makes says about itself."""
    return define(make_view(**members))


def ready(model: type[Any]) -> type[Any]:
    """Register a view and make its rows, as `migrate` does. Within `registry.preserved`."""
    registry.register(model)
    engine.sync_controls()
    return model


def run(view: type[Any] | str, **request: Any) -> Refresh:
    """A refresh of a view, from its request to its end, whether or not it failed before."""
    return inline.run_to_end(engine.request(view, **{"force": True, **request}))


def only_run(refresh: Refresh) -> PhaseRun:
    return refresh.runs.get()


@contextmanager
def own_models() -> Iterator[None]:
    """What is defined within is the project's, and is registered, until the end."""
    before = {label: dict(found) for label, found in apps.all_models.items()}
    with registry.preserved():
        try:
            yield
        finally:
            for label, found in apps.all_models.items():
                for name in set(found) - set(before.get(label, {})):
                    del found[name]
            apps.clear_cache()
