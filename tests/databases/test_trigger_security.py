"""Trigger functions run with their owner's rights: nobody else gets code of theirs into them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, timedelta
from typing import Any

import pytest
from django.apps import apps
from django.core.checks import Tags, run_checks
from django.db import DatabaseError, connection, models, transaction
from django.db.models import Count
from django.db.models.signals import post_migrate

from matviews import changes, engine, untracked
from matviews.databases import triggers_of
from matviews.databases.trigger_spec import TriggerSpec
from matviews.exceptions import NotPermitted
from matviews.models import Change, LogSecret, TrackedTable
from matviews.registry import registry
from tests.helpers.roles import as_role, database_role, session_of
from tests.helpers.tables import (
    defined,
    derived_view,
    execute,
    made,
    model,
    refreshed,
    tracked_view_of,
)

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

on_postgres = pytest.mark.only_on("postgres", reason="PostgreSQL's own")
on_sqlite = pytest.mark.only_on("sqlite", reason="SQLite's own")
without_sqlite = pytest.mark.only_on("postgres", "mariadb", reason="SQLite has no roles")

ROWS = "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer)"
GONE = "DROP TABLE IF EXISTS made_rows"
PROOF = "CREATE TABLE made_proof (who text)"  # for the owner alone

Run = Callable[..., Any]


def query(sql: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def functions() -> list[str]:
    """The names of those that triggers call."""
    found = query(
        "SELECT proname FROM pg_proc WHERE proname LIKE 'matviews%' AND pronargs = 0 ORDER BY 1"
    )
    return [name for (name,) in found]


def all_functions() -> list[str]:
    """With the types of their arguments."""
    found = query(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'matviews%' ORDER BY 1"
    )
    return [name for (name,) in found]


def function_of(event: str) -> str:
    [name] = [name for name in functions() if name.endswith(f"_{event}")]
    return name


def logged() -> list[Any]:
    return list(Change.objects.order_by("pk").values_list("table", "links"))


def warnings(number: str) -> list[str]:
    messages = run_checks(tags=[Tags.database], databases=["default"])
    return [each.msg for each in messages if each.id == f"matviews.{number}"]


@contextmanager
def attacker(*grants: str) -> Iterator[Run]:
    """The session of a role that may log in and has these grants; the tracked table is there."""
    with (
        defined(ROWS, PROOF, undone=(GONE, "DROP TABLE made_proof")),
        database_role("attacker", *grants) as role,
        tracked_view_of("made_rows"),
        session_of(role) as run,
    ):
        yield run


def body(returned: str) -> str:
    """What a function of the attacker does: leave a proof that the owner has run it."""
    return f"BEGIN INSERT INTO public.made_proof VALUES (current_user); RETURN {returned}; END"


def trap(run: Run, schema: str = "pg_temp") -> None:
    """An enum with all casts and an operator that a user may define."""
    kind = f"{schema}.trap"
    run(f"CREATE TYPE {kind} AS ENUM ('x', 'y')")
    for target, value, context in (
        ("json", "'1'::json", "AS IMPLICIT"),
        ("jsonb", "'1'::jsonb", "AS ASSIGNMENT"),
        ("text", "'1'::text", "AS IMPLICIT"),
        ("varchar", "'1'::varchar", ""),
    ):
        name = f"{schema}.to_{target}"
        run(
            f"CREATE FUNCTION {name}({kind}) RETURNS {target} LANGUAGE plpgsql "
            f"AS $$ {body(value)} $$"
        )
        run(f"CREATE CAST ({kind} AS {target}) WITH FUNCTION {name}({kind}) {context}")
    run(
        f"CREATE FUNCTION {schema}.trap_same({kind}, {kind}) RETURNS boolean LANGUAGE plpgsql "
        f"AS $$ {body('true')} $$"
    )
    run(
        f"CREATE OPERATOR {schema}.= (leftarg = {kind}, rightarg = {kind}, "
        f"function = {schema}.trap_same)"
    )


@on_postgres
class TestAttack:
    def test_a_role_that_may_log_in_attaches_no_function(self) -> None:
        with attacker() as run:
            trap(run)
            driver: Any = connection.Database  # type: ignore[attr-defined]
            run("CREATE TEMP TABLE made_rows (id pg_temp.trap, n pg_temp.trap)")
            for event in ("insert", "update", "delete", "truncate"):
                with pytest.raises(driver.Error, match="permission denied"):
                    _attach(run, event, "made_rows")

    @pytest.mark.parametrize("name", ["made_rows", "others"])
    def test_a_function_that_is_attached_to_a_temporary_table_does_nothing(self, name: str) -> None:
        """As where somebody has granted EXECUTE."""
        with attacker() as run:
            execute(
                f"GRANT EXECUTE ON FUNCTION {', '.join(f'{n}()' for n in functions())} TO PUBLIC"
            )
            trap(run)
            run(f"CREATE TEMP TABLE {name} (id pg_temp.trap, n pg_temp.trap)")
            for event in ("insert", "update", "delete", "truncate"):
                _attach(run, event, name)

            run(f"INSERT INTO pg_temp.{name} VALUES ('x', 'x')")
            run(f"UPDATE pg_temp.{name} SET n = 'y'::pg_temp.trap, id = 'y'::pg_temp.trap")
            run(f"DELETE FROM pg_temp.{name}")
            run(f"TRUNCATE pg_temp.{name}")

            assert query("SELECT * FROM made_proof") == []
            assert logged() == []

    @pytest.mark.parametrize(
        "kind", ["made_own.trap", "made_own.checked", "made_own.pair", "made_own.trap[]"]
    )
    def test_the_owner_of_a_watched_table_retypes_its_columns(self, kind: str) -> None:
        with attacker(
            "CREATE SCHEMA made_own AUTHORIZATION {}",
            "ALTER TABLE made_rows OWNER TO {}",
        ) as run:
            trap(run, "made_own")
            run("CREATE DOMAIN made_own.checked AS made_own.trap")
            run("CREATE TYPE made_own.pair AS (a made_own.trap, b made_own.trap)")
            one, two = (
                {
                    "made_own.trap[]": f"ARRAY['{x}']::made_own.trap[]",
                    "made_own.pair": f"ROW('{x}', 'x')::made_own.pair",
                }.get(kind, f"'{x}'::{kind}")
                for x in "xy"
            )
            run("ALTER TABLE made_rows DROP CONSTRAINT made_rows_pkey")
            for column in ("id", "n"):
                run(f"ALTER TABLE made_rows ALTER {column} DROP NOT NULL")
                run(f"ALTER TABLE made_rows ALTER {column} TYPE {kind} USING NULL::{kind}")
            run("GRANT SELECT ON made_rows TO PUBLIC")
            for _recreated in range(2):
                run(f"INSERT INTO made_rows VALUES ({one}, {one})")
                run(f"UPDATE made_rows SET id = {two}, n = {two}")
                run("DELETE FROM made_rows")

                assert query("SELECT * FROM made_proof") == []
                assert len(logged()) == 3
                Change.objects.all().delete()
                changes.install(engine.alias())

    def test_names_in_public_and_among_the_temporary_shadow_none_of_ours(self) -> None:
        shadows = {
            "jsonb_build_array(bigint)": "jsonb", "jsonb_build_array(text)": "jsonb",
            "concat(bigint)": "text", "concat(integer)": "text", "octet_length(text)": "integer",
            "strpos(text, text)": "integer", "split_part(text, text, integer)": "text",
            "current_setting(text, boolean)": "text", "starts_with(text, text)": "boolean",
            "jsonb_cat(jsonb, jsonb)": "jsonb", "jsonb_agg_state(jsonb, jsonb)": "jsonb",
        }  # fmt: skip
        with attacker("GRANT CREATE ON SCHEMA public TO {}") as run:
            for schema in ("public", "pg_temp"):
                for function, returned in shadows.items():
                    run(
                        f"CREATE FUNCTION {schema}.{function} RETURNS {returned} LANGUAGE plpgsql "
                        f"AS $$ {body('NULL')} $$"
                    )
                run(
                    f"CREATE OPERATOR {schema}.|| (leftarg = jsonb, rightarg = jsonb, "
                    f"function = {schema}.jsonb_cat)"
                )
                run(f"CREATE DOMAIN {schema}.jsonb AS pg_catalog.jsonb CHECK (VALUE IS NULL)")
                run(f"CREATE DOMAIN {schema}.text AS pg_catalog.text CHECK (VALUE IS NULL)")
            run('CREATE TEMP TABLE matviews_change ("table" varchar, links pg_catalog.jsonb)')
            run("CREATE TEMP TABLE matviews_links (id int, n int)")
            execute("GRANT ALL ON made_rows TO PUBLIC")
            run("SET search_path = pg_temp, public")

            run("INSERT INTO public.made_rows VALUES (1, 1)")
            run("UPDATE public.made_rows SET n = 2")
            run("DELETE FROM public.made_rows")

            assert query("SELECT * FROM made_proof") == []
            assert [table for table, _links in logged()] == ["made_rows"] * 3

    def test_a_function_that_somebody_has_made_before_us_is_not_taken_over(self) -> None:
        """Its name can be guessed; replaced, it would still be theirs."""
        with attacker("GRANT CREATE ON SCHEMA public TO {}") as run:
            name = function_of("insert")
            changes.remove(engine.alias())
            run(
                f"CREATE FUNCTION public.{name}() RETURNS trigger LANGUAGE plpgsql "
                f"AS $$ BEGIN RETURN NULL; END $$"
            )

            changes.install(engine.alias())

            owners = query(
                "SELECT DISTINCT proowner = "
                "(SELECT oid FROM pg_roles WHERE rolname = current_user) "
                "FROM pg_proc WHERE proname LIKE 'matviews%'"
            )
            assert owners == [(True,)]

    def test_nor_what_whoever_migrates_or_works_asks_of_the_catalogs(self) -> None:
        """Overloads that fit better than PostgreSQL's own: exact types, exact argument counts."""
        shadows = {
            "concat(name, text, oid, text, xid)": "text", "concat(text, varchar, text)": "text",
            "btrim(varchar, text)": "text", "quote_ident(name)": "text",
            "to_regclass(varchar)": "regclass", "string_agg(text, varchar)": "text",
            "has_table_privilege(oid, regclass, text)": "boolean",
            "has_table_privilege(oid, varchar, text)": "boolean",
            "has_any_column_privilege(oid, regclass, text)": "boolean",
            "same(oid, regclass)": "boolean", "same(oid, regnamespace)": "boolean",
            "same(name, varchar)": "boolean", "same(varchar, text)": "boolean",
        }  # fmt: skip
        with attacker("GRANT CREATE ON SCHEMA public TO {}") as run:
            for function, returned in shadows.items():
                run(
                    f"CREATE FUNCTION public.{function} RETURNS {returned} LANGUAGE plpgsql "
                    f"AS $$ {body('NULL')} $$"
                )
            for sign, left, right in (
                ("=", "oid", "regclass"), ("=", "oid", "regnamespace"),
                ("~~", "name", "varchar"), ("~~", "varchar", "text"),
            ):  # fmt: skip
                run(
                    f"CREATE OPERATOR public.{sign} (leftarg = {left}, rightarg = {right}, "
                    f"function = public.same)"
                )
            view: Any = registry.find("shapes.Made").model

            execute("INSERT INTO made_rows VALUES (1, 1)")
            changes.install(engine.alias())
            changes.mark_missing_triggers(engine.alias())
            changes.script(engine.alias())
            warnings("W013")
            engine.missing_rights()
            refreshed(view)
            assert not list(changes.find_problems(engine.alias()))
            view.is_fresh()
            changes.remove(engine.alias())

            assert query("SELECT * FROM made_proof") == []

    @pytest.mark.parametrize("owner", ["attacker", "migrator"])
    def test_triggers_that_call_another_function_are_not_ours(self, owner: str) -> None:
        """The owner of a tracked table may replace its triggers by others with the same names.

        They may call any function that he may execute, such as one that an extension made.
        """
        with attacker(
            "GRANT CREATE ON SCHEMA public TO {}", "ALTER TABLE made_rows OWNER TO {}"
        ) as run:
            view: Any = registry.find("shapes.Made").model
            silent = (
                "CREATE FUNCTION public.silent() RETURNS trigger LANGUAGE plpgsql "
                "AS 'BEGIN RETURN NULL; END'"
            )
            if owner == "attacker":
                run(silent)
            else:
                execute(silent)
            ours = functions()
            for name in ours:
                run(f"DROP TRIGGER {name} ON made_rows")
                run(
                    f"CREATE TRIGGER {name} AFTER {name.split('_')[-1]} ON made_rows "
                    f"FOR EACH STATEMENT EXECUTE FUNCTION public.silent()"
                )
            run("GRANT ALL ON made_rows TO PUBLIC")

            problems = list(changes.find_problems(engine.alias()))
            changes.mark_missing_triggers(engine.alias())
            run("INSERT INTO made_rows VALUES (1, 1)")

            assert problems[0] == "The triggers on made_rows (read by shapes.Made) are missing."
            assert not view.is_fresh()
            refreshed(view)
            assert view.objects.count() == 1

            assert changes.install(engine.alias()) == {}
            run("INSERT INTO made_rows VALUES (2, 2)")
            assert len(logged()) == 1
            if owner == "migrator":
                execute("DROP FUNCTION public.silent()")

    def test_functions_of_others_that_are_named_like_ours_are_left_to_them(self) -> None:
        with (
            attacker("GRANT CREATE ON SCHEMA public TO {}") as run,
            database_role("migrator") as migrator,
        ):
            name = "matviews_00000000_11111111_insert"
            run(
                f"CREATE FUNCTION public.{name}() RETURNS trigger LANGUAGE plpgsql "
                f"AS $$ {body('NULL')} $$"
            )
            run(
                f"CREATE FUNCTION public.{name}(regclass) RETURNS boolean LANGUAGE plpgsql "
                f"AS $$ {body('true')} $$"
            )
            execute(f"SET ROLE {migrator}")
            try:
                found = triggers_of(engine.alias()).orphans()
                exposed = triggers_of(engine.alias()).exposed()
            finally:
                execute("RESET ROLE")

            assert (found, exposed) == (set(), [])
            assert query("SELECT * FROM made_proof") == []

    def test_a_writers_settings_change_nothing_that_is_logged(self) -> None:
        with attacker("GRANT ALL ON made_rows TO {}") as run:
            for setting in (
                "DateStyle = 'SQL, DMY'", "IntervalStyle = 'sql_standard'",
                "TimeZone = 'Asia/Tokyo'",
                "bytea_output = 'escape'", "extra_float_digits = -15", "transform_null_equals = on",
                "standard_conforming_strings = off", "plpgsql.extra_errors = 'all'",
            ):  # fmt: skip
                run(f"SET {setting}")
            run("INSERT INTO made_rows VALUES (1, NULL)")

            assert logged() == [("made_rows", [["id"], ["1"]])]


