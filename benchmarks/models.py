from django.db import models

from .additive.models import *  # noqa: F403 - Django looks for the models of an app here
from .hooks import NoHooksMixin
from .querysets.models import *  # noqa: F403
from .strategy.models import *  # noqa: F403


class NoOp(NoHooksMixin, models.Model):
    """The view of the benchmark."""


class Hop(models.Model):
    """What the bare task writes: one row, counted up."""

    count = models.BigIntegerField(default=0)
