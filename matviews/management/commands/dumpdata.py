"""Django's `dumpdata`, without rows that are useless in another database."""

from typing import Any

from django.apps import apps
from django.core.management.commands import dumpdata

from ...models import Bookkeeping

__all__ = ["Command"]


class Command(dumpdata.Command):
    """Omits matviews' bookkeeping, including the secret of its log, unless a model is named."""

    def handle(self, *app_labels: str, **options: Any) -> None:
        """Add the bookkeeping to `--exclude`."""
        named = {label.lower() for label in app_labels}
        ours = (
            model._meta.label_lower
            for model in apps.get_app_config("matviews").get_models()
            if issubclass(model, Bookkeeping)
        )
        left_out = [label for label in ours if label not in named]
        super().handle(*app_labels, **{**options, "exclude": [*options["exclude"], *left_out]})