def _attach(run: Run, event: str, table: str) -> None:
    transitions = {
        "insert": "REFERENCING NEW TABLE AS matviews_after",
        "update": "REFERENCING OLD TABLE AS matviews_before NEW TABLE AS matviews_after",
        "delete": "REFERENCING OLD TABLE AS matviews_before",
    }
    run(
        f"CREATE TRIGGER evil_{event} AFTER {event} ON pg_temp.{table} "
        f"{transitions.get(event, '')} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION public.{function_of(event)}()"
    )


@on_postgres
class TestFunctionsThatAnyRoleMayCall:
    @pytest.mark.parametrize(
        ("arguments", "right"),
        [("()", "SELECT"), ("(regclass)", "SELECT (value)"), ("()", "INSERT")],
    )
    def test_the_check_names_them_and_installing_mends_them(
        self, arguments: str, right: str
    ) -> None:
        with defined(ROWS, undone=GONE), tracked_view_of("made_rows"):
            assert warnings("W013") == []
            name = functions()[0]
            execute(f"GRANT EXECUTE ON FUNCTION {name}{arguments} TO PUBLIC")
            execute(f"GRANT {right} ON matviews_logsecret TO PUBLIC")

            assert [message.split(";")[0] for message in warnings("W013")] == [
                f"Any role may use the function {name}",
                "Any role may use the table matviews_logsecret",
            ]
            execute(f"REVOKE {right} ON matviews_logsecret FROM PUBLIC")
            changes.install(engine.alias())

            assert warnings("W013") == []

    def test_a_table_that_was_renamed_for_a_while_is_taken_to_have_changed(self) -> None:
        with defined(ROWS, undone=GONE), tracked_view_of("made_rows") as view:
            refreshed(view)
            execute("ALTER TABLE made_rows RENAME TO made_others")
            execute("INSERT INTO made_others VALUES (1, 1)")
            execute("ALTER TABLE made_others RENAME TO made_rows")

            refreshed(view)

            assert view.objects.count() == 1


