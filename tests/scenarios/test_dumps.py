"""Dumps hold what an operator chose, which comes back; no bookkeeping does harm or is believed."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib.contenttypes.models import ContentType
from django.core import serializers
from django.core.management import call_command
from django.core.management.commands import dumpdata
from django.core.serializers.base import DeserializationError
from django.db import connection, transaction
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from matviews import changes, engine
from matviews.models import (
    Bookkeeping,
    Change,
    DirtyKeys,
    Heartbeat,
    LogSecret,
    PhaseRun,
    Refresh,
    RefreshSchedule,
    TrackedTable,
    ViewChange,
    ViewControl,
    ViewShard,
)
from matviews.tasks import maintain, schedules
from matviews.tasks.periodic import MAINTENANCE, PREFIX, name_of
from tests.helpers import database
from tests.helpers.view_classes import run
from tests.shapes.models import Customer, Order, Product, Region
from tests.shapes.models.grouped import CustomerTotal, ProductTotal

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

BOOKKEEPING = [
    each for each in apps.get_app_config("matviews").get_models() if issubclass(each, Bookkeeping)
]
DUMPED = "rows were loaded from a dump"


@pytest.fixture
def shop(tracked: None) -> None:
    fill()
    for view in (CustomerTotal, ProductTotal):
        run(view)
        assert run(view).runs.count() == 0  # nothing has changed


def fill() -> None:
    region = Region.objects.create(pk=1, name="here")
    Product.objects.create(sku="a", name="a", price=2)
    for number in (1, 2, 3):
        Customer.objects.create(pk=number, name=str(number), region=region)
        order(number)


def order(customer: int) -> None:
    Order.objects.create(
        customer_id=customer, product_id="a", quantity=customer, price=1, paid=False
    )


def control(view: type[Any] = CustomerTotal) -> ViewControl:
    return ViewControl.objects.get(label=view._meta.label)


def steer() -> None:
    """What an operator does."""
    mine = control()
    mine.paused, mine.batch_size = True, 7
    mine.save()
    RefreshSchedule.objects.all().delete()
    RefreshSchedule.objects.create(view=control(ProductTotal), every=3, period="hours")
    RefreshSchedule.objects.create(view=mine, every=7, phases=["insert"])
    PeriodicTask.objects.create(
        name="theirs", task="theirs", interval=IntervalSchedule.objects.first()
    )


def steered() -> None:
    assert (control().paused, control().batch_size) == (True, 7)
    found = RefreshSchedule.objects.values_list("view__label", "every", "period", "phases")
    assert sorted(found) == [
        ("shapes.CustomerTotal", 7, "minutes", ["insert"]),
        ("shapes.ProductTotal", 3, "hours", []),
    ]
    ours = set(PeriodicTask.objects.filter(name__startswith=PREFIX).values_list("name", flat=True))
    assert ours == {MAINTENANCE, *map(name_of, RefreshSchedule.objects.all())}
    assert PeriodicTask.objects.filter(name="theirs").count() == 1


def rebuilt(*views: type[Any]) -> None:
    """Each view is looked at as a whole by its next refresh, and right after that."""
    for view in views:
        ViewControl.objects.filter(label=view._meta.label).update(paused=False)
        runs = list(run(view).runs.all())
        assert {each.dirty_after for each in runs} == {None}
        assert view.verify().equal
        assert run(view).runs.count() == 0


def of_the_first_version(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A dump as the first version made it: with all rows, and columns that are gone."""
    lacking = {
        "shard": ("claims", "pending_drains"), "refresh": ("claims_at_request", "requests"),
        "trackedtable": ("pending_version",),
    }  # fmt: skip
    gone = {"shard": "whole_since", "dirtykeys": "logged_at"}
    kept = [each for each in rows if each["model"] != "matviews.logsecret"]
    for each in kept:
        app, _dot, name = each["model"].partition(".")
        if app == "matviews":
            for column in lacking.get(name, ()):
                del each["fields"][column]
            if name in gone:
                each["fields"][gone[name]] = "2026-01-01T00:00:00Z"
    return kept


