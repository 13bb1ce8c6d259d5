"""OpenTelemetry spans of batches and refreshes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks.statements import statements
from matviews import engine
from matviews.engine import Message
from matviews.engine.batches import spans
from matviews.phases import Phase
from tests import ROOT
from tests.helpers.ledger import add_items
from tests.helpers.source_views import LABEL, sourced
from tests.helpers.view_classes import INSERT_ONLY, make_view, ready, run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    made, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield made
    provider.shutdown()


@pytest.fixture
def view() -> type[Any]:
    add_items(3)
    return sourced(options={"tracking": False})


def failing() -> type[Any]:
    def fail(cls: type) -> int:
        raise ValueError("no")

    return ready(
        make_view(
            "Failing",
            options=INSERT_ONLY,
            needs_insert=classmethod(lambda cls: True),
            do_insert=classmethod(fail),
        )
    )


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [each for each in exporter.get_finished_spans() if each.name == name]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return {
        name.removeprefix("matviews."): value for name, value in (span.attributes or {}).items()
    }


def test_a_batch_says_what_it_did(view: type[Any], exporter: InMemorySpanExporter) -> None:
    run(view, phases=["insert"])
    [batch] = named(exporter, "matviews.batch")
    found = attributes(batch)
    assert found.pop("shard")
    assert found == {"view": LABEL, "phase": "insert", "rows": 3, "outcome": "done"}
    assert batch.status.is_ok


def test_its_parent_is_what_called_it(view: type[Any], exporter: InMemorySpanExporter) -> None:
    with trace.get_tracer("task").start_as_current_span("task") as task:
        run(view, phases=["insert"])
        assert trace.get_current_span() is task
    [batch], [refresh] = named(exporter, "matviews.batch"), named(exporter, "matviews.refresh")
    assert batch.parent == task.get_span_context()
    assert refresh.parent is None
    assert [each.context for each in refresh.links] == [task.get_span_context()]


def test_a_refresh_lasts_from_its_request_to_its_end(
    view: type[Any], exporter: InMemorySpanExporter
) -> None:
    refresh = run(view)
    [span] = named(exporter, "matviews.refresh")
    assert attributes(span) == {
        "view": LABEL, "origin": "api", "state": "succeeded", "refresh": refresh.pk,
    }  # fmt: skip
    assert refresh.finished_at is not None
    assert span.start_time == int(refresh.requested_at.timestamp() * 1e6) * 1000
    assert span.end_time == int(refresh.finished_at.timestamp() * 1e6) * 1000
    assert span.status.is_ok


def test_failures_are_errors(exporter: InMemorySpanExporter) -> None:
    run(failing())
    [batch], [refresh] = named(exporter, "matviews.batch"), named(exporter, "matviews.refresh")
    assert attributes(batch)["outcome"] == "failed"
    assert batch.status.status_code is trace.StatusCode.ERROR
    assert batch.status.description == "ValueError: no"
    assert refresh.status.status_code is trace.StatusCode.ERROR
    assert attributes(refresh)["state"] == "failed"


def test_a_message_that_is_refused_says_so(exporter: InMemorySpanExporter) -> None:
    engine.run_batch(Message(Phase.INSERT, 0, 7))
    [batch] = named(exporter, "matviews.batch")
    assert attributes(batch)["outcome"] == "unknown"


def test_an_exporter_that_fails_breaks_nothing(
    view: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: Any, **_options: Any) -> Any:
        raise RuntimeError("no exporter")

    monkeypatch.setattr(trace, "get_tracer", broken)
    assert run(view).state == "succeeded"


def test_spans_add_no_statement(view: type[Any], exporter: InMemorySpanExporter) -> None:
    run(view)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "trace", None)
        with statements() as without:
            run(view)
    with statements() as found:
        run(view)
    assert len(found) == len(without)


def test_without_the_package_nothing_is_connected() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import django; django.setup()\n"
        "from matviews import signals\n"
        "from matviews.engine.batches import spans\n"
        "assert spans.trace is None\n"
        "assert not [each for each in signals.refresh_finished.receivers"
        " if each[0][0] == spans.__name__]\n"
        "print('fine')"
    )
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "fine", done.stderr