def _mutes() -> list[str]:
    """What a writer can compute by itself."""
    digest = TrackedTable.objects.get().triggers[0].split("_")[1]
    return [digest, f" {digest}", f"{digest} {digest}", f"{'0' * 64} {digest}", f"NULL {digest}"]


def _set(run: Run, value: str) -> None:
    variable = "@matviews_suppressed =" if connection.vendor == "mysql" else "matviews.suppressed ="
    run(f"SET {variable} '{value}'")


def reads_of_the_secret() -> int:
    """How often this transaction has read its table; on MariaDB, this session any table."""
    if connection.vendor == "mysql":
        return sum(int(count) for _name, count in query("SHOW SESSION STATUS LIKE 'Handler_read%'"))
    [(scans,)] = query(
        "SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables "
        f"WHERE relname = '{LogSecret._meta.db_table}'"
    )
    return int(scans)


class TestMute:
    @without_sqlite
    def test_a_writer_cannot_switch_logging_off(self) -> None:
        with (
            defined(ROWS, undone=GONE),
            database_role("writer", "GRANT INSERT ON made_rows TO {}") as role,
            tracked_view_of("made_rows"),
            session_of(role) as run,
        ):
            with untracked("shapes.Rows"):
                pass
            Change.objects.all().delete()
            for number, value in enumerate(_mutes()):
                _set(run, value)
                run(f"INSERT INTO made_rows VALUES ({number}, 1)")
                assert len(logged()) == number + 1, value

    @without_sqlite
    def test_nor_read_the_secret(self) -> None:
        with (
            defined(ROWS, undone=GONE),
            database_role("writer", "GRANT INSERT ON made_rows TO {}") as role,
            tracked_view_of("made_rows"),
        ):
            assert LogSecret.objects.exists()
            with (
                as_role(role),
                pytest.raises(NotPermitted, match="the right to read matviews_logsecret"),
                untracked("shapes.Rows"),
            ):
                pass

    @without_sqlite
    def test_the_secret_is_read_only_where_a_writer_shows_something(self) -> None:
        with defined(ROWS, undone=GONE), tracked_view_of("made_rows"):
            found = []
            for number, shown in enumerate(["", "", _mutes()[3]]):
                with transaction.atomic():
                    _set(execute, shown)
                    before = reads_of_the_secret()
                    execute(f"INSERT INTO made_rows VALUES ({number}, 1)")
                    found.append(reads_of_the_secret() - before)
            _set(execute, "")

            _first, without, with_a_value = found
            assert with_a_value > without
            assert connection.vendor == "mysql" or without == 0

    def test_it_ends_with_its_block_and_with_what_is_rolled_back(self) -> None:
        with defined(ROWS, undone=GONE), tracked_view_of("made_rows"):
            insert = "INSERT INTO made_rows VALUES ({0}, {0})".format
            with suppress(ZeroDivisionError), untracked("shapes.Rows"):
                execute(insert(1))
                raise ZeroDivisionError
            assert logged() == []
            execute(insert(1))
            assert len(logged()) == 1
            with untracked("shapes.Rows"):
                execute(insert(2))
                with untracked("shapes.Rows"):
                    execute(insert(3))
                execute(insert(4))
            assert {str(links) for _table, links in logged()[1:]} == {"None"}
            execute(insert(5))
            assert logged()[-1][1] is not None

    def test_a_secret_that_is_gone_is_recreated(self) -> None:
        """As after a flush."""
        with defined(ROWS, undone=GONE), tracked_view_of("made_rows"):
            LogSecret.objects.all().delete()

            with untracked("shapes.Rows"):
                execute("INSERT INTO made_rows VALUES (1, 1)")

            assert logged() == [("made_rows", None)]

    def test_installing_makes_it_for_those_who_may_only_read_it(self) -> None:
        LogSecret.objects.all().delete()

        changes.install(engine.alias())

        assert len(LogSecret.objects.get().value) == 64