@pytest.fixture(
    params=[
        "today",
        pytest.param("natural", marks=pytest.mark.long),
        pytest.param("first version", marks=pytest.mark.long),
    ]
)
def dump(request: pytest.FixtureRequest, shop: None, tmp_path: Path) -> Path:
    """A dump of a project at work."""
    steer()
    maintain()  # a heartbeat
    order(2)
    order(3)
    engine.move_log()
    order(3)
    engine.request(CustomerTotal)
    assert Change.objects.exists()
    assert ViewChange.objects.exists()
    path = tmp_path / "dump.json"
    options: dict[str, Any] = {"output": str(path), "verbosity": 0}
    if request.param == "natural":
        options |= {"use_natural_primary_keys": True, "use_natural_foreign_keys": True}
    whole = request.param == "first version"
    call_command(dumpdata.Command() if whole else "dumpdata", **options)
    rows = json.loads(path.read_text())
    dumped = {each["model"] for each in rows}
    assert ("matviews.change" in dumped) is whole
    if whole:
        path.write_text(json.dumps(of_the_first_version(rows)))
    return path


def load(path: Path) -> None:
    call_command("loaddata", str(path), verbosity=0, ignore=True)


def flush(**options: Any) -> None:
    """As between tests: a sequence must not come to the keys of rows that are written back."""
    call_command("flush", interactive=False, reset_sequences=False, verbosity=0, **options)


def flush_without_post_migrate() -> None:
    """Django forgets its content types in post_migrate alone: what is gone must not come back."""
    flush(inhibit_post_migrate=True)
    ContentType.objects.clear_cache()


@transaction.atomic
def load_rows(text: str) -> None:
    for each in serializers.deserialize("json", text):
        each.save()


def bookkeeping() -> dict[str, list[Any]]:
    """What no dump may change."""
    models: list[Any] = [
        ViewShard,
        Refresh,
        PhaseRun,
        TrackedTable,
        DirtyKeys,
        LogSecret,
        Heartbeat,
    ]
    return {each.__name__: list(each.objects.order_by("pk").values()) for each in models}


class TestLoading:
    def test_a_database_at_work_is_not_harmed(self, dump: Path) -> None:
        ViewControl.objects.filter(label="shapes.CustomerTotal").update(
            batch_size=None, paused=False
        )
        run(CustomerTotal)
        ViewControl.objects.update(differing={"missing": 1})
        before, succeeded = bookkeeping(), control().last_insert
        written = control().insert_rows

        load(dump)
        load(dump)

        assert bookkeeping() == before
        assert control().last_insert == succeeded
        assert control().insert_rows == written
        assert control().differing == {"missing": 1}
        steered()
        order(1)
        rebuilt(CustomerTotal, ProductTotal)

    def test_another_database_takes_what_was_chosen_and_nothing_else(self, dump: Path) -> None:
        database.flush("default")
        changes.install("default")
        move_controls()
        LogSecret.objects.get_or_create()
        before = bookkeeping()

        load(dump)

        assert bookkeeping() == before
        assert control().last_insert is None
        steered()
        assert Order.objects.count() == 6
        order(1)
        rebuilt(CustomerTotal, ProductTotal)

    def test_without_post_migrate_views_get_their_rows(self, dump: Path) -> None:
        """As in a `TransactionTestCase` with `serialized_rollback`."""
        flush_without_post_migrate()
        assert not ViewControl.objects.exists()
        load(dump)
        steered()
        ViewControl.objects.update(paused=False)
        run(CustomerTotal)
        assert CustomerTotal.verify().equal


def move_controls() -> None:
    """Give all controls and shards other primary keys, in another order."""
    for each in list(ViewControl.objects.order_by("-pk")):
        ViewControl.objects.filter(pk=each.pk).delete()
        ViewControl.objects.create(label=each.label, shard_count=each.shard_count)
    engine.sync_controls()
    schedules.reconcile()
    changes.install("default")


def test_what_the_test_runner_serializes_can_be_restored(shop: None) -> None:
    steer()
    order(2)
    text = connection.creation.serialize_db_to_string()
    flush_without_post_migrate()
    connection.creation.deserialize_db_from_string(text)
    steered()
    ViewControl.objects.update(paused=False)
    run(CustomerTotal)
    assert CustomerTotal.verify().equal
    fill()  # the runner serializes apps with migrations alone
    run(CustomerTotal)
    assert CustomerTotal.objects.count() == 3
    assert CustomerTotal.verify().equal


def test_rows_of_a_view_alone_make_each_refresh_a_full_one(shop: None) -> None:
    rows = serializers.serialize("json", CustomerTotal.objects.all())
    changed = rows.replace('"customer": 3', '"customer": 4')
    assert changed != rows
    load_rows(changed)
    rebuilt(CustomerTotal)


