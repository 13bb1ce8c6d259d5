"""The texts of an error as the bookkeeping stores them."""

from collections.abc import Iterable
from typing import Any

from ...databases import errors_of
from ...definition import ViewDefinition
from ...queryset import key_columns
from ...redact import bounded, error_text, loggable, traceback_text
from ..rights import denied_for
from ..transactions import alias, statement_timeout
from ..work.batch_parts import AttemptedBatch
from ..work.shard_work import Work
from .hooks import raised_by_hook

__all__ = ["UNSPLIT", "loggable_error", "stored_texts", "unmoved_text"]

UNSPLIT = (
    "The keys of the view must be split among its shards again, but another process has locked one "
    "of the shards. The batch will be retried."
)


def stored_texts(
    error: Exception, work: Work | None, attempted: AttemptedBatch | None = None
) -> tuple[str, str]:
    """The text and the traceback of an error, as they are stored.

    Args:
        error: the error.
        work: the work of the shard, loaded after the error.
        attempted: the batch that failed, if it is known.
    """
    definition, allowed = work.definition if work else None, _allowed(error, work)
    text = error_text(error, **allowed)
    if definition and (missing := denied_for(error, [definition])):
        text = bounded(f"{text}\n{missing}")
    if definition and work and errors_of(alias()).is_statement_timeout(error):
        text = bounded(f"{text}\n{_limit(definition, work, attempted)}")
    return text, traceback_text(error, **allowed)


def unmoved_text(tables: Iterable[str]) -> str:
    """Why a batch waits: changes of some tables must be in the queue before it may begin."""
    return (
        f"Changes of {', '.join(tables)} have not been moved to the queue yet: another process "
        f"has locked them. The batch will be retried."
    )


def _limit(definition: ViewDefinition, work: Work, attempted: AttemptedBatch | None) -> str:
    """How long a statement may take, what a full refresh should take, and what allows more."""
    if attempted and attempted.dirty_keys and attempted.seconds < statement_timeout(definition):
        return (
            f"This batch of {attempted.dirty_keys:,} dirty keys was limited to "
            f"{attempted.seconds:.2g} s, a little more than a full refresh takes."
        )
    allowed = statement_timeout(definition)
    full = sum(cost.full or 0.0 for cost in work.shard.costs.values())
    longer = f", and a full refresh should take {full:.2g} s or more" if full > allowed else ""
    return (
        f"Statements of {definition.label} are limited to {allowed:g} s{longer}; raise "
        f"MatviewMeta.statement_timeout or MATVIEWS['STATEMENT_TIMEOUT'] to allow more."
    )


def loggable_error(error: Exception, work: Work | None) -> BaseException:
    """The error as it may be logged."""
    return loggable(error, **_allowed(error, work))


def _allowed(error: Exception, work: Work | None) -> dict[str, Any]:
    """What texts about an error may contain, as the arguments of `error_text`."""
    key = key_columns(work.definition) if work and work.definition else frozenset[str]()
    return {"trusted": raised_by_hook(error), "key": key}