WIDE = "x" * 1_000_000


class TestStatementsThatAreTooBig:
    """Nothing that is written fails because of what is to be logged of it."""

    @pytest.fixture
    def texts(self) -> Iterator[type[Any]]:
        rows = model("Texts", label=models.TextField(), meta={"db_table": "made_texts"})
        view = derived_view(
            lambda cls: rows.objects.values("label").annotate(n=Count("pk")),
            label=models.CharField(max_length=200, unique=True), n=models.IntegerField(),
        )  # fmt: skip
        with made(rows, view):
            assert changes.install(engine.alias()) == {}
            assert TrackedTable.objects.get().links == ["label"]
            yield rows
            changes.remove(engine.alias())

    def reasons(self) -> set[str]:
        reasons = {links for _table, links in logged()}
        Change.objects.all().delete()
        return reasons

    def test_links_that_no_entry_could_hold(self, texts: type[Any]) -> None:
        too_long = {"a changed row has a value of more than 10,000 bytes that leads to keys"}
        made_of = "generate_series(1, 300)" if connection.vendor == "postgresql" else "(SELECT 1 g)"
        padded = "repeat('x', 1000000)" if connection.vendor != "sqlite" else f"'{WIDE}'"
        alias = " g" if connection.vendor == "postgresql" else " r"
        concat = f"CONCAT(g, {padded})" if connection.vendor != "sqlite" else f"g || {padded}"

        execute(f"INSERT INTO made_texts (label) SELECT {concat} FROM {made_of}{alias}")
        assert self.reasons() == too_long
        longer = "label || 'z'" if connection.vendor == "sqlite" else "CONCAT(label, 'z')"
        execute(f"UPDATE made_texts SET label = {longer}")
        assert self.reasons() == too_long
        execute("DELETE FROM made_texts")
        assert self.reasons() == too_long

    @on_postgres
    @pytest.mark.parametrize(
        ("count", "reason"),
        [
            (49_000, "what leads from the changed rows to keys is more than 16,000,000 bytes"),
            (60_000, "more than 50,000 rows have changed at once"),
        ],
    )
    def test_very_many_long_links(self, texts: type[Any], count: int, reason: str) -> None:
        execute(
            "INSERT INTO made_texts (label) SELECT g || repeat('x', 6000) "
            f"FROM generate_series(1, {count}) g"
        )
        assert self.reasons() == {reason}


