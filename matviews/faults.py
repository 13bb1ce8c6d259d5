"""The problems that a view's class can have, as messages for Django's system checks."""

from django.core.checks import Warning
from django.db.models import Model

__all__ = ["ViewFault", "fault_in"]


class ViewFault(Warning):
    """A problem that keeps one view from being refreshed: W101 and up.

    Django sees a warning, because an error would stop `migrate` and `makemigrations` for the whole
    project. The view is refused even if the warning is silenced.
    """


def fault_in(model: type[Model], number: str, sentence: str, hint: str | None = None) -> ViewFault:
    """The fault `matviews.<number>` of a view.

    Args:
        model: the view.
        number: as in "W101".
        sentence: what is wrong, after the view's label: ": it ...", or ".hook is ...".
        hint: what to do about it.
    """
    return ViewFault(
        f"{model._meta.label}{sentence}", hint=hint, obj=model, id=f"matviews.{number}"
    )
