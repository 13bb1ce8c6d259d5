"""PostgreSQL's partitioned tables: whatever writes to whichever of their tables, each row counts.

Partitions come and go without a trigger that tells.
"""

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.db import IntegrityError, connection, models, transaction
from django.db.models import Count, F, Sum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matviews import changes, engine, tasks
from matviews.databases import triggers_of
from matviews.models import Change, TrackedTable
from tests.helpers.engine import in_another_connection
from tests.helpers.roles import as_role, database_role
from tests.helpers.tables import defined, derived_view, execute, key, made, model, refreshed
from tests.helpers.view_classes import run

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
    pytest.mark.only_on("postgres", reason="PostgreSQL's own"),
]

TABLE = "made_rows"
# By k, and from 10 on by the group, which a foreign key's cascade changes as well.
MADE = (
    "CREATE TABLE made_group (id integer PRIMARY KEY)",
    "INSERT INTO made_group SELECT generate_series(0, 9)",
    (
        "CREATE TABLE made_rows (id integer, k integer, n integer REFERENCES made_group "
        "ON DELETE CASCADE ON UPDATE CASCADE, v integer) PARTITION BY RANGE (k)"
    ),
    "CREATE UNIQUE INDEX ON ONLY made_rows (id, k, n)",
    "CREATE TABLE made_low (v integer, n integer, k integer, id integer)",  # in another order
    "ALTER TABLE made_rows ATTACH PARTITION made_low FOR VALUES FROM (0) TO (10)",
    (
        "CREATE TABLE made_high PARTITION OF made_rows FOR VALUES FROM (10) TO (20) "
        "PARTITION BY RANGE (n)"
    ),
    "CREATE TABLE made_high_low PARTITION OF made_high FOR VALUES FROM (0) TO (5)",
    "CREATE TABLE made_high_rest PARTITION OF made_high DEFAULT",
    "CREATE UNIQUE INDEX ON made_rows (id, k, n)",
)
GONE = (
    "DROP TABLE IF EXISTS made_rows, made_low, made_high, made_new, made_next, made_group CASCADE",
)


def view_of_part(table: str) -> type[Any]:
    part = model(
        "Part", n=models.IntegerField(), v=models.IntegerField(),
        meta={"db_table": table, "managed": False},
    )  # fmt: skip
    return derived_view(
        lambda cls: part.objects.values(ref=F("n")).annotate(total=Sum("v")),
        name="OfPart",
        ref=key(),
        total=models.IntegerField(null=True),
    )


@pytest.fixture
def view(alone: None) -> Iterator[type[Any]]:
    """A tracked view of the groups of a partitioned table, up to date."""
    with defined(*MADE, undone=GONE):
        rows = model(
            "Rows",
            n=models.IntegerField(),
            v=models.IntegerField(),
            meta={"db_table": TABLE, "managed": False},
        )
        found = derived_view(
            lambda cls: rows.objects.values(ref=F("n")).annotate(rows=Count("*"), total=Sum("v")),
            ref=key(),
            rows=models.IntegerField(),
            total=models.IntegerField(null=True),
        )
        with made(found):
            changes.install(engine.alias())
            execute(
                "INSERT INTO made_rows SELECT i, i % 20, i % 10, i FROM generate_series(1, 60) i"
            )
            refreshed(found)
            yield found
            changes.remove(engine.alias())


def is_right(view: type[Any]) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT n, count(*), sum(v) FROM made_rows GROUP BY n ORDER BY n")
        there = cursor.fetchall()
    return bool(list(view.objects.order_by("ref").values_list("ref", "rows", "total")) == there)


def reasons(view: type[Any]) -> set[str]:
    """Refresh a view; why its phases were full, with "" for one that was not."""
    refreshed_by = run(view)
    assert refreshed_by.state == "succeeded", refreshed_by.error
    assert is_right(view)
    return {each.full_refresh_reason for each in refreshed_by.runs.all()}


