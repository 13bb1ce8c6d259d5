"""The registry of views, from label to definition. Defining a model registers it."""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from django.apps import apps
from django.db.models import Model
from django.db.models.signals import class_prepared

from .contract import ViewMarker
from .definition import ViewDefinition, define, unreadable
from .exceptions import InvalidView, UnknownView
from .redact import brief

__all__ = ["Registry", "registry"]


MAX_LABEL_LENGTH = 255  # characters


class Registry:
    """The views that the code defines, by label, in order of definition."""

    def __init__(self) -> None:
        self._views: dict[str, ViewDefinition] = {}

    def __iter__(self) -> Iterator[ViewDefinition]:
        return iter(list(self._views.values()))

    def __contains__(self, label: object) -> bool:
        return label in self._views

    def register(self, model: type[Model]) -> ViewDefinition:
        """Add a view. Models are added when they are defined; tests may add others.

        A class that is defined again under the same label, as on a reload, replaces the earlier
        one.

        Raises:
            InvalidView: the class is abstract or not a model with the mixin.
        """
        if not (issubclass(model, Model) and issubclass(model, ViewMarker)):
            raise InvalidView(f"{brief(model)} is not a model that mixes in MaterializedView.")
        if model._meta.abstract:
            raise InvalidView(f"{model._meta.label} is abstract: only concrete models are views.")
        try:
            definition = define(model)
        # Inspecting a class may raise anything, and must not break its import.
        except Exception as error:  # noqa: BLE001
            definition = unreadable(model, error)
        self._views[model._meta.label] = definition
        return definition

    def unregister(self, label: str) -> None:
        """Remove a view.

        Raises:
            UnknownView: no view has this label.
        """
        del self._views[self.find(label).label]

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Restore the registry at the end of the context, for tests."""
        views = dict(self._views)
        try:
            yield
        finally:
            self._views = views

    def find(self, view: str | type) -> ViewDefinition:
        """The definition of a view, by class, label, or model name if that is unique.

        Raises:
            UnknownView: there is none, or more than one. The error names similar labels.
        """
        if isinstance(view, type):
            return self._find_class(view)
        if isinstance(view, str) and view in self._views:
            return self._views[view]
        lowered = view[:MAX_LABEL_LENGTH].lower() if isinstance(view, str) else ""
        matches = [
            label
            for label in self._views
            if lowered in (label.lower(), label.rpartition(".")[2].lower())
        ]
        if len(matches) == 1:
            return self._views[matches[0]]
        if matches:
            raise UnknownView(
                f"{brief(view)} is the name of more than one view: use one of {', '.join(matches)}."
            )
        if isinstance(view, str) and (model := _model_named(lowered)):
            raise UnknownView(f"{model._meta.label} is a model, but not a view. {self._listed()}")
        near = self._near(lowered)
        raise UnknownView(f"There is no view {brief(view)}. {near}")

    def usable(self, view: str | type) -> ViewDefinition:
        """The definition of a view, if it can be refreshed.

        Raises:
            UnknownView: as in `find`.
            InvalidView: the definition has errors.
        """
        definition = self.find(view)
        if definition.errors:
            faults = " ".join(str(error.msg) for error in definition.errors)
            raise InvalidView(f"{faults} (See `manage.py check`.)")
        return definition

    def _find_class(self, model: type) -> ViewDefinition:
        meta = getattr(model, "_meta", None)
        if meta is not None and meta.label in self._views:
            return self._views[meta.label]
        concrete = getattr(meta, "concrete_model", None)
        if concrete is not None and concrete is not model and concrete._meta.label in self._views:
            raise UnknownView(
                f"{model.__name__} is a proxy of the view {concrete._meta.label}: refresh that "
                f"view instead."
            )
        raise UnknownView(f"{model.__name__} is not a view.")

    def _near(self, lowered: str) -> str:
        by_name = {label.lower(): label for label in self._views}
        by_name |= {label.rpartition(".")[2].lower(): label for label in self._views}
        near = dict.fromkeys(by_name[name] for name in get_close_matches(lowered, by_name))
        if near:
            return f"Did you mean {' or '.join(near)}?"
        return self._listed()

    def _listed(self) -> str:
        return f"The views are {', '.join(self._views)}." if self._views else "No view is defined."


registry = Registry()


def _model_named(lowered: str) -> type[Model] | None:
    """The only model with a name or label, ignoring case; None if there are none or several."""
    found = [
        model
        for model in apps.get_models()
        if lowered in (model._meta.label_lower, model._meta.model_name)
    ]
    return found[0] if len(found) == 1 else None


def _register_prepared(sender: type[Model], **_kwargs: Any) -> None:
    """Register the project's concrete views. Models of migrations are not views."""
    if not issubclass(sender, ViewMarker) or sender._meta.apps is not apps:
        return
    concrete = sender._meta.concrete_model
    if sender._meta.swapped or (sender._meta.proxy and issubclass(concrete or sender, ViewMarker)):
        return
    registry.register(sender)


class_prepared.connect(_register_prepared, dispatch_uid="matviews.registry")