@on_postgres
def test_writers_go_on_when_the_functions_owner_may_not_use_the_tables_schema_any_more() -> None:
    # given a table in another schema than the log, whose triggers a role made that is no superuser
    rows = "CREATE TABLE made_own.rows (id bigint PRIMARY KEY, n integer)"
    with (
        defined("CREATE SCHEMA made_own", rows, undone="DROP SCHEMA made_own CASCADE"),
        database_role("owner", "GRANT ALL ON ALL TABLES IN SCHEMA public TO {}") as owner,
        tracked_view_of('made_own"."rows'),
    ):
        execute(
            f"GRANT USAGE, CREATE ON SCHEMA public TO {owner}",
            f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {owner}",
            f"GRANT USAGE ON SCHEMA made_own TO {owner}",
            *(f"ALTER FUNCTION {each} OWNER TO {owner}" for each in all_functions()),
        )
        execute("INSERT INTO made_own.rows VALUES (1, 1)")
        assert logged()[-1][1] == [["id"], ["1"]]
        # when that role loses the right to the schema
        execute(f"REVOKE USAGE ON SCHEMA made_own FROM {owner}")
        connection.close()
        execute("INSERT INTO made_own.rows VALUES (2, 2)", "UPDATE made_own.rows SET n = 3")
        # then the writer's statement is done, and any row may have changed
        assert [links for _table, links in logged()[1:]] == [None, None]


