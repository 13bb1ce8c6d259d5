"""Rows that foreign keys change: on MariaDB and MySQL they fire no trigger of their table."""

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from django.db import IntegrityError, connection, models, transaction
from django.db.models import Count, F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matviews import changes, engine, tasks
from matviews.databases import triggers_of
from matviews.models import Change, TrackedTable, ViewSums
from tests.helpers.engine import in_another_connection
from tests.helpers.roles import as_role, database_role
from tests.helpers.tables import defined, derived_view, execute, key, made, model, tracked_view_of
from tests.helpers.view_classes import run

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

on_mysql = pytest.mark.only_on("mariadb", reason="MariaDB's and MySQL's own")

INNODB = "ENGINE = InnoDB" if connection.vendor == "mysql" else ""
# Rows refer to others, these to owners, and rows to rows.
TABLES = ("made_rows", "made_other", "made_owner")


def tables(of_rows: str, of_other: str = "", of_self: str = "") -> tuple[str, ...]:
    """Statements that create the tables; what the foreign keys do, "" for none."""
    keys = [(of_other, "owner", "made_owner (id)"), (of_rows, "n", "made_other (n)")]
    other, rows = (
        f", FOREIGN KEY ({column}) REFERENCES {on} {action}" if action else ""
        for action, column, on in keys
    )
    own = f", FOREIGN KEY (up) REFERENCES made_rows (id) {of_self}" if of_self else ""
    return (
        f"CREATE TABLE made_owner (id bigint PRIMARY KEY) {INNODB}",
        f"CREATE TABLE made_other (n bigint PRIMARY KEY, owner bigint{other}) {INNODB}",
        f"CREATE TABLE made_rows (id bigint PRIMARY KEY, n bigint, up bigint{rows}{own}) {INNODB}",
        "INSERT INTO made_owner VALUES (1), (2), (3)",
        "INSERT INTO made_other VALUES (1, 1), (2, 2), (3, 3)",
        "INSERT INTO made_rows VALUES (1, 1, NULL), (2, 1, 1), (3, 2, 2), (4, 3, NULL)",
    )


GONE = tuple(f"DROP TABLE {table}" for table in TABLES)


@pytest.fixture
def grouped() -> Any:
    """A view of how many rows there are of each `n`; without tables."""
    rows = model("Rows", n=models.BigIntegerField(), meta={"db_table": TABLES[0], "managed": False})
    return derived_view(
        lambda cls: (
            rows.objects.filter(n__isnull=False).values(ref=F("n")).annotate(rows=Count("*"))
        ),
        ref=key(),
        rows=models.IntegerField(),
    )


def reasons(view: type[Any]) -> set[str]:
    """Refresh a view, which is right then; why its phases were full, "" for one that was not."""
    refresh = run(view)
    assert refresh.state == "succeeded", refresh.error
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT n, count(*) FROM made_rows WHERE n IS NOT NULL GROUP BY n ORDER BY n"
        )
        assert list(view.objects.order_by("ref").values_list("ref", "rows")) == list(
            map(tuple, cursor.fetchall())
        )
    return {each.full_refresh_reason for each in refresh.runs.all()}


@pytest.fixture
def tracked(grouped: Any, request: pytest.FixtureRequest) -> Iterator[type[Any]]:
    """A tracked view of the tables that the parameter creates, up to date."""
    with defined(*tables(*request.param), undone=GONE), made(grouped):
        changes.install(engine.alias())
        reasons(grouped)
        assert grouped.is_fresh()
        yield grouped
        changes.remove(engine.alias())


def case(*args: Any, **options: Any) -> Any:
    return pytest.param(*args, **options)


CASCADES, NULLS = "ON DELETE CASCADE ON UPDATE CASCADE", "ON DELETE SET NULL ON UPDATE SET NULL"
DELETE, UPDATE = "DELETE FROM made_other WHERE n = 1", "UPDATE made_other SET n = 5 WHERE n = 1"
OF_OWNER = "DELETE FROM made_owner WHERE id = 1"