def logged() -> list[tuple[str, ...]]:
    """The groups of each entry of the log, in order, and "all" for one of any row."""
    entries = Change.objects.filter(table=TABLE).order_by("pk").values_list("links", flat=True)
    return [
        tuple(sorted(str(n) for (n,) in links[1:])) if isinstance(links, list) else ("all",)
        for links in entries
    ]


WRITES: dict[str, tuple[str, list[tuple[str, ...]]]] = {
    "insert": ("INSERT INTO made_rows VALUES (99, 3, 3, 1), (98, 13, 4, 1)", [("3", "4")]),
    "into a partition": ("INSERT INTO made_low VALUES (1, 3, 3, 99)", [("3",)]),
    "into a partition of partitions": ("INSERT INTO made_high VALUES (99, 13, 3, 1)", [("3",)]),
    "into its partition": ("INSERT INTO made_high_low VALUES (99, 13, 3, 1)", [("3",)]),
    "update": ("UPDATE made_rows SET v = v + 1 WHERE id IN (1, 12)", [("1", "2")]),
    "of nothing that counts": ("UPDATE made_rows SET k = k WHERE id IN (1, 12)", []),
    "in a partition": ("UPDATE made_low SET v = 0 WHERE id = 1", [("1",)]),
    "to another partition": ("UPDATE made_rows SET k = 12, v = 0 WHERE id = 1", [("1",)]),
    "and another group": ("UPDATE made_rows SET k = 12, n = 6 WHERE id = 1", [("1", "6")]),
    "unchanged to another partition": ("UPDATE made_rows SET k = 12 WHERE id = 1", []),
    "within a partition of partitions": ("UPDATE made_high SET n = 9 WHERE id = 12", [("2", "9")]),
    "delete": ("DELETE FROM made_rows WHERE id IN (1, 12)", [("1", "2")]),
    "from a partition": ("DELETE FROM made_low WHERE id IN (1, 12)", [("1",)]),
    "conflict": (
        (
            "INSERT INTO made_rows VALUES (1, 1, 1, 0), (99, 1, 7, 1) "
            "ON CONFLICT (id, k, n) DO UPDATE SET v = 5"
        ),
        [("7",), ("1",)],
    ),
    "cascade": ("DELETE FROM made_group WHERE id = 2", [("2",)]),
    "cascade to another partition": ("UPDATE made_group SET id = 12 WHERE id = 2", [("12", "2")]),
    "truncate": ("TRUNCATE made_high_low", [("all",)]),
    "merge": (
        (
            "MERGE INTO made_rows USING (VALUES (1), (97)) s (id) ON made_rows.id = s.id "
            "WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (97, 13, 3, 1)"
        ),
        [("3",), ("1",)],
    ),
    # Of rows that it moves it shows nothing.
    "merge to another partition": (
        (
            "MERGE INTO made_rows USING (VALUES (1)) s (id) ON made_rows.id = s.id "
            "WHEN MATCHED THEN UPDATE SET k = 12, v = 100"
        ),
        [("all",)],
    ),
}


@pytest.mark.parametrize("name", list(WRITES))
def test_each_row_is_logged_once(view: type[Any], name: str) -> None:
    statement, expected = WRITES[name]

    execute(statement)

    assert sorted(logged()) == sorted(expected)
    run(view)
    assert is_right(view)
    assert view.is_fresh()


def test_copy(view: type[Any]) -> None:
    for table in ("made_rows (id, k, n, v)", "made_high_low (id, k, n, v)"):
        with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN") as copy:
            copy.write("70\t13\t2\t1\n71\t13\t3\t1\n")
        execute("UPDATE made_rows SET id = id + 10 WHERE id >= 70")

    assert logged() == [("2", "3")] * 2
    assert reasons(view) == {""}