on_mysql = pytest.mark.only_on("mariadb", reason="MariaDB's and MySQL's own")
WRITES = (
    "INSERT INTO made_rows VALUES (2, 2), (3, 3)",
    "UPDATE made_rows SET n = n + 1",
    "DELETE FROM made_rows",
)


@contextmanager
def writer_of_rows(*grants: str) -> Iterator[tuple[type[Any], Run]]:
    """A view, and the session of a role that may write to its table, and what else is granted."""
    with (
        defined(ROWS, "INSERT INTO made_rows VALUES (1, 1)", undone=GONE),
        database_role(
            "writer", "GRANT SELECT, INSERT, UPDATE, DELETE ON made_rows TO {}", *grants
        ) as role,
        tracked_view_of("made_rows") as view,
        session_of(role) as run,
    ):
        yield view, run


@on_mysql
@pytest.mark.parametrize("write", WRITES)
def test_a_writer_cannot_use_up_the_numbers_of_the_log(write: str) -> None:
    """A session sets the next auto-increment number, and the first table that counts takes it."""
    with writer_of_rows() as (_view, run):
        for number in (2**63 - 1, 2**64 - 1, 1):
            run(f"SET insert_id = {number}")
            run(write)
            run("SET insert_id = DEFAULT")
            run("REPLACE INTO made_rows VALUES (1, 1)")
            run("DELETE FROM made_rows WHERE id > 1")

        assert Change.objects.latest("pk").pk < 1_000_000_000
        execute("UPDATE made_rows SET n = 7")


