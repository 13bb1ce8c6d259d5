"""PostgreSQL: what is left of triggers that were switched off, or whose table was dropped."""

from collections.abc import Callable

import pytest
from django.apps import apps
from django.db import connection
from django.db.models.signals import pre_migrate

from matviews import changes, engine
from matviews.models import Change
from tests.helpers.tables import defined, execute, tracked_view_of

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
    pytest.mark.only_on("postgres", reason="others keep nothing"),
]

ROWS = "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer)"
IF_THERE = "DROP TABLE IF EXISTS made_rows"


def functions() -> list[str]:
    """Ours, with the types of their arguments."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'matviews%' ORDER BY 1"
        )
        return [name for (name,) in cursor.fetchall()]


def names() -> list[str]:
    """Of triggers that have functions."""
    return sorted({name.partition("(")[0] for name in functions()})


def migrate_zero() -> None:
    migration = type("Migration", (), {"app_label": "matviews", "operations": []})()
    sender = apps.get_app_config("matviews")
    options = {"using": engine.alias(), "verbosity": 0, "interactive": False}
    pre_migrate.send(sender, app_config=sender, apps=apps, plan=[(migration, True)], **options)


WAYS: dict[str, Callable[[], object]] = {
    "install": lambda: changes.install(engine.alias()),
    "remove": lambda: changes.remove(engine.alias()),
    "sql": lambda: execute(changes.script(engine.alias())),
    "migrate matviews zero": migrate_zero,
}


@pytest.mark.parametrize("way", list(WAYS))
def test_functions_of_a_table_that_was_dropped_are_told_of_and_go(way: str) -> None:
    with defined(ROWS, undone=IF_THERE), tracked_view_of("made_rows"):
        # one for each trigger, and one that looks at the columns which it names, if it names any
        left = names()
        assert len(left) == 4
        assert len(functions()) == 7
        execute("DROP TABLE made_rows")

        assert list(changes.find_problems(engine.alias()))[1:] == [
            f"The function {name} is left over: no enabled trigger calls it." for name in left
        ]
        WAYS[way]()

        assert functions() == []


@pytest.mark.parametrize("way", ["remove", "migrate matviews zero"])
def test_triggers_that_are_switched_off_go_too(way: str) -> None:
    """Switched on again, they would write to a log that is not there."""
    with defined(ROWS, undone=IF_THERE), tracked_view_of("made_rows"):
        execute("ALTER TABLE made_rows DISABLE TRIGGER USER")

        WAYS[way]()

        assert functions() == []
        execute("ALTER TABLE made_rows ENABLE TRIGGER USER", "INSERT INTO made_rows VALUES (1, 1)")
        assert not Change.objects.exists()


def test_what_a_person_is_about_to_make_stays() -> None:
    """Between two statements of `--triggers sql`."""
    with defined(ROWS, undone=IF_THERE), tracked_view_of("made_rows"):
        made = functions()
        for name in names():
            execute(f"DROP TRIGGER {name} ON made_rows")

        sql = changes.script(engine.alias())
        assert sql.count("CREATE FUNCTION") == len(made)
        assert sql.count("DROP") == 2 * len(names())
        changes.install(engine.alias())

        assert functions() == made
        assert list(changes.find_problems(engine.alias())) == []


@pytest.mark.parametrize("kept", ["()", "(regclass)"])
@pytest.mark.parametrize("way", list(WAYS))
def test_either_of_the_two_functions_of_a_trigger_is_found(way: str, kept: str) -> None:
    with defined(ROWS, undone=IF_THERE), tracked_view_of("made_rows"):
        execute(
            "DROP TABLE made_rows",
            *(f"DROP FUNCTION {name}" for name in functions() if not name.endswith(kept)),
        )
        assert functions()

        WAYS[way]()

        assert functions() == []


def test_functions_of_others_stay() -> None:
    another = "matviews_of_somebody_else"
    with (
        defined(
            ROWS,
            f"CREATE FUNCTION {another}() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            undone=(IF_THERE, f"DROP FUNCTION {another}"),
        ),
        tracked_view_of("made_rows"),
    ):
        changes.remove(engine.alias())

        assert functions() == [f"{another}()"]
