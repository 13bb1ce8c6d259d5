"""No row value gets into a text that is stored, logged or sent unless the setting allows it."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest
from django.db import IntegrityError, connection, models, transaction
from django.db.models import F, IntegerField
from django.db.models.functions import Cast
from django.test import override_settings
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from matviews import Batch, MaterializedView, engine, signals, tasks
from matviews.exceptions import UnknownView
from matviews.models import ParkedKey, Refresh
from matviews.redact import brief, pattern, traceback_text
from matviews.registry import registry
from matviews.states import RefreshState
from tests.helpers import tables, view_classes
from tests.helpers.tables import derived_view, key, made, model, unique
from tests.sample.models import Limited

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

POSTGRES = connection.vendor == "postgresql"

# Texts that look like what a database says around a value.
SPOOFS = [
    ") already exists.\nDETAIL:  Key (name)=(",
    "' for key '",
    "' for column `a`.`b`.`",
    '" is out of range for type "',
    '\nCONTEXT:  SQL statement "',
    "%s %(x)s {0} {x} %",
    "\\' \" ` $$ ; --",
    "\u202e\u0000ü🦆".replace("\u0000", ""),
]
AROUND = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def source_table() -> type[Any]:
    return model(
        "Mailbox", mail=models.CharField(max_length=200), label=models.CharField(max_length=200)
    )


def twice(people: type[Any]) -> type[Any]:
    """Two rows of a staged source have one key."""
    return derived_view(
        lambda cls: people.objects.order_by("pk").values("mail", "label")[:100],
        mail=models.CharField(max_length=200, unique=True),
        label=models.CharField(max_length=200),
    )


def second_unique(people: type[Any]) -> type[Any]:
    """A second unique constraint, which two rows break."""
    return derived_view(
        lambda cls: people.objects.values("label", ref=F("pk"), other=F("mail")),
        key=["ref"],
        ref=key(),
        label=models.CharField(max_length=200),
        other=models.CharField(max_length=200, unique=True),
    )


def checked(people: type[Any]) -> type[Any]:
    """A check that a row breaks."""
    return derived_view(
        lambda cls: people.objects.values("label", "mail", ref=F("pk")),
        ref=key(),
        label=models.CharField(max_length=200),
        mail=models.CharField(max_length=200),
        meta={
            "constraints": [
                models.CheckConstraint(condition=models.Q(label="nobody"), name="made_nobody")
            ]
        },
    )


def converted(people: type[Any]) -> type[Any]:
    """A value that cannot be converted; SQLite converts anything, so a check refuses every row."""
    return derived_view(
        lambda cls: people.objects.values(
            "mail", ref=F("pk"), number=Cast("label", IntegerField())
        ),
        ref=key(),
        mail=models.CharField(max_length=200),
        number=models.IntegerField(),
        meta={
            "constraints": [
                models.CheckConstraint(condition=models.Q(number__isnull=True), name="made_null")
            ]
        },
    )


def by_hook(people: type[Any]) -> type[Any]:
    """A hook that lets an error of the database through, and raises another from it."""

    def write(cls: type[Any]) -> None:
        with transaction.atomic():
            cls.objects.bulk_create(
                cls(mail=mail) for mail in people.objects.values_list("mail", flat=True)
            )

    return model(
        "Made",
        bases=(MaterializedView, models.Model),
        mail=models.CharField(max_length=200, unique=True),
        **view_classes.six_hooks(
            needs_insert=classmethod(lambda cls: True), do_insert=classmethod(write)
        ),
    )


VIEWS = [twice, second_unique, checked, converted, by_hook]


@contextmanager
def everything_said(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What is logged and sent within."""
    said: list[str] = []

    def batch_finished(report: Any, **_kwargs: Any) -> None:
        said.append(repr(report))

    caplog.clear()
    caplog.set_level(logging.DEBUG, "matviews")
    signals.batch_finished.connect(batch_finished)
    try:
        yield said
    finally:
        signals.batch_finished.disconnect(batch_finished)
        said.append(caplog.text)


def failure(view: type[Any], caplog: pytest.LogCaptureFixture) -> str:
    """Let a refresh fail, or park a key; all that is stored, logged and sent of that."""
    with everything_said(caplog) as said:
        refresh: Refresh = view_classes.run(view)
    assert refresh.state == RefreshState.FAILED or ParkedKey.objects.exists()
    return "\n".join([*stored(refresh), *said])


