"""Log lines: one line each with quoted values, the same keys as attributes, a grouping."""

import ast
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import sentry_sdk
from django.db import DataError
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st
from sentry_sdk.client import Client
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.logging import EventHandler
from sentry_sdk.transport import Transport

from matviews import engine
from matviews.logs import log
from matviews.models import Alarm, AlarmEvent
from matviews.phases import Phase
from matviews.redact import cause, loggable
from matviews.tasks.delivery import deliver
from tests import ROOT
from tests.helpers.engine import items
from tests.helpers.ledger import fault
from tests.helpers.view_classes import run
from tests.sample.models import Ledger, Limited

# What is logged as **fields.
OTHERS = ("rows_compared", "missing", "differing", "surplus", "repaired", "pending", "sums")
LOGGER = logging.getLogger("matviews.tests")
STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}


class AsJson(logging.Formatter):
    """A formatter as projects have them: one JSON object per record, with its extra attributes."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in vars(record).items() if name not in STANDARD}
        return json.dumps({"message": record.getMessage(), "level": record.levelname, **extra})


class Kept(logging.Handler):
    """Keeps what it is given, formatted."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(AsJson())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


def logged(level: int, event: str, **fields: Any) -> dict[str, Any]:
    handler = Kept()
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    try:
        log(LOGGER, level, event, **fields)
    finally:
        LOGGER.removeHandler(handler)
    (line,) = handler.lines
    return line


@given(st.text())
def test_a_line_is_one_line_and_its_value_can_be_read_back(text: str) -> None:
    message = logged(logging.INFO, "it happened", error=text, rows=3)["message"]

    assert len(message.splitlines()) == 1
    value = message.removeprefix("it happened error=").removesuffix(" rows=3")
    read = json.loads(value) if value.startswith('"') else value
    assert (
        read.split() == text.encode(errors="backslashreplace").decode().replace("\0", "\\0").split()
        or len(text) > 1_000
    )


def test_fields_are_attributes_that_json_can_hold() -> None:
    line = logged(logging.INFO, "done", phase=Phase.INSERT, rows=3, limit=None, error=ValueError(7))

    assert line["message"] == "done phase=insert rows=3 limit=None error=7"
    assert (line["phase"], line["rows"], line["limit"], line["error"]) == ("insert", 3, None, "7")
    assert "grouping" not in line


def test_every_key_is_documented() -> None:
    modules = [*(ROOT / "matviews").rglob("*.py"), *(ROOT / "tasks").glob("*.py")]
    calls = [
        node
        for module in modules
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "log"
    ]
    used = {keyword.arg for call in calls for keyword in call.keywords if keyword.arg}
    page = (ROOT / "docs/production.md").read_text()
    table = page[page.index("| key | value |") :].split("\n\n")[0]
    documented = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert used - {"exception"} <= documented
    assert documented <= used | {"grouping", *OTHERS}


@pytest.mark.parametrize("phases", ["", "insert: ", "insert, update, delete: "])
def test_the_grouping_has_the_class_whichever_phases_failed(phases: str) -> None:
    line = logged(logging.WARNING, "refresh finished", error=f"{phases}ValueError: at 17")

    assert line["grouping"] == ["refresh finished", "", "", "ValueError"]


