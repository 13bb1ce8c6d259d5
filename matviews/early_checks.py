"""System checks that must run even if the app is not installed, or a class is not a view."""

from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from .near_misses import half_views
from .registry import registry

__all__ = ["check_half_views", "check_installed"]


@register(Tags.models)
def check_installed(**_kwargs: Any) -> list[CheckMessage]:
    """E023: views are defined, but the app is not installed."""
    labels = [definition.label for definition in registry]
    if not labels or apps.is_installed("matviews"):
        return []
    return [
        Error(
            f"matviews is not in INSTALLED_APPS, so nothing refreshes {', '.join(labels)}.",
            hint="Add 'django_celery_beat' and 'matviews' to INSTALLED_APPS, and run "
            "manage.py migrate.",
            id="matviews.E023",
        )
    ]


@register(Tags.models)
def check_half_views(**_kwargs: Any) -> list[CheckMessage]:
    """W029: a class with the mixin has fields, `source()` or hooks, but is not a model."""
    return [
        Warning(
            f"{cls.__module__}.{cls.__qualname__} is not a model, so it is not a view.",
            hint=f"Write class {cls.__name__}(MaterializedView, models.Model). If it is meant to "
            f"be inherited from, give it no fields, and a name with Mixin in it.",
            id="matviews.W029",
        )
        for cls in half_views()
    ]
