"""What a batch that was rolled back means for its run: another try, a smaller one, or its end."""

from django.db import DataError

from ...databases import Failure, errors_of
from ..tracking.dirty_keys import give_up_keys, require_full_refresh
from ..transactions import alias, statement_timeout
from ..work.costs import record_full_timeout
from ..work.shard_work import Work
from .error_texts import stored_texts
from .step import MAX_FAILURES, Step

__all__ = ["fail"]


def fail(step: Step, error: Exception, failed: Work | None) -> Exception:
    """Record in a run that its batch was rolled back; return the error, explained.

    Args:
        step: of the run, loaded after the rollback.
        error: the error.
        failed: the work that was rolled back; None if it was not loaded.
    """
    errors, error = errors_of(alias()), step.explained(error)
    attempted = failed.attempted if failed else None
    failure, full = errors.failure(error), False
    keys = attempted.dirty_keys if attempted else 0
    if isinstance(error, DataError):
        # Logged values do not fit a column whose type has changed, for example.
        reason = "the database could not read a dirty key, or compute its row"
        require_full_refresh(step.work, step.run, reason)
    elif attempted and keys and errors.is_statement_timeout(error):
        last = step.run.failures >= MAX_FAILURES
        full = give_up_keys(step.work, step.run, attempted, is_last=last)
    elif step.is_full and errors.is_statement_timeout(error):
        record_full_timeout(step.work, step.run, statement_timeout(step.definition))
        # The same statement would take as long again.
        if failed and failed.staging:
            failure = Failure.FINAL
    step.failed(
        *stored_texts(error, step.work, attempted),
        retry=failure is not Failure.FINAL,
        smaller=failure is Failure.RETRY_SMALLER and not full,
        external_cause=errors.is_external(error),
        size=keys or None,
        too_many=any(work and work.too_many_failed for work in (failed, step.work)),
    )
    return error