def test_what_the_projects_record_factory_sets_stays() -> None:
    made = logging.getLogRecordFactory()

    def with_view(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = made(*args, **kwargs)
        record.view = "/of/the/request/"
        return record

    logging.setLogRecordFactory(with_view)
    try:
        line = logged(logging.INFO, "done", view="shop.Sales", rows=3)
    finally:
        logging.setLogRecordFactory(made)

    assert line["message"] == "done view=shop.Sales rows=3"
    assert (line["view"], line["rows"]) == ("/of/the/request/", 3)


@pytest.mark.django_db
def test_failures_have_their_exception_and_a_grouping_by_view_phase_and_class() -> None:
    engine.sync_controls()
    handler, logger = Kept(), logging.getLogger("matviews")
    logger.addHandler(handler)
    items(1)
    try:
        for view, action in ((Ledger, "raise"), (Ledger, "misspelt"), (Limited, "raise")):
            for _ in range(2):
                with fault(view, "do_insert", action):
                    run(view)
    finally:
        logger.removeHandler(handler)

    errors = [line for line in handler.lines if line["level"] == "ERROR"]
    assert [line["grouping"] for line in errors[::2]] == [
        ["phase failed", "sample.Ledger", "insert", "RuntimeError"],
        ["phase failed", "sample.Ledger", "insert", "ValueError"],
        ["phase failed", "sample.Limited", "insert", "RuntimeError"],
    ]
    assert [line["grouping"] for line in errors[1::2]] == [line["grouping"] for line in errors[::2]]


@pytest.fixture
def events() -> Iterator[list[dict[str, Any]]]:
    """What the real Sentry client sends, set up as the docs say."""
    found: list[dict[str, Any]] = []

    class Kept(Transport):
        def capture_envelope(self, envelope: Envelope) -> None:
            found.append(dict(envelope.get_event() or {}))

    text = Path("docs/production.md").read_text()
    names: dict[str, Any] = {}
    exec(
        dedent(text[text.index("    def before_send(") : text.index("    sentry_sdk.init(")]), names
    )
    client = Client(
        "https://key@sentry.example.org/1", transport=Kept, before_send=names["before_send"],
        release="1",  # otherwise it would ask git
        default_integrations=False, auto_enabling_integrations=False,
    )  # fmt: skip
    handler, logger = EventHandler(level=logging.ERROR), logging.getLogger("matviews")
    logger.addHandler(handler)
    try:
        with sentry_sdk.isolation_scope() as scope:
            scope.set_client(client)
            yield found
    finally:
        logger.removeHandler(handler)


@pytest.mark.django_db
def test_in_sentry_failures_of_different_causes_are_different_issues(
    events: list[dict[str, Any]],
) -> None:
    engine.sync_controls()
    items(1)
    for view, action in ((Ledger, "raise"), (Ledger, "misspelt"), (Limited, "raise")):
        for _ in range(2):
            with fault(view, "do_insert", action):
                run(view)
    alarms = [
        Alarm(
            view=view._meta.label, kind="failed", event=event, since=engine.now(),
            text="it fails", error="insert: ValueError: no",
        )
        for view in (Ledger, Limited)
        for event in (AlarmEvent.RAISED, AlarmEvent.REPEATED, AlarmEvent.ENDED)
    ]  # fmt: skip
    deliver(alarms)

    issues = Counter(tuple(each["fingerprint"]) for each in events)
    assert issues == {
        ("phase failed", "sample.Ledger", "insert", "RuntimeError"): 2,
        ("phase failed", "sample.Ledger", "insert", "ValueError"): 2,
        ("phase failed", "sample.Limited", "insert", "RuntimeError"): 2,
        ("alarm: failed", "sample.Ledger", "insert", "ValueError"): 2,
        ("alarm: failed", "sample.Limited", "insert", "ValueError"): 2,
    }
    values = {
        each["extra"]["view"]: [(error["type"], error["value"]) for error in errors]
        for each in events[-4:]
        for errors in [each["exception"]["values"]]
    }
    assert [name for name, _words in values["sample.Limited"]] == [
        "RecordedTraceback", "RuntimeError",
    ]  # fmt: skip
    assert "in do_insert" in values["sample.Limited"][0][1]
    assert "was told to fail" in values["sample.Limited"][1][1]


@pytest.mark.django_db
def test_the_exception_of_a_failure_is_attached(caplog: pytest.LogCaptureFixture) -> None:
    engine.sync_controls()
    items(1)
    with fault(Ledger, "do_insert", "raise"):
        run(Ledger)

    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.exc_info
    assert record.exc_info[0] is RuntimeError
    assert "was told to fail" in str(record.exc_info[1])
    assert "\n" not in record.getMessage()


def test_nothing_silences_a_process_without_a_logging_configuration() -> None:
    handlers = logging.getLogger("matviews").handlers

    assert not any(isinstance(each, logging.NullHandler) for each in handlers)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("RuntimeError: no: really", "RuntimeError"),
        ("The batch killed its worker 3 times, the last time with a batch size of 1,250: it ran",
         "The batch killed its worker N times, the last time with a batch size of N"),
        ("Not converging: x", "Not converging"),
        ("KeyError", "KeyError"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_kind_of_an_error_is_its_class(error: str, kind: str) -> None:
    assert cause(error) == kind


class TestLoggable:
    def raised(self) -> DataError:
        class DriverError(Exception):
            __module__ = "sqlite3"

        driver = DriverError("the value 'ann@example.org' is too long")
        with pytest.raises(DataError) as found:
            raise DataError(*driver.args) from driver
        return found.value

    def test_values_go_and_class_traceback_and_cause_stay(self) -> None:
        error = self.raised()

        shown = loggable(error)

        assert "ann" not in f"{shown} {shown.__cause__}"
        assert type(shown).__qualname__ == "DataError"
        assert shown.__traceback__ is error.__traceback__
        assert type(shown.__cause__).__name__ == "DriverError"

    def test_an_error_without_values_stays_itself(self) -> None:
        error = ValueError("of a hook")

        assert loggable(error) is error
        assert loggable(error, trusted=False) is not error

    @override_settings(MATVIEWS={"VALUES_IN_ERRORS": "all"})
    def test_all_values_stay_if_the_setting_says_so(self) -> None:
        error = self.raised()

        assert loggable(error) is error

    def test_members_of_a_group_go(self) -> None:
        group = ExceptionGroup("many", [self.raised()])

        assert not isinstance(loggable(group), BaseExceptionGroup)
