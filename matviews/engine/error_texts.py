"""The texts of an error as the bookkeeping stores them."""

from typing import Any

from ..databases import errors_of
from ..definition import ViewDefinition
from ..queryset import key_columns
from ..redact import bounded, error_text, traceback_text
from .hooks import raised_by_hook
from .rights import denied_for
from .transactions import alias, statement_timeout
from .work import Work

__all__ = ["allowed_in_texts", "stored_texts"]


def stored_texts(error: Exception, work: Work | None) -> tuple[str, str]:
    """The text and the traceback of an error, as they are stored."""
    definition, allowed = work.definition if work else None, allowed_in_texts(error, work)
    text = error_text(error, **allowed)
    if definition and (missing := denied_for(error, [definition])):
        text = bounded(f"{text}\n{missing}")
    if definition and errors_of(alias()).is_statement_timeout(error):
        text = bounded(f"{text}\n{_limit(definition)}")
    return text, traceback_text(error, **allowed)


def _limit(definition: ViewDefinition) -> str:
    """How long a statement may take, and what allows it more."""
    return (
        f"Statements of {definition.label} are limited to {statement_timeout(definition):g} s; "
        f"raise MatviewMeta.statement_timeout or MATVIEWS['STATEMENT_TIMEOUT'] to allow more."
    )


def allowed_in_texts(error: Exception, work: Work | None) -> dict[str, Any]:
    """What texts about an error may contain, as the arguments of `error_text`."""
    key = key_columns(work.definition) if work and work.definition else frozenset[str]()
    return {"trusted": raised_by_hook(error), "key": key}