class TestWhatIsReached:
    @pytest.mark.parametrize(
        ("tracked", "change"),
        [
            ((CASCADES,), DELETE),
            ((CASCADES,), UPDATE),
            ((NULLS,), DELETE),
            ((NULLS,), UPDATE),
            ((CASCADES, CASCADES), OF_OWNER),
            ((NULLS, CASCADES), OF_OWNER),
            (("", "", NULLS), "DELETE FROM made_rows WHERE id = 1"),
        ],
        indirect=["tracked"],
    )
    def test_is_refreshed_by_keys(self, tracked: type[Any], change: str) -> None:
        execute(change)

        assert reasons(tracked) == {""}
        assert tracked.is_fresh()

    @pytest.mark.parametrize(
        ("tracked", "change"),
        [
            ((CASCADES, "ON DELETE CASCADE", CASCADES), "DELETE FROM made_rows WHERE id = 1"),
            ((CASCADES, "ON DELETE CASCADE", CASCADES), DELETE),
            ((CASCADES, "ON DELETE CASCADE", CASCADES), OF_OWNER),
        ],
        indirect=["tracked"],
    )
    def test_over_any_number_of_rows(self, tracked: type[Any], change: str) -> None:
        """A tree: on MariaDB, all keys are looked at."""
        execute(change)

        assert (reasons(tracked) == {""}) == (connection.vendor != "mysql")
        assert tracked.is_fresh()

    @pytest.mark.parametrize("tracked", [(CASCADES, CASCADES, CASCADES)], indirect=True)
    @settings(max_examples=20, suppress_health_check=list(HealthCheck), deadline=None)
    @given(data=st.data())
    def test_whatever_is_written(self, tracked: type[Any], data: st.DataObject) -> None:
        number = st.integers(1, 6)
        step = st.one_of(
            st.builds("INSERT INTO made_owner VALUES ({})".format, number),
            st.builds("INSERT INTO made_other VALUES ({}, {})".format, number, number),
            st.builds("INSERT INTO made_rows VALUES ({}, {}, {})".format, number, number, number),
            st.builds("DELETE FROM {} WHERE {{}} = {}".format, st.sampled_from(TABLES), number),
            st.builds("UPDATE made_other SET n = {} WHERE n = {}".format, number, number),
            st.builds("UPDATE made_rows SET up = {} WHERE id = {}".format, number, number),
        )
        for statement in data.draw(st.lists(step, min_size=3, max_size=9)):
            column = "n" if "made_other" in statement else "id"
            with suppress(IntegrityError):
                execute(statement.format(column))
        reasons(tracked)


