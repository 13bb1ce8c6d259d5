"""Why a view could not be verified or explained."""

from matviews import engine
from matviews.redact import error_words
from matviews.registry import registry

from .targets import Targets

__all__ = ["report_failure"]


def report_failure(label: str, error: Exception, targets: Targets) -> str:
    """Report why a view failed, with the missing right or migration if that is the cause.

    Returns:
        The same text, for JSON.
    """
    cause = error_words(engine.not_migrated(error, registry.find(label)))
    text = f"{cause} {engine.denied_for(error)}".strip()
    targets.fail(label, text)
    return text
