"""Views whose refreshes change their own source, by a trigger of the project."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from matviews import engine
from matviews.engine.graph import loops
from matviews.engine.on_change import due_refreshes
from matviews.tasks.problems import LOOP, check_health
from tests.helpers import tables
from tests.helpers.engine import travel
from tests.helpers.view_graphs import Views, built, label

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

FUNCTION = (
    "CREATE FUNCTION made_back() RETURNS trigger LANGUAGE plpgsql AS "
    "$$BEGIN UPDATE shapes_base SET n = n + 1 WHERE id = NEW.ref; RETURN NULL; END$$"
)
UPDATE = "UPDATE shapes_base SET n = n + 1 WHERE id = NEW.ref"


def statements(table: str) -> tuple[list[str], list[str]]:
    """What makes a trigger that writes back, and what drops it."""
    on = f"AFTER UPDATE ON {table} FOR EACH ROW"
    if connection.vendor == "postgresql":
        made = [FUNCTION, f"CREATE TRIGGER made_back {on} EXECUTE FUNCTION made_back()"]
        return made, [f"DROP TRIGGER made_back ON {table}", "DROP FUNCTION made_back()"]
    body = f"BEGIN {UPDATE}; END" if connection.vendor == "sqlite" else UPDATE
    return [f"CREATE TRIGGER made_back {on} {body}"], ["DROP TRIGGER made_back"]


#: MariaDB refuses to change a table by a trigger of a statement that reads it.
WHERE = ["B"] if connection.vendor == "mysql" else ["A", "B"]


@pytest.fixture(params=WHERE)
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Views]:
    """A trigger on the view itself, or on one that reads it, changes its source."""
    monkeypatch.setattr(loops, "UNSUSPECTED", 3)
    monkeypatch.setattr(due_refreshes, "TRUSTED", 0.0)
    monkeypatch.setattr(loops, "FIRST_WAIT", timedelta(seconds=8))
    monkeypatch.setattr(loops, "REPORTED", 3)
    with built({"A": "", "B": "A"}) as views:
        made, undone = statements(f"shapes_{request.param.lower()}")
        with tables.defined(*made, undone=tuple(undone)):
            yield views


def runs(views: Views, looks: int) -> int:
    """How often the view in the loop is refreshed, at so many looks."""
    return "".join(views.look_and_run() for _look in range(looks)).count("A")


def test_a_loop_is_slowed_and_reported(loop: Views, caplog: pytest.LogCaptureFixture) -> None:
    loop.change()
    at_first = runs(loop, 30)
    travel(timedelta(seconds=9))
    second = runs(loop, 6)
    travel(timedelta(seconds=9))
    third = runs(loop, 6)
    travel(timedelta(seconds=9))

    assert 2 <= at_first <= 6
    assert (second, third) == (1, 0)  # it waits twice as long
    assert runs(loop, 6) == 1
    assert loop.control("A").echoes == 3
    assert caplog.text.count("its refreshes change its own source") == 1
    problems = [each for each in check_health().problems if each.kind == LOOP]
    assert [each.view for each in problems] == [label("A")]
    assert [each.label for each in engine.view_statuses() if each.in_loop] == [label("A")]


def test_what_changes_besides_is_refreshed_at_once(loop: Views) -> None:
    loop.change()
    runs(loop, 30)
    loop.set("A", echoes=8)
    loop.settle()
    travel(timedelta(seconds=1))
    loop.change(2)

    assert "A" in loop.look()
    assert loop.control("A").echoes == 4


def test_a_loop_that_has_ended_is_no_problem(loop: Views) -> None:
    loop.set("A", echoes=9)
    travel(4 * loops.MAX_WAIT)

    assert not any(each.in_loop for each in engine.view_statuses())


def test_a_busy_source_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its changes are logged while nothing is refreshed."""
    monkeypatch.setattr(loops, "UNSUSPECTED", 2)
    with built({"A": ""}) as views:
        for _time in range(6):
            travel(timedelta(seconds=1))
            views.change()
            assert views.look_and_run() == "A"

        assert views.control("A").echoes == 0


def test_a_view_that_is_seldom_due_costs_no_statement() -> None:
    with built({"A": ""}) as views:
        travel(timedelta(minutes=1))
        control = views.control("A")

        with CaptureQueriesContext(connection) as captured:
            left = loops.Echoes().record_due(control)

        assert left == 0.0
        assert len(captured) == 0