@on_mysql
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("moment", "zone"), [(1, "SYSTEM"), (2**31 - 1, "+13:00")])
def test_a_writer_does_not_choose_when_a_change_was_logged(
    write: str, moment: int, zone: str
) -> None:
    with writer_of_rows() as (_view, run):
        run(f"SET time_zone = '{zone}', timestamp = {moment}")
        run(write)

        now = query("SELECT UTC_TIMESTAMP(6)")[0][0].replace(tzinfo=UTC)
        times = set(Change.objects.values_list("logged_at", flat=True))
        assert times
        assert all(timedelta() <= now - each < timedelta(minutes=1) for each in times)


def _replace(run: Run, name: str) -> None:
    """Replace our INSERT trigger by one that differs from it only in what it does."""
    [(created,)] = query(
        "SELECT UNIX_TIMESTAMP(created) FROM information_schema.triggers "
        f"WHERE trigger_schema = DATABASE() AND trigger_name = '{name}'"
    )
    run(f"SET timestamp = {created}")
    run(f"DROP TRIGGER {name}")
    run(f"CREATE TRIGGER {name} AFTER INSERT ON made_rows FOR EACH ROW SET @made = 1")
    run("SET timestamp = DEFAULT")


@on_mysql
def test_installing_replaces_a_trigger_of_our_name_that_does_something_else() -> None:
    # given somebody who may make triggers of the table, and has replaced one of ours
    with writer_of_rows("GRANT TRIGGER ON made_rows TO {}") as (view, run):
        refreshed(view)
        _replace(run, trigger_named("insert"))
        run("INSERT INTO made_rows VALUES (2, 2)")
        assert logged() == []
        problem = "The triggers on made_rows (read by shapes.Made) are out of date."
        assert list(changes.find_problems(engine.alias())) == [problem]
        assert "CREATE TRIGGER" in changes.script(engine.alias())
        # when whoever migrates installs the triggers
        changes.install(engine.alias())
        # then ours are there, and the view is told of what was not logged
        assert list(changes.find_problems(engine.alias())) == []
        refreshed(view)
        assert view.objects.count() == 2
        run("INSERT INTO made_rows VALUES (3, 3)")
        assert len(logged()) == 1


