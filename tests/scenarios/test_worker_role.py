"""A worker that may write to the bookkeeping and the views, reads the sources, and owns nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, models
from django.db.models import Count, F
from django.test import override_settings

from matviews import checks, engine, verify
from matviews.models import PhaseRun, Refresh
from matviews.queryset import stages
from matviews.states import RefreshState
from matviews.tasks import inline
from tests.helpers import roles, view_classes
from tests.helpers.tables import derived_view, execute, key, made, model, refreshed

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
    pytest.mark.only_on("postgres", "mariadb", reason="SQLite has no roles"),
]

POSTGRES = connection.vendor == "postgresql"
SCHEMA = f"matviews_staging_{roles.RUN}"
STAGED_THERE = override_settings(MATVIEWS={"STAGING_SCHEMA": SCHEMA})


class Shop(NamedTuple):
    """A source, a staged and a windowed view of it, and the role of a worker."""

    sales: Any
    staged: Any
    windowed: Any
    worker: str

    def change(self) -> None:
        """Rows come, change and go."""
        self.sales.objects.filter(amount__lt=3).delete()
        self.sales.objects.filter(amount=5).update(amount=50)
        self.sales.objects.create(amount=70)


@pytest.fixture
def shop() -> Iterator[Shop]:
    sales = model("Sale", amount=models.IntegerField())
    staged = derived_view(
        lambda cls: sales.objects.order_by("pk").values("amount", ref=F("pk"))[:1000],
        name="Staged",
        ref=key(),
        amount=models.IntegerField(),
    )
    windowed = derived_view(
        lambda cls: sales.objects.values(ref=F("pk")).annotate(n=Count("amount")),
        name="Windowed",
        ref=key(),
        n=models.IntegerField(),
    )
    with made(sales, staged, windowed), roles.database_role("worker") as worker:
        sales.objects.bulk_create(sales(amount=amount) for amount in range(10))
        views = (staged._meta.db_table, windowed._meta.db_table)
        roles.may_work(worker, sales._meta.db_table, views=views)
        yield Shop(sales, staged, windowed, worker)


def warnings(number: str, worker: str) -> list[str]:
    """What `check --database` says to the worker itself, of itself."""
    with roles.as_role(worker):
        found = checks.check_grants(databases=["default"])
    return [each.msg for each in found if each.id == f"matviews.{number}" and worker in each.msg]


@contextmanager
def staging(shop: Shop) -> Iterator[None]:
    """The setting names a schema, and `migrate` has run as its owner."""
    with roles.without_schema(SCHEMA), STAGED_THERE:
        assert engine.prepare_staging() == ""
        if not POSTGRES:
            execute(
                f"GRANT CREATE, DROP, SELECT, INSERT, CREATE TEMPORARY TABLES ON `{SCHEMA}`.* "
                f"TO {roles.quoted(shop.worker)}"
            )
        yield


def test_without_the_right_to_make_tables_a_staged_view_is_refreshed_all_the_same(
    shop: Shop,
) -> None:
    with roles.as_role(shop.worker):
        assert refreshed(shop.staged) == {"insert": 10, "update": 0, "delete": 0}
    shop.change()
    with roles.as_role(shop.worker):
        assert refreshed(shop.staged) == {"insert": 1, "update": 1, "delete": 3}
        assert refreshed(shop.staged) == {"insert": 0, "update": 0, "delete": 0}
        assert verify(shop.staged).equal
    assert not any(PhaseRun.objects.values_list("stage", flat=True))


def test_check_says_that_and_names_the_grant(shop: Shop) -> None:
    (warning,) = warnings("W034", shop.worker)

    assert "shapes.Staged would be staged" in warning
    assert "shapes.Windowed" not in warning
    assert "CREATE" in warning
    assert warnings("W035", shop.worker) == []
    if POSTGRES:  # the owner is told of the worker
        assert shop.worker in "".join(e.msg for e in checks.check_grants(databases=["default"]))


@pytest.mark.parametrize("size", [3, None])
def test_migrate_prepares_the_schema_that_the_setting_names(
    shop: Shop, size: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "matviews")
    with staging(shop):
        assert warnings("W034", shop.worker) == []
        with roles.as_role(shop.worker):
            assert refreshed(shop.staged, batch_size=size) == {
                "insert": 10,
                "update": 0,
                "delete": 0,
            }
        shop.change()
        with roles.as_role(shop.worker):
            assert refreshed(shop.staged, batch_size=size) == {
                "insert": 1,
                "update": 1,
                "delete": 3,
            }
            assert verify(shop.staged).equal
            assert stages("default") == {}
    assert "source staged" in caplog.text
    stages_used = PhaseRun.objects.exclude(stage="").values_list("stage", flat=True)
    assert all(SCHEMA in stage for stage in stages_used)


def test_stages_of_other_projects_in_the_schema_are_left_alone(shop: Shop) -> None:
    with staging(shop):
        execute(f"CREATE TABLE {SCHEMA}.matviews_stage_0badcafe_{10**6} (id integer)")
        execute(f"CREATE TABLE {SCHEMA}.matviews_stage_{10**6} (id integer)")
        with roles.as_role(shop.worker):
            engine.sweep_stages()
            refreshed(shop.staged)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM information_schema.tables WHERE table_schema = %s", [SCHEMA]
            )
            assert cursor.fetchone() == (2,)


def half_way(shop: Shop) -> Refresh:
    """A refresh of which one batch has staged the source and inserted three rows."""
    refresh = engine.request(shop.staged, batch_size=3)
    (settled,) = engine.close_finished_in_view(refresh.view_id)
    assert settled.message is not None
    assert engine.run_batch(settled.message).rows == 3
    return refresh


def test_the_setting_may_change_while_a_refresh_is_open(shop: Shop) -> None:
    with roles.without_schema(SCHEMA):
        engine.prepare_staging()
        refresh = half_way(shop)
        with STAGED_THERE:
            assert engine.prepare_staging() == ""
            ended = inline.run_to_end(refresh)
            assert stages("default") == {}

        assert (ended.state, ended.error) == (RefreshState.SUCCEEDED, "")
        assert shop.staged.objects.count() == 10


def test_a_stage_that_was_left_behind_before_the_setting_is_swept(shop: Shop) -> None:
    refresh = half_way(shop)
    Refresh.objects.filter(pk=refresh.pk).update(state=RefreshState.FAILED)
    with roles.without_schema(SCHEMA), STAGED_THERE:
        assert stages("default").keys() == {refresh.pk}
        engine.sweep_stages()
        assert stages("default") == {}


@pytest.mark.only_on("postgres", reason="only PostgreSQL has a search path")
def test_the_search_path_of_a_role_decides_nothing(shop: Shop) -> None:
    execute(f"CREATE SCHEMA AUTHORIZATION {shop.worker}")  # "$user" comes first in the path
    execute(f"GRANT CREATE ON SCHEMA public TO {roles.quoted(shop.worker)}")
    with roles.as_role(shop.worker):
        refresh = half_way(shop)
    ended = inline.run_to_end(refresh)

    assert (ended.state, ended.error) == (RefreshState.SUCCEEDED, "")
    assert stages("default") == {}


@pytest.mark.parametrize("rights", ["INSERT", "SELECT", "UPDATE, DELETE"])
def test_a_right_on_a_view_that_is_missing_is_named(shop: Shop, rights: str) -> None:
    table = connection.ops.quote_name(shop.windowed._meta.db_table)
    execute(f"REVOKE {rights} ON {table} FROM {roles.quoted(shop.worker)}")
    shop.windowed.objects.bulk_create([shop.windowed(ref=n, n=7) for n in (2, 1000)])
    with roles.as_role(shop.worker):
        ended = view_classes.run(shop.windowed)

    assert ended.state == RefreshState.FAILED
    assert f"needs {rights} on" in ended.error
    assert "shapes_windowed" in ended.error
    assert "trigger" not in ended.error
    (warning,) = warnings("W035", shop.worker)
    assert f"needs {rights} on" in warning


def test_a_source_that_may_not_be_read_is_named(shop: Shop) -> None:
    table = connection.ops.quote_name(shop.sales._meta.db_table)
    execute(f"REVOKE SELECT ON {table} FROM {roles.quoted(shop.worker)}")
    with roles.as_role(shop.worker):
        ended = view_classes.run(shop.windowed)

    assert ended.state == RefreshState.FAILED
    assert "needs SELECT on" in ended.error
    assert "shapes_sale" in ended.error
    assert len(warnings("W035", shop.worker)) == 1


@pytest.mark.only_on("sqlite", "mariadb", reason="PostgreSQL deletes without a temporary table")
def test_temporary_tables_that_may_not_be_made_are_named(shop: Shop) -> None:
    database = connection.settings_dict["NAME"]
    execute(f"REVOKE CREATE TEMPORARY TABLES ON `{database}`.* FROM {roles.quoted(shop.worker)}")
    shop.windowed.objects.create(ref=1000, n=7)
    with roles.as_role(shop.worker):
        ended = view_classes.run(shop.windowed)

    assert ended.state == RefreshState.FAILED
    assert "needs CREATE, DROP, SELECT, INSERT, CREATE TEMPORARY TABLES on" in ended.error
    assert "CREATE TEMPORARY TABLES" in "".join(warnings("W034", shop.worker))


def commanded(worker: str, *options: str) -> str:
    """What the command says when the worker's role runs it."""
    with roles.as_role(worker), pytest.raises(CommandError) as error:
        call_command("update_materialized_views", *options)
    return str(error.value)


def test_advice_on_triggers_is_given_for_triggers_alone(shop: Shop) -> None:
    assert "--triggers sql" in commanded(shop.worker, "--triggers", "install")
    for table in ("matviews_trackedtable", "matviews_viewcontrol"):
        execute(
            f"REVOKE SELECT ON {connection.ops.quote_name(table)} FROM {roles.quoted(shop.worker)}"
        )
    said = commanded(shop.worker, "--triggers", "install")
    assert "needs SELECT on" in said
    assert "matviews_trackedtable" in said
    assert "--triggers sql" not in said
    assert "needs SELECT on" in commanded(shop.worker)
    assert "--triggers sql" not in commanded("matviews_nobody", "--triggers", "install")