MERGE = WRITES["merge to another partition"][0]
HIDDEN = {
    "prepared": (f"PREPARE made AS {MERGE}", "EXECUTE made", "DEALLOCATE made"),
    "in PL/pgSQL": (f"DO $$ BEGIN {MERGE}; END $$",),
    "built in PL/pgSQL": (f"DO $$ BEGIN EXECUTE '{MERGE}'; END $$",),
    "in a function in SQL": (
        f"CREATE FUNCTION made() RETURNS void LANGUAGE sql AS $$ {MERGE} $$",
        "SELECT made()",
        "DROP FUNCTION made()",
    ),
}


@pytest.mark.parametrize("name", list(HIDDEN))
def test_a_merge_that_moves_a_row_is_seen_wherever_it_is(view: type[Any], name: str) -> None:
    execute(*HIDDEN[name])

    assert logged() == [("all",)]
    run(view)
    assert is_right(view)


def test_a_row_that_a_trigger_keeps_from_its_new_partition(view: type[Any]) -> None:
    execute(
        "CREATE FUNCTION made_keep() RETURNS trigger LANGUAGE plpgsql "
        "AS $$ BEGIN RETURN NULL; END $$",
        "CREATE TRIGGER made_keep BEFORE INSERT ON made_high_low FOR EACH ROW "
        "EXECUTE FUNCTION made_keep()",
        "UPDATE made_rows SET k = 12 WHERE id = 1",
    )

    run(view)

    assert is_right(view)
    execute("DROP FUNCTION made_keep CASCADE")


def test_a_function_that_updates_is_no_merge(view: type[Any]) -> None:
    execute("DO $$ BEGIN UPDATE made_rows SET k = 12, v = 0 WHERE id = 1; END $$")

    assert logged() == [("1",)]


