"""OpenTelemetry spans of batches and refreshes, where opentelemetry-api is installed.

The span of a batch is around it, so that Celery's instrumentation is its parent. That of a refresh
is made when it has ended: many processes may have worked on it. It links to the span that was
current then. An exporter that fails breaks no refresh.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.utils import timezone

from ... import signals
from ...logs import log
from ...models import Refresh
from ...redact import error_text
from ...states import RefreshState
from ..messages import BatchReport, Message, Outcome
from . import batch

try:
    from opentelemetry import context, trace
except ImportError:  # it is optional
    context = trace = None  # type: ignore[assignment]

__all__ = ["connect", "run_batch"]

logger = logging.getLogger(__name__)
NAME = "matviews"


def run_batch(message: Message) -> BatchReport:
    """Run the batch that a message asks for, if it is still due and no other worker runs it.

    Errors of hooks, of the database and of the message are not raised: the report and the
    bookkeeping show them. Call `close_finished` afterwards.
    """
    return batch.run_batch(message) if trace is None else _run_in_span(message)


def _run_in_span(message: Message) -> BatchReport:
    span: Any = None
    token: Any = None
    with _contained():
        known: dict[str, Any] = {
            "matviews.phase": message.phase.value,
            "matviews.shard": message.shard_id,
        }
        span = trace.get_tracer(NAME).start_span("matviews.batch", attributes=known)
        token = context.attach(trace.set_span_in_context(span))
    try:
        report = batch.run_batch(message)
        with _contained():
            _describe(span, report)
        return report
    finally:
        with _contained():
            if token:
                context.detach(token)
            if span:
                span.end()


@contextmanager
def _contained() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever a span processor raises
        log(logger, logging.WARNING, "span not recorded", error=error_text(error, trusted=False))


def _describe(span: Any, report: BatchReport) -> None:
    if span is None:
        return
    span.set_attributes(
        {
            "matviews.view": report.label,
            "matviews.rows": report.rows,
            "matviews.outcome": report.outcome.name.lower(),
        }
    )
    if report.outcome in (Outcome.FAILED, Outcome.LOST):
        span.set_status(trace.StatusCode.ERROR, report.error)


def connect() -> None:
    """From now on, make a span of each refresh that ends."""
    if trace is not None:
        signals.refresh_finished.connect(_add_refresh, dispatch_uid=__name__)


def _add_refresh(*, sender: Any, refresh: Refresh, **_kwargs: Any) -> None:
    """Called by `send_robust`, which contains its errors."""
    # Its `view` may not be loaded, and this must not add a statement.
    label = sender._meta.label if sender else refresh.view.label
    current = trace.get_current_span().get_span_context()
    span = trace.get_tracer(NAME).start_span(
        "matviews.refresh",
        context=context.Context(),
        start_time=_nanoseconds(refresh.requested_at),
        links=[trace.Link(current)] if current.is_valid else [],
        attributes={
            "matviews.view": label,
            "matviews.origin": refresh.origin,
            "matviews.state": refresh.state,
            "matviews.refresh": refresh.pk,
        },
    )
    if refresh.state == RefreshState.FAILED:
        span.set_status(trace.StatusCode.ERROR, refresh.error)
    assert refresh.finished_at is not None
    span.end(_nanoseconds(refresh.finished_at))


def _nanoseconds(time: datetime) -> int:
    aware = timezone.make_aware(time) if timezone.is_naive(time) else time
    return int(aware.timestamp() * 1e6) * 1000