def test_rows_of_sources_alone_are_logged_as_any_write_is(shop: None) -> None:
    rows = serializers.serialize("json", Order.objects.all())
    load_rows(rows.replace('"quantity": 3', '"quantity": 5'))
    runs = run(CustomerTotal).runs.all()
    assert None not in {each.dirty_after for each in runs}
    assert CustomerTotal.verify().equal


def test_a_schedule_without_its_control_is_refused_and_nothing_changes(shop: None) -> None:
    steer()
    rows = serializers.serialize("json", RefreshSchedule.objects.all())
    before = list(RefreshSchedule.objects.values())
    with pytest.raises(ValueError, match="Load both in one transaction, or dump with"):
        load_rows(rows)
    assert list(RefreshSchedule.objects.values()) == before

    named = RefreshSchedule.objects.all()
    load_rows(serializers.serialize("json", named, use_natural_foreign_keys=True))
    steered()


def test_a_control_of_a_view_that_the_code_does_not_have_is_kept(shop: None) -> None:
    gone = ViewControl.objects.create(label="gone.View", paused=True)
    rows = serializers.serialize("json", [gone])
    gone.delete()
    for each in serializers.deserialize("json", rows):
        each.save()
    assert ViewControl.objects.get(label="gone.View").paused


def test_natural_keys_find_their_rows(shop: None) -> None:
    steer()
    models: list[Any] = [ViewControl, RefreshSchedule]
    for model in models:
        for each in model.objects.all():
            assert model.objects.get_by_natural_key(*each.natural_key()) == each
    with pytest.raises(ViewControl.DoesNotExist):
        ViewControl.objects.get_by_natural_key("gone.View")
    with pytest.raises(RefreshSchedule.DoesNotExist):
        RefreshSchedule.objects.get_by_natural_key("shapes.CustomerTotal", [], 7, "minutes", None)
    row = {"model": "matviews.refreshschedule", "fields": {"view": ["gone.View"], "every": 7}}
    with pytest.raises(DeserializationError):
        load_rows(json.dumps([row]))


def test_a_dump_leaves_out_bookkeeping_but_for_what_is_named(shop: None, tmp_path: Path) -> None:
    def dumped(*labels: str, **options: Any) -> set[str]:
        path = tmp_path / "dump.json"
        call_command("dumpdata", *labels, output=str(path), verbosity=0, **options)
        return {each["model"] for each in json.loads(path.read_text())}

    steer()
    kept = {"matviews.viewcontrol", "matviews.refreshschedule"}
    assert dumped("matviews") == kept
    assert {label for label in dumped() if label.startswith("matviews.")} == kept
    assert {
        label for label in dumped(use_base_manager=True) if label.startswith("matviews.")
    } == kept
    assert dumped("matviews.Refresh", "matviews.viewcontrol") == {
        "matviews.refresh",
        "matviews.viewcontrol",
    }
    assert "shapes.order" not in dumped(exclude=["shapes"])


@pytest.mark.parametrize("model", BOOKKEEPING, ids=lambda model: model.__name__)
def test_no_row_of_bookkeeping_is_loaded(model: type[Any]) -> None:
    row: dict[str, Any] = {"model": model._meta.label_lower, "pk": 12345, "fields": {}}
    for each in serializers.deserialize("json", json.dumps([row])):
        each.save()
    assert not model.objects.filter(pk=12345).exists()


def test_flush_leaves_views_that_are_refreshed_and_changes_that_are_logged(shop: None) -> None:
    order(1)
    flush()
    assert ViewShard.objects.filter(view=control()).get().checkpoints == {}
    Region.objects.create(pk=1, name="here")
    Product.objects.create(sku="a", name="a", price=2)
    Customer.objects.create(pk=1, name="1", region_id=1)
    order(1)
    run(CustomerTotal)
    assert CustomerTotal.objects.count() == 1
    assert run(CustomerTotal).runs.count() == 0
    order(1)
    assert not CustomerTotal.is_fresh()
    assert None not in {each.dirty_after for each in run(CustomerTotal).runs.all()}
    assert CustomerTotal.verify().equal


def test_triggers_that_are_removed_and_made_again_let_nothing_be_believed(shop: None) -> None:
    """The way out after tables were filled behind Django's back."""
    CustomerTotal._base_manager.all().delete()
    assert CustomerTotal.is_fresh()
    call_command("update_materialized_views", triggers="remove", verbosity=0)
    call_command("update_materialized_views", triggers="install", verbosity=0)
    rebuilt(CustomerTotal, ProductTotal)