@on_mysql
def test_nor_is_it_taken_up_as_one_of_ours_that_is_back() -> None:
    with writer_of_rows("GRANT TRIGGER ON made_rows TO {}") as (view, run):
        refreshed(view)
        name = trigger_named("insert")
        run(f"DROP TRIGGER {name}")
        run(f"CREATE TRIGGER {name} AFTER INSERT ON made_rows FOR EACH ROW SET @made = 1")

        changes.mark_missing_triggers(engine.alias())

        assert TrackedTable.objects.get().triggers == []


OLD_TRIGGER = (
    "CREATE TRIGGER {name} AFTER INSERT ON made_rows FOR EACH ROW BEGIN "
    "IF INSTR(COALESCE(@matviews_muted, ''), '{digest}') = 0 THEN "
    "INSERT INTO matviews_change (`table`, links) "
    "VALUES ('made_rows', JSON_ARRAY(JSON_ARRAY('id'), JSON_ARRAY(NEW.id))); "
    "END IF; END"
)


@on_mysql
def test_migrate_replaces_the_triggers_of_the_first_version_that_anybody_could_mute() -> None:
    with writer_of_rows() as (view, run):
        # given triggers as that version has made them
        refreshed(view)
        record = TrackedTable.objects.get()
        digest, current = (
            record.triggers[0].split("_")[1],
            triggers_of(engine.alias()).installed_triggers(),
        )
        changes.remove(engine.alias())
        old = f"matviews_{digest}_00000001_insert"
        execute(OLD_TRIGGER.format(name=old, digest=digest))
        record.pk, record.triggers = None, [f"{old}:1"]
        record.save()
        run(f"SET @matviews_muted = '{digest}'")
        run("INSERT INTO made_rows VALUES (2, 2)")
        assert logged() == []
        # when migrate has run
        sender = apps.get_app_config("matviews")
        post_migrate.send(sender, app_config=sender, using=engine.alias(), plan=[])
        # then what was missed is found, and such a mute is none any more
        assert (
            triggers_of(engine.alias()).installed_triggers()["made_rows"].keys()
            == current["made_rows"].keys()
        )
        refreshed(view)
        assert view.objects.count() == 2
        run("INSERT INTO made_rows VALUES (3, 3)")
        assert len(logged()) == 1


@on_mysql
@pytest.mark.parametrize("name", ["it's", 'say "so"', "Größe", "back\\slash", "CAPITALS"])
def test_what_ours_do_is_shown_as_it_was_made(name: str) -> None:
    quoted = connection.ops.quote_name(name)
    table = f"CREATE TABLE {quoted} (id bigint PRIMARY KEY, {quoted} varchar(9))"
    dialect = triggers_of(engine.alias())
    with defined(table, undone=f"DROP TABLE {quoted}"):
        for links in ({"id", name}, {"id"}, set()):
            maintain = TriggerSpec(frozenset({"id", name}), frozenset(links))
            dialect.execute(dialect.create(name, maintain))

            assert dialect.installed_triggers()[name].keys() == dialect.names(name, maintain)
            assert dialect.replaced(name, maintain) == set()
            dialect.execute(dialect.drop(name, dialect.names(name, maintain)))


def trigger_named(event: str) -> str:
    """The name of our trigger for an event."""
    made_for = (made.partition(":")[0] for made in TrackedTable.objects.get().triggers)
    [name] = [name for name in made_for if name.endswith(f"_{event}")]
    return str(name)


@on_mysql
def test_triggers_whose_definer_was_dropped_are_named_and_recreated() -> None:
    with defined(ROWS, undone=GONE), tracked_view_of("made_rows"):
        changes.remove(engine.alias())
        with database_role("owner", "GRANT ALL ON *.* TO {}") as role, as_role(role):
            changes.install(engine.alias())
        with pytest.raises(DatabaseError, match="definer"):
            execute("INSERT INTO made_rows VALUES (1, 1)")
        assert f"runs as {role}@%, an account that does not exist" in warnings("W014")[0]

        changes.install(engine.alias())

        execute("INSERT INTO made_rows VALUES (1, 1)")
        assert warnings("W014") == []
        assert len(logged()) == 1
