"""Addresses of admin pages that other pages link to."""

from typing import Any

from django.http import HttpRequest
from django.urls import reverse

__all__ = ["page_of", "rows_url"]


def page_of(pk: int, site: str) -> str:
    """The address of a view's page."""
    return reverse("admin:matviews_viewcontrol_change", args=[pk], current_app=site)


def rows_url(control: Any, site: Any, request: HttpRequest) -> str:
    """The list of the view's rows, if the admin has it and the user may see it; else ""."""
    model = control.definition.model if control.definition else None
    if model is None or not site.is_registered(model):
        return ""
    if not site.get_model_admin(model).has_view_permission(request):
        return ""
    name = f"{model._meta.app_label}_{model._meta.model_name}"
    return reverse(f"admin:{name}_changelist", current_app=site.name)
