"""What the admins of records share."""

from typing import Any

from django.contrib import admin

__all__ = ["RecordAdmin"]


class RecordAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """For rows that record what happened: maintenance deletes old ones, and nobody changes any."""

    def has_add_permission(self, *_args: Any) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, *_args: Any, **_kwargs: Any) -> bool:
        """Nobody."""
        return False

    def has_delete_permission(self, *_args: Any, **_kwargs: Any) -> bool:
        """Nobody."""
        return False