class TestPartitionsThatComeAndGo:
    def test_an_empty_one_costs_nothing(self, view: type[Any]) -> None:
        execute("CREATE TABLE made_new PARTITION OF made_rows FOR VALUES FROM (20) TO (30)")

        assert view.is_fresh()
        [problem] = changes.find_problems(engine.alias())
        assert problem == (
            "These partitions or parents of made_rows (read by shapes.Made) have no triggers, or "
            "disabled ones: public.made_new."
        )
        tasks.maintain()
        assert list(changes.find_problems(engine.alias())) == []
        assert view.is_fresh()
        execute("INSERT INTO made_new VALUES (99, 23, 3, 1)")
        assert not view.is_fresh()
        assert reasons(view) == {""}

    @pytest.mark.parametrize("vacuumed", [False, True])
    def test_a_row_in_one_without_triggers_makes_refreshes_full(
        self, view: type[Any], *, vacuumed: bool
    ) -> None:
        execute(
            "CREATE TABLE made_new PARTITION OF made_rows FOR VALUES FROM (20) TO (30)",
            "INSERT INTO made_new VALUES (99, 23, 3, 1)",
        )
        if vacuumed:  # its file is empty again
            execute("DELETE FROM made_new", "VACUUM made_new")

        assert vacuumed or not view.is_fresh()
        assert reasons(view) == {"no triggers log all changes of made_rows"}
        tasks.maintain()
        assert reasons(view) == {"the triggers of made_rows were installed or replaced"}
        execute("UPDATE made_new SET v = 7", "INSERT INTO made_new VALUES (98, 23, 3, 1)")
        assert reasons(view) == {""}

    def test_one_with_rows_is_attached(self, view: type[Any]) -> None:
        execute(
            "CREATE TABLE made_new AS SELECT 99 AS id, 23 AS k, 3 AS n, 1 AS v",
            "ALTER TABLE made_rows ATTACH PARTITION made_new FOR VALUES FROM (20) TO (30)",
        )

        assert not view.is_fresh()
        assert reasons(view) == {"no triggers log all changes of made_rows"}
        tasks.maintain()
        assert list(changes.find_problems(engine.alias())) == []

    @pytest.mark.parametrize(
        "statements",
        [
            ("DROP TABLE made_low",),
            ("ALTER TABLE made_rows DETACH PARTITION made_low",),
            ("ALTER TABLE made_rows DETACH PARTITION made_low CONCURRENTLY",),
            ("ALTER TABLE made_rows DETACH PARTITION made_high",),
            (
                "ALTER TABLE made_rows DETACH PARTITION made_low",
                "UPDATE made_low SET v = 0",
                "ALTER TABLE made_rows ATTACH PARTITION made_low FOR VALUES FROM (0) TO (10)",
            ),
        ],
    )
    def test_one_goes(self, view: type[Any], statements: tuple[str, ...]) -> None:
        execute(*statements)

        assert not view.is_fresh()
        assert reasons(view) == {"no triggers log all changes of made_rows"}
        reasons(view)
        assert view.is_fresh()
        execute("UPDATE made_rows SET v = v + 1")
        assert reasons(view) == {""}

    def test_writes_to_a_detached_one_cost_nothing(self, view: type[Any]) -> None:
        execute("ALTER TABLE made_rows DETACH PARTITION made_low")
        reasons(view)
        reasons(view)

        execute("ALTER TABLE made_low DROP COLUMN n", "UPDATE made_low SET v = 0")

        assert view.is_fresh()
        assert list(changes.find_problems(engine.alias())) == []

    def test_a_trigger_of_one_is_disabled(self, view: type[Any]) -> None:
        execute(
            "ALTER TABLE made_low DISABLE TRIGGER USER",
            "UPDATE made_low SET v = 0",
            "ALTER TABLE made_low ENABLE TRIGGER USER",
        )

        assert not view.is_fresh()
        assert reasons(view) == {"no triggers log all changes of made_rows"}

    def test_others_make_them(self, view: type[Any]) -> None:
        """As a program does at night that belongs to somebody else."""
        owner = connection.settings_dict["USER"]
        with database_role(
            "partman",
            "GRANT CREATE, USAGE ON SCHEMA public TO {}",
            f"ALTER TABLE {TABLE} OWNER TO {{}}",
            "GRANT REFERENCES ON made_group TO {}",
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {{}} GRANT ALL ON TABLES TO {owner}",
        ) as role:
            with as_role(role):
                execute(
                    "CREATE TABLE made_new (LIKE made_rows INCLUDING ALL)",
                    "ALTER TABLE made_rows ATTACH PARTITION made_new FOR VALUES FROM (20) TO (30)",
                    "CREATE TABLE made_next PARTITION OF made_rows FOR VALUES FROM (30) TO (40)",
                    "ALTER TABLE made_rows DETACH PARTITION made_low",
                )
            reasons(view)
            tasks.maintain()
            reasons(view)
            with as_role(role):
                execute("UPDATE made_rows SET k = 25, v = 0 WHERE n = 3")
            assert reasons(view) == {""}
            execute(f"ALTER TABLE {TABLE} OWNER TO {owner}")


def test_a_view_of_one_partition(view: type[Any]) -> None:
    """Also writes to the whole table change it."""
    of_part = view_of_part("made_high")
    with made(of_part):
        changes.install(engine.alias())
        refreshed(of_part)
        assert of_part.is_fresh()

        for statement in ("UPDATE made_rows SET v = 1", "UPDATE made_high_low SET v = 2"):
            execute(statement)
            assert not of_part.is_fresh()
            assert {each.full_refresh_reason for each in run(of_part).runs.all()} == {""}
        execute("UPDATE made_low SET v = 3")
        assert of_part.is_fresh()


def test_the_whole_table_has_one_statement_more(view: type[Any]) -> None:
    """A table without partitions has none: there `with_partitions` asks nothing."""
    dialect = triggers_of(engine.alias())
    assert dialect.with_partitions({"x": ["matviews_1_2_insert:3.4"]}) == {
        "x": ["matviews_1_2_insert:3.4"]
    }
    [record] = TrackedTable.objects.all()
    assert all(len(made.partition(":")[2]) == 32 for made in record.triggers)