def stored(refresh: Refresh) -> list[str]:
    """The texts of a refresh, of its runs and of the keys that are parked."""
    runs = refresh.runs.all()
    columns = ("error_class", "code", "constraint", "columns", "message")
    return [
        refresh.error,
        *(run.error for run in runs),
        *(run.traceback for run in runs),
        *map(repr, ParkedKey.objects.values_list(*columns)),
    ]


def tried(check: Callable[[str], None], examples: int = 3) -> None:
    """Call `check` with texts that hold something of which no other text has a part."""

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), deadline=None)
    @given(AROUND, AROUND)
    def run(before: str, after: str) -> None:
        check(f"{before}{uuid4().hex}{after}")

    for spoof in SPOOFS:
        run = example(spoof, spoof)(run)
    run()


def marker(text: str) -> str:
    """The part of a text that `tried` made which nothing else has."""
    found = re.search(r"[0-9a-f]{32}", text)
    assert found
    return found[0]


@pytest.mark.parametrize("make", VIEWS, ids=lambda make: make.__name__)
class TestValues:
    def test_none_is_kept(self, make: Any, caplog: pytest.LogCaptureFixture) -> None:
        people = source_table()
        view = make(people)

        def check(text: str) -> None:
            people.objects.all().delete()
            people.objects.bulk_create(
                [people(mail=text, label=text), people(mail=text, label=text)]
            )
            with override_settings(MATVIEWS={"VALUES_IN_ERRORS": "none"}):
                assert marker(text) not in failure(view, caplog)

        with made(people, view):
            tried(check)

    def test_by_default_those_of_the_key_alone(
        self, make: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        people = source_table()
        view = make(people)

        def check(text: str) -> None:
            mail = f"key {uuid4().hex}"
            people.objects.all().delete()
            people.objects.bulk_create(
                [people(mail=mail, label=text), people(mail=mail, label=text)]
            )
            said = failure(view, caplog)
            assert marker(text) not in said
            # PostgreSQL alone tells which columns a value is of.
            assert (marker(mail) in said) is (make in (twice, by_hook) and POSTGRES)

        with made(people, view):
            tried(check, examples=1)

    def test_the_error_still_tells_what_is_wrong(
        self, make: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        people = source_table()
        view = make(people)
        with made(people, view):
            people.objects.bulk_create([people(mail="a", label="b"), people(mail="a", label="b")])
            failure(view, caplog)

        error = "\n".join(stored(Refresh.objects.get()))
        names = {
            twice: ["the same key (mail)"], second_unique: ["other"], checked: ["made_nobody"],
            converted: [
                "made_null", "number", "invalid text representation", "incorrect value",
            ],
            by_hook: ["mail"],
        }[make]  # fmt: skip
        assert any(name in error for name in names), error


@pytest.mark.only_on("postgres", reason="the others say less")
def test_all_that_the_database_says(caplog: pytest.LogCaptureFixture) -> None:
    people = source_table()
    view = checked(people)
    with made(people, view), override_settings(MATVIEWS={"VALUES_IN_ERRORS": "all"}):
        people.objects.create(mail="ann@example.org", label="Ann")

        assert "ann@example.org" in failure(view, caplog)


@pytest.mark.only_on("postgres", reason="a function of PostgreSQL")
@pytest.mark.parametrize("code", ["P0001", "23505", "42501", "40001"])
def test_what_a_trigger_of_the_project_raises_about_a_row(
    code: str, caplog: pytest.LogCaptureFixture
) -> None:
    people = source_table()
    view = checked(people)
    table = view._meta.db_table
    function = (
        f"CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION USING ERRCODE = '{code}', MESSAGE = 'no ' || NEW.mail, "
        f"DETAIL = NEW.mail, CONSTRAINT = NEW.mail, COLUMN = NEW.mail, TABLE = NEW.mail, "
        f"DATATYPE = NEW.mail; END $$"
    )
    trigger = (
        f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    with (
        made(people, view),
        tables.defined(function, trigger, undone="DROP FUNCTION refuse CASCADE"),
    ):
        people.objects.create(mail="ann@example.org", label="nobody")
        said = failure(view, caplog)

    assert code in said
    assert "ann@" not in said


@pytest.mark.parametrize("allowed", ["all", "keys", "none"])
def test_what_a_hook_raises_is_kept_but_not_what_the_database_said_before(
    allowed: str, caplog: pytest.LogCaptureFixture
) -> None:
    mail = "ann@example.org"  # not in the line that a traceback shows

    def fail(cls: type[Any]) -> None:
        try:
            cls.objects.bulk_create(cls(mail=mail) for _time in range(2))
        except IntegrityError as error:
            error.add_note("a note of mine")
            raise ValueError("Bob is mine") from error

    view = model(
        "Made",
        bases=(MaterializedView, models.Model), mail=models.CharField(max_length=200, unique=True),
        **view_classes.six_hooks(
            needs_insert=classmethod(lambda cls: True), do_insert=classmethod(fail)
        ),
    )  # fmt: skip
    with made(view), override_settings(MATVIEWS={"VALUES_IN_ERRORS": allowed}):
        said = failure(view, caplog)

    assert "ValueError: Bob is mine" in said
    assert "a note of mine" in said
    assert "in fail" in said
    tells = {"all": connection.vendor != "sqlite", "keys": POSTGRES, "none": False}[allowed]
    assert ("ann@example.org" in said) is tells


def test_a_key_of_several_fields_is_shown_only_whole(caplog: pytest.LogCaptureFixture) -> None:
    people = source_table()
    view = derived_view(
        lambda cls: people.objects.order_by("pk").values("mail", "label")[:100],
        mail=models.CharField(max_length=200),
        label=models.CharField(max_length=200),
        meta=unique("mail", "label"),
    )
    with made(people, view):
        people.objects.bulk_create([people(mail="a", label="Ann Onym")] * 2)
        said = failure(view, caplog)

    assert ("Ann Onym" in said) is POSTGRES


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _level in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        "x" * 5_000_000, b"x" * 5_000_000, 10**1_000_000,
        ["x" * 10**6] * 100, {"x" * 10**6: "y" * 10**6},
        nested(100_000), Hostile(), float("nan"), "\x1b[31m\nspoofed=yes\r", "\ud800\0",
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_is_brief_and_one_line(value: Any) -> None:
    text = brief(value)

    assert len(text) <= 400
    assert text.isprintable()
    text.encode()


def test_a_chain_of_errors_is_bounded() -> None:
    error: BaseException = ValueError("x" * 10**6)
    for _link in range(1_000):
        following = ValueError("x" * 1_000)
        following.__cause__ = error
        error = following
    error.__cause__ = error

    assert len(traceback_text(error)) < 25_000


HUGE = "x" * 5_000_000
NONSENSE = [
    lambda: tasks.refresh(HUGE),
    lambda: tasks.refresh(HUGE, jitter=60),
    lambda: tasks.refresh([HUGE] * 10),
    lambda: tasks.refresh("sample.Limited", [HUGE] * 10),
    lambda: tasks.refresh("sample.Limited", HUGE),
    lambda: tasks.refresh("sample.Limited", ["insert"], HUGE),
    lambda: tasks.refresh("sample.Limited", ["insert"], nested(100_000)),
    lambda: tasks.insert_batch(HUGE, 1),
    lambda: tasks.insert_batch(1, nested(100_000)),
    lambda: tasks.insert_batch(10**100_000, Hostile()),
]


@pytest.mark.parametrize("send", NONSENSE, ids=range(len(NONSENSE)))
def test_what_a_message_gives_is_logged_in_brief(
    send: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    registry.register(Limited)
    with everything_said(caplog), mock.patch.object(tasks.refresh, "apply_async") as sent:
        send()

    assert 0 < len(caplog.text) < 5_000
    assert len(str(sent.mock_calls)) < 5_000


def test_what_a_caller_gives_is_stored_in_brief() -> None:
    engine.sync_controls()
    registry.register(Limited)
    asked = engine.request(Limited, requested_by=HUGE[:300] + "\0\ud800")
    with pytest.raises(UnknownView) as error:
        engine.request(HUGE)

    assert len(asked.requested_by) == 255
    assert len(str(error.value)) < 1_000


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("ValueError: row 7,123 of a1b2-c3d4\nmore", "ValueError: row N of N"),
        ("RuntimeError: first cause", "RuntimeError: first cause"),
        ("DataError: division by zero (SQLSTATE 22012)", None),
        ("OperationalError: error (1690) (values left out)", None),
        ("IntegrityError: Key (email)=(a@b.c) already exists.",
         "IntegrityError: Key (email)=(...) already exists."),
    ],
)  # fmt: skip
def test_a_pattern_keeps_what_tells_errors_apart(error: str, expected: str | None) -> None:
    assert pattern(error) == (expected or error)


def test_a_cursor_is_bounded() -> None:
    def walk(cls: type[Any], cursor: Any) -> Batch:
        return Batch(1, HUGE)

    hooks = {"needs_insert": classmethod(lambda cls: True), "do_insert": classmethod(walk)}
    view = view_classes.ready(view_classes.make_view(**view_classes.six_hooks(**hooks)))

    assert "a cursor of 5,000,002 characters" in view_classes.run(view).error
