"""Errors that rows are at fault for, as real databases raise them."""

from typing import Any

import pytest
from django.db import models
from django.db.models import F, Func, Q, Value
from django.db.models.functions import Cast

from matviews import changes, engine
from matviews.models import ParkedKey, ViewShard
from matviews.registry import registry
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.tables import derived_view, execute, made, model
from tests.management.test_command import command

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]
only_mysql = pytest.mark.only_on("mariadb", reason="of MariaDB and MySQL")
only_postgresql = pytest.mark.only_on("postgres", reason="of PostgreSQL")


def of_texts(expression: Any) -> tuple[type[models.Model], type[models.Model]]:
    """A source with the key k and a text t, and a view with what an expression makes of it."""
    row = model("Row", k=models.BigIntegerField(unique=True), t=models.TextField())
    view = derived_view(
        lambda cls: row._base_manager.values(ref=F("k")).annotate(x=expression),
        ref=models.BigIntegerField(unique=True),
        x=models.CharField(max_length=50, null=True),
    )
    return row, view


def parked() -> list[int]:
    return [key for [key] in ParkedKey.objects.values_list("key", flat=True)]


@only_mysql
@pytest.mark.parametrize("bad", ['{"a": [1', "{bad"])
def test_malformed_json(bad: str) -> None:
    extract = Func(
        F("t"), Value("$.a"), function="JSON_EXTRACT", output_field=models.CharField(max_length=50)
    )
    row, view = of_texts(extract)
    with made(row, view):
        row._default_manager.create(k=1, t='{"a": 1}')
        row._default_manager.create(k=7, t=bad)
        refresh = view_classes.run(view)
        assert refresh.state == RefreshState.SUCCEEDED, refresh.error
        assert parked() == [7]


@only_postgresql
@pytest.mark.parametrize(
    ("code", "is_data_error"),
    [
        ("MY001", True),
        ("no_data_found", True),
        ("assert_failure", True),
        ("case_not_found", True),
        ("insufficient_privilege", False),
        ("disk_full", False),
    ],
)
def test_what_a_trigger_raises(code: str, *, is_data_error: bool) -> None:
    row, view = of_texts(Func(F("t"), function="LOWER", output_field=models.TextField()))
    with made(row, view):
        execute(
            "CREATE FUNCTION refuse_7() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF NEW.ref = 7 THEN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END IF; "
            "RETURN NEW; END $$",
            f"CREATE TRIGGER refuse_7 BEFORE INSERT ON {view._meta.db_table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_7()",
        )
        try:
            for key in (1, 7):
                row._default_manager.create(k=key, t="a")
            refresh = view_classes.run(view)
        finally:
            execute("DROP FUNCTION refuse_7() CASCADE")
    assert (refresh.state == RefreshState.SUCCEEDED) is is_data_error, refresh.error


@only_postgresql
@pytest.mark.parametrize("rows", [1, 5, 30])
def test_what_the_planner_raises_before_it_looks_at_keys_fails_the_phase(rows: int) -> None:
    row, view = of_texts(Cast(Value(1) / Value(0), models.CharField(max_length=50)))
    with made(row, view):
        changes.install(engine.alias())
        try:
            for key in range(rows):
                row._default_manager.create(k=key, t="a")
            built = view_classes.run(view)
            by_keys = view_classes.run(view, force=True)
        finally:
            changes.remove(engine.alias())
    for refresh in (built, by_keys):
        assert refresh.state == RefreshState.FAILED
        assert "division by zero" in refresh.error
    assert ("all failed" if rows == 30 else "fails whatever its keys") in built.error
    assert not parked()


def test_are_forgotten_when_hooks_replace_the_source() -> None:
    row = model("Row", k=models.BigIntegerField(unique=True), v=models.IntegerField(null=True))
    view: Any = derived_view(
        lambda cls: row._base_manager.values("v", ref=F("k")),
        ref=models.BigIntegerField(unique=True),
        v=models.IntegerField(),
    )
    with made(row, view):
        row._default_manager.create(k=1, v=None)
        view_classes.run(view)
        assert parked() == [1]
        registry.unregister(view._meta.label)
        for name, hook in view_classes.six_hooks().items():
            setattr(view, name, hook)
        del view.source
        registry.register(view)
        assert view_classes.run(view).state == RefreshState.SUCCEEDED
        assert not parked()
        assert not ViewShard.objects.filter(parked_count__gt=0).exists()


@only_postgresql
def test_a_swap_beside_a_conflict_that_lasts() -> None:
    row = model("Row", k=models.BigIntegerField(unique=True), second=models.BigIntegerField())
    unique = models.UniqueConstraint(
        fields=["second"], name="made_second", deferrable=models.Deferrable.DEFERRED
    )
    view = derived_view(
        lambda cls: row._base_manager.values("second", ref=F("k")),
        key=["ref"],
        ref=models.BigIntegerField(unique=True),
        second=models.BigIntegerField(),
        meta={"constraints": [unique]},
    )
    with made(row, view):
        changes.install(engine.alias())
        try:
            rows = row._default_manager
            for key in range(1, 21):
                rows.create(k=key, second=key)
            view_classes.run(view)
            for key, second in {5: 15, 10: 1, 15: 5}.items():
                rows.filter(k=key).update(second=second)
            refresh = view_classes.run(view)
            assert refresh.state == RefreshState.SUCCEEDED, refresh.error
            assert parked() == [10]
        finally:
            changes.remove(engine.alias())


def test_a_source_that_is_only_computed_as_a_whole_says_so_and_parks_what_cannot_be_written() -> (
    None
):
    row = model("Row", k=models.BigIntegerField(unique=True), v=models.IntegerField())
    view = derived_view(
        lambda cls: row._base_manager.order_by("k").values("v", ref=F("k"))[:50],
        key=["ref"],
        ref=models.BigIntegerField(unique=True),
        v=models.IntegerField(),
        meta={"constraints": [models.CheckConstraint(condition=Q(v__gte=0), name="made_v")]},
    )
    with made(row, view):
        for key in range(1, 6):
            row._default_manager.create(k=key, v=-1 if key == 3 else key)
        explained = command("--explain", "--models", view._meta.label).out
        assert "one bad row fails the phase: a slice depends on all rows" in explained
        refresh = view_classes.run(view)
        assert refresh.state == RefreshState.SUCCEEDED, refresh.error
        assert parked() == [3]
        assert list(view._default_manager.order_by("ref").values_list("ref", flat=True)) == [
            1, 2, 4, 5,
        ]  # fmt: skip