@on_mysql
class TestOnMariaDB:
    @pytest.mark.parametrize("tracked", [(CASCADES,)], indirect=True)
    def test_a_row_that_was_committed_after_the_snapshot(self, tracked: type[Any]) -> None:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM made_rows")
            in_another_connection(
                lambda: execute("INSERT INTO made_rows VALUES (9, 1, NULL)")
            ).join()
            execute("DELETE FROM made_rows WHERE id < 3", DELETE)

        links = Change.objects.filter(table="made_rows").values_list("links", flat=True)
        assert len(links) == 4  # of the row that came, one when it came, and one when it went
        assert reasons(tracked) == {""}

    @pytest.mark.parametrize("tracked", [(CASCADES,)], indirect=True)
    def test_a_statement_that_reads_the_rows_as_well(self, tracked: type[Any]) -> None:
        execute("DELETE FROM made_other WHERE n IN (SELECT n FROM made_rows WHERE id = 3)")

        assert reasons(tracked) == {""}

    @pytest.mark.parametrize("tracked", [(CASCADES,)], indirect=True)
    def test_a_trigger_of_the_other_table_is_dropped(self, tracked: type[Any]) -> None:
        [name] = [
            name
            for name in triggers_of(engine.alias()).installed_triggers()["made_rows"]
            if "_delete_" in name
        ]
        execute(f"DROP TRIGGER {name}", DELETE)

        assert not tracked.is_fresh()
        assert reasons(tracked) == {"no triggers log all changes of made_rows"}
        assert "out of date" in next(changes.find_problems(engine.alias()))
        changes.install(engine.alias())
        reasons(tracked)
        assert tracked.is_fresh()

    def test_a_value_log_is_gone(self) -> None:
        """What a second foreign key reaches is logged all the same."""
        keys = ", ".join(
            f"FOREIGN KEY ({column}) REFERENCES made_other (n) {CASCADES}" for column in "nm"
        )
        created = (
            f"CREATE TABLE made_other (n bigint PRIMARY KEY) {INNODB}",
            f"CREATE TABLE made_rows (id bigint PRIMARY KEY, n bigint, m bigint, {keys}) {INNODB}",
            "INSERT INTO made_other VALUES (1), (2), (3)",
            "INSERT INTO made_rows VALUES (1, 1, 2), (2, 2, 1), (3, 1, 3), (4, 2, 3)",
        )
        rows = model(
            "Rows", n=models.BigIntegerField(), meta={"db_table": "made_rows", "managed": False}
        )
        view = derived_view(
            lambda cls: rows.objects.values(ref=F("n")).annotate(rows=Count("*")),
            options={"additive": True},
            ref=key(),
            rows=models.IntegerField(),
        )
        with (
            defined(*created, undone=("DROP TABLE made_rows", "DROP TABLE made_other")),
            made(view),
        ):
            changes.install(engine.alias())
            reasons(view)
            execute(f"DROP TABLE {ViewSums.objects.get().log}", DELETE)

            reasons(view)

            changes.remove(engine.alias())

    def test_a_column_that_is_computed_from_the_foreign_key(self) -> None:
        keys = tables(CASCADES)
        computed = "ALTER TABLE made_rows ADD COLUMN m bigint AS (n + 1) VIRTUAL"
        rows = model("Computed", m=key(), meta={"db_table": "made_rows", "managed": False})
        view = derived_view(
            lambda cls: rows.objects.values(ref=F("m")).annotate(rows=Count("*")),
            ref=key(),
            rows=models.IntegerField(),
        )
        with defined(*keys, computed, undone=GONE), made(view):
            changes.install(engine.alias())
            run(view)

            execute(UPDATE)

            run(view)
            assert dict(view.objects.values_list("ref", "rows")) == {3: 1, 4: 1, 6: 2}

    def test_a_table_that_is_gone_stops_no_write(self) -> None:
        made_tables = tables(CASCADES)
        with defined(*made_tables, undone=GONE[1:]), tracked_view_of("made_rows"):
            execute("DROP TABLE made_rows", DELETE, "UPDATE made_other SET n = 7 WHERE n = 2")

    @pytest.mark.parametrize("tracked", [(CASCADES,)], indirect=True)
    def test_a_column_that_is_gone_stops_no_write(self, tracked: type[Any]) -> None:
        execute("ALTER TABLE made_rows DROP FOREIGN KEY made_rows_ibfk_1, DROP COLUMN n")

        execute(DELETE)

        assert Change.objects.filter(table="made_rows", links__isnull=True).exists()

    @pytest.mark.parametrize("tracked", [("",)], indirect=True)
    def test_a_foreign_key_that_acts_is_added(
        self, tracked: type[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        execute(f"ALTER TABLE made_rows ADD FOREIGN KEY (n) REFERENCES made_other (n) {CASCADES}")

        tasks.maintain()

        assert "table=made_rows reason=" in caplog.text
        execute(DELETE)
        assert reasons(tracked) == {"no triggers log all changes of made_rows"}


@on_mysql
@pytest.mark.parametrize("sees", ["the table's number", "the next number"])
def test_truncate_is_noticed_by_maintenance(sees: str, caplog: pytest.LogCaptureFixture) -> None:
    database = connection.settings_dict["NAME"]
    with (
        defined(
            f"CREATE TABLE made_rows (id bigint AUTO_INCREMENT PRIMARY KEY, n integer) {INNODB}",
            "INSERT INTO made_rows (n) VALUES (1), (2)",
            undone="DROP TABLE made_rows",
        ),
        tracked_view_of("made_rows") as view,
        database_role("maintainer", f"GRANT ALL ON {database}.* TO {{}}") as role,
    ):
        run(view)
        with as_role(role) if sees == "the next number" else nullcontext():
            tasks.maintain()
            assert view.is_fresh()
            execute("INSERT INTO made_rows (n) VALUES (3)", "ALTER TABLE made_rows ADD KEY (n)")
            run(view)
            tasks.maintain()
            run(view)
            assert view.objects.count() == 3

            execute("TRUNCATE made_rows")
            tasks.maintain()

            assert "table=made_rows" in caplog.text
            assert not view.is_fresh()
            run(view)
            assert not view.objects.exists()
            tasks.maintain()
            assert view.is_fresh()


@on_mysql
def test_truncate_is_noticed_after_another_view_of_the_table_was_migrated() -> None:
    made_rows = f"CREATE TABLE `made-rows` (id bigint AUTO_INCREMENT PRIMARY KEY, n int) {INNODB}"
    with (
        defined(
            made_rows, "INSERT INTO `made-rows` (n) VALUES (1)", undone="DROP TABLE `made-rows`"
        ),
        tracked_view_of("made-rows") as view,
    ):
        run(view)
        tasks.maintain()
        assert view.is_fresh()

        execute("TRUNCATE `made-rows`")
        record = TrackedTable.objects.get(table="made-rows")
        TrackedTable.objects.update(views=[*record.views, 10**6])
        changes.install(engine.alias())
        tasks.maintain()

        assert not view.is_fresh()
