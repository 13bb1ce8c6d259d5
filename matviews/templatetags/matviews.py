"""`{% load matviews %}`: how recent the rows of a view are."""

from django import template

from .. import api
from ..engine import DataStatus

__all__ = ["view_status"]

register = template.Library()


@register.simple_tag
def view_status(view: str) -> DataStatus:
    """What `View.status()` returns: `{% view_status "app.View" as status %}`.

    Args:
        view: the view's label.
    """
    return api.status(view)