TABLES = st.sampled_from(["made_rows", "made_low", "made_high", "made_high_low", "made_high_rest"])
GROUPS, PLACES = st.integers(0, 9), st.integers(0, 19)
STEPS = st.one_of(
    st.builds("INSERT INTO made_rows VALUES (100, {}, {}, {})".format, PLACES, GROUPS, GROUPS),
    st.builds("UPDATE {} SET v = v + 1 WHERE n = {}".format, TABLES, GROUPS),
    st.builds("UPDATE {} SET v = 1 WHERE id % 7 = {}".format, TABLES, GROUPS),
    st.builds("UPDATE made_rows SET k = {} WHERE n = {}".format, PLACES, GROUPS),
    st.builds("UPDATE made_rows SET k = {}, n = {} WHERE n = {}".format, PLACES, GROUPS, GROUPS),
    st.builds("UPDATE made_high SET n = {} WHERE v = {}".format, GROUPS, GROUPS),
    st.builds("DELETE FROM {} WHERE id % 9 = {}".format, TABLES, GROUPS),
    st.builds("TRUNCATE {}".format, TABLES),
    st.builds(
        "MERGE INTO made_rows USING (VALUES ({})) s (x) ON n = x AND id % 3 = 1 "
        "WHEN MATCHED THEN UPDATE SET k = {}, v = v + 1".format, GROUPS, PLACES,
    ),
    st.just("REFRESH"),
)  # fmt: skip


@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
@given(steps=st.lists(STEPS, min_size=3, max_size=12))
def test_any_writes(view: type[Any], steps: list[str]) -> None:
    for step in steps:
        if step == "REFRESH":
            reasons(view)
        else:
            with suppress(IntegrityError):  # a moved row may be there already
                execute(step)
    reasons(view)


def test_maintenance_does_not_wait_for_a_locked_partition(view: type[Any]) -> None:
    locked, done = threading.Event(), threading.Event()

    def lock() -> None:
        with transaction.atomic():
            execute("LOCK TABLE made_low IN ACCESS EXCLUSIVE MODE")
            locked.set()
            done.wait()

    thread = in_another_connection(lock)
    try:
        assert locked.wait(30)
        execute("SET lock_timeout = '1s'")
        assert changes.finish(engine.alias()) == {}
    finally:
        done.set()
        thread.join()
        execute("RESET lock_timeout")


def test_writers_go_on_after_a_schema_was_renamed(alone: None) -> None:
    with (
        defined(
            "CREATE SCHEMA made_here",
            "CREATE TABLE made_here.a (n integer, v integer) PARTITION BY RANGE (n)",
            "CREATE TABLE made_here.a1 PARTITION OF made_here.a FOR VALUES FROM (0) TO (9)",
            undone="DROP SCHEMA IF EXISTS made_here, made_there CASCADE",
        ),
        made(view_of_part('made_here"."a')),
    ):
        changes.install(engine.alias())
        execute("ALTER SCHEMA made_here RENAME TO made_there")

        execute("INSERT INTO made_there.a VALUES (2, 1)", "INSERT INTO made_there.a1 VALUES (2, 1)")


def test_a_foreign_table_anywhere_in_the_tree_is_not_tracked(alone: None) -> None:
    with (
        defined(
            "CREATE EXTENSION file_fdw",
            "CREATE SERVER made_server FOREIGN DATA WRAPPER file_fdw",
            "CREATE TABLE made_rows (n integer, v integer) PARTITION BY RANGE (n)",
            "CREATE TABLE made_low PARTITION OF made_rows FOR VALUES FROM (0) TO (5)",
            "CREATE FOREIGN TABLE made_far PARTITION OF made_rows FOR VALUES FROM (5) TO (9) "
            "SERVER made_server OPTIONS (filename '/dev/null')",
            undone=("DROP TABLE made_rows CASCADE", "DROP EXTENSION file_fdw CASCADE"),
        ),
        made(view_of_part("made_low")),
    ):
        assert list(changes.install(engine.alias())) == ["made_low"]
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_trigger WHERE tgrelid = 'made_rows'::regclass")
            assert cursor.fetchall() == []
