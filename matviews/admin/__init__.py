"""The pages in Django's admin, found by its autodiscovery where the project has it."""

from .refresh_admin import RefreshAdmin
from .view_admin import ViewControlAdmin

__all__ = ["RefreshAdmin", "ViewControlAdmin"]
