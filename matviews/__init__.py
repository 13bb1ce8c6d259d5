"""Materialized views for Django: ordinary tables, kept up to date in small batches by Celery."""

import logging

from .api import is_fresh, refresh
from .mixin import Batch, MaterializedView, Share
from .phases import Phase
from .registry import registry

__all__ = ["Batch", "MaterializedView", "Phase", "Share", "is_fresh", "refresh", "registry"]

# Silent unless the project configures logging, as is the custom of libraries.
logging.getLogger(__name__).addHandler(logging.NullHandler())
