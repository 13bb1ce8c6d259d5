"""PostgreSQL: `migrate` finds and replaces what the first version made.

This holds whoever attached it to what.
"""

from collections.abc import Iterator

import pytest
from django.apps import apps
from django.core.checks import Tags, run_checks
from django.db import connection
from django.db.models.signals import post_migrate

from matviews import changes, engine
from matviews.models import Change, LogSecret, TrackedTable
from tests.helpers.tables import defined, execute, refreshed, tracked_view_of

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
    pytest.mark.only_on("postgres", reason="others keep no functions"),
]

OLD = """
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = "public", pg_temp SET extra_float_digits = 1 AS $matviews$ BEGIN
IF strpos(coalesce(current_setting('matviews.muted', true), ''), '{digest}') = 0 THEN
INSERT INTO "matviews_change" ("table", "count", "links") SELECT 'made_rows', COUNT(*),
CASE WHEN COUNT(*) > 50000 THEN to_jsonb('more than 50,000 rows have changed at once'::text)
ELSE jsonb_build_array(jsonb_build_array('id')) || jsonb_agg(jsonb_build_array("id")) END
FROM (SELECT DISTINCT "id" FROM matviews_after LIMIT 50001) matviews_links HAVING COUNT(*) > 0;
END IF; RETURN NULL; END $matviews$
"""
TRIGGER = (
    "CREATE TRIGGER {trigger} AFTER INSERT ON {table} REFERENCING NEW TABLE AS matviews_after "
    "FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
)


def functions() -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT proname FROM pg_proc WHERE proname LIKE 'matviews%'")
        return {name for (name,) in cursor.fetchall()}


def triggers() -> set[tuple[str, str]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname, t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
            "JOIN pg_proc p ON p.oid = t.tgfoid WHERE p.proname LIKE 'matviews%'"
        )
        return set(cursor.fetchall())


@pytest.fixture(autouse=True)
def _tables() -> Iterator[None]:
    columns = "(id bigint PRIMARY KEY, n integer)"
    with defined(
        f"CREATE TABLE made_rows {columns}", f"CREATE TABLE made_others {columns}",
        "CREATE SCHEMA made_hidden", f"CREATE TABLE made_hidden.others {columns}",
        f"CREATE TEMP TABLE made_temporary {columns}",
        undone=(
            "DROP TABLE made_rows, made_others, made_temporary",
            "DROP SCHEMA made_hidden CASCADE",
        ),
    ):  # fmt: skip
        yield


def test_functions_of_the_first_version_are_replaced_by_migrate() -> None:
    with tracked_view_of("made_rows") as view:
        refreshed(view)
        record = TrackedTable.objects.get()
        digest, current = record.triggers[0].split("_")[1], functions()
        changes.remove(engine.alias())
        old = {f"matviews_{digest}_{version}_insert" for version in ("00000001", "00000002")}
        first, second = sorted(old)
        for name in old:
            execute(OLD.format(name=name, digest=digest))
        attached = {
            ("made_rows", first, first), ("made_others", first, first),
            ("made_others", "evil", first),
            ("made_hidden.others", first, first), ("made_temporary", "evil", first),
            ("made_hidden.others", "evil", second), ("made_temporary", second, second),
        }  # fmt: skip
        for table, trigger, name in attached:
            execute(TRIGGER.format(table=table, trigger=trigger, name=name))
        record.pk, record.triggers = None, [first]
        record.save()
        LogSecret.objects.all().delete()
        Change.objects.create(table="made_rows", links=[["id"], [1]])
        execute("INSERT INTO made_rows VALUES (2, 2)")
        messages = run_checks(tags=[Tags.database], databases=["default"])
        assert [each.msg for each in messages if each.id == "matviews.W013"] == [
            f"Any role may use the function {name}; only the roles of matviews should."
            for name in (first, second)
        ]

        sender = apps.get_app_config("matviews")
        post_migrate.send(sender, app_config=sender, using=engine.alias(), plan=[])

        assert functions() == current
        assert triggers() == {("made_rows", name) for name in current}
        assert LogSecret.objects.exists()
        messages = run_checks(tags=[Tags.database], databases=["default"])
        assert {each.id for each in messages} & {"matviews.W011", "matviews.W013"} == set()
        assert not view.is_fresh()
        execute("INSERT INTO made_rows VALUES (3, 3)")
        refreshed(view)
        assert view.verify().equal
        assert view.objects.count() == 2
