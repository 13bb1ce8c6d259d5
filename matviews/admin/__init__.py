"""The pages in Django's admin, found by its autodiscovery where the project has it."""

from .alarm_admin import AlarmAdmin
from .refresh_admin import RefreshAdmin
from .view_admin import ViewControlAdmin

__all__ = ["AlarmAdmin", "RefreshAdmin", "ViewControlAdmin"]
