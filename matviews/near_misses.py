"""Probable typos: names in a view that are nearly right, classes that are nearly views."""

import inspect
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from django.db.models import Field, Model

from .contract import ViewMarker
from .phases import Phase

__all__ = ["SOURCE", "half_views", "like_hook", "like_source", "unread_classes"]

SOURCE = "source"
ALSO_SOURCE = {"queryset", "get_queryset", "query", "get_query"}
HOOKS = [name for phase in Phase for name in (phase.needs_hook, phase.do_hook)]
NEAR, VERY_NEAR = 0.75, 0.9  # cutoffs of difflib
HELPERS = (
    "mixin",
    "base",
    "abstract",
)  # words in the names of classes that are meant to be inherited from


def like_source(model: type) -> str:
    """The method that was probably meant to be `source`; "" if none was."""
    names = [name for name in _methods(model) if name != SOURCE and name not in HOOKS]
    lowered = {name.lower().strip("_"): name for name in reversed(names)}
    with_it = [name for low, name in lowered.items() if SOURCE in low]
    near = [lowered[low] for low in get_close_matches(SOURCE, lowered, cutoff=NEAR)]
    others = [name for low, name in lowered.items() if low in ALSO_SOURCE]
    return next(iter([*with_it, *near, *others]), "")


def like_hook(model: type, hook: str, *, very: bool = False) -> str:
    """The method that was probably meant to be a missing hook; "" if none was.

    Args:
        model: the view.
        hook: the name of the hook.
        very: whether to accept only very similar names, because the hook is optional.
    """
    lowered = {name.lower(): name for name in _methods(model) if name not in HOOKS}
    cutoff = VERY_NEAR if very else NEAR
    near = get_close_matches(hook, lowered, n=1, cutoff=cutoff)
    # do_update and needs_update are similar, but cannot be meant for each other.
    return next((lowered[low] for low in near if low[:2] == hook[:2]), "")


def unread_classes(model: type, name: str) -> list[str]:
    """Inner classes whose names are nearly that of the one that is read."""
    members: dict[str, object] = {}
    for cls in _own(model):
        members |= vars(cls)
    classes = [key for key, value in members.items() if isinstance(value, type) and key != name]
    return [key for key in classes if get_close_matches(key, [name], cutoff=0.8)]


def half_views() -> Iterator[type]:
    """Classes that look like views but are not models, and that nothing inherits from.

    Classes without fields that are meant to be inherited from do not count.
    """
    for cls in _subclasses(ViewMarker):
        if cls.__subclasses__() or issubclass(cls, Model):
            continue
        members = vars(cls)
        fields = any(isinstance(value, Field) for value in members.values())
        works = SOURCE in members or not members.keys().isdisjoint(HOOKS)
        if fields or (works and not _is_helper(cls)):
            yield cls


def _is_helper(cls: type) -> bool:
    name = cls.__name__.lower()
    abstract = getattr(getattr(cls, "Meta", None), "abstract", False)
    named = name.startswith("_") or any(word in name for word in HELPERS)
    return named or abstract or inspect.isabstract(cls)


def _subclasses(cls: type) -> Iterator[type]:
    each: type
    for each in cls.__subclasses__():
        yield each
        yield from _subclasses(each)


def _own(model: type) -> Iterator[type]:
    """The base classes of a view, without Django's and ours."""
    for cls in model.__mro__:
        if cls not in (object, Model) and not _is_mixin(cls):
            yield cls


def _is_mixin(cls: type) -> bool:
    """Whether it is `ViewMarker` or `MaterializedView`, which inherits from it directly."""
    return cls is ViewMarker or ViewMarker in cls.__bases__


def _methods(model: type) -> list[str]:
    kinds: Any = (classmethod, staticmethod, property)
    return [
        name
        for cls in _own(model)
        for name, value in vars(cls).items()
        if not name.startswith("__") and (inspect.isfunction(value) or isinstance(value, kinds))
    ]
