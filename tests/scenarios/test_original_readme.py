"""The usage example of the original django-materialized-views: its hooks run as written."""

import ast
from datetime import date
from pathlib import Path

import pytest
from django.db import IntegrityError
from django.utils import timezone

from matviews import Phase, engine
from matviews.definition import HookKind
from matviews.models import PhaseRun, Refresh
from matviews.registry import registry
from matviews.states import RefreshState, RunState
from tests.helpers.view_classes import run
from tests.sample import original
from tests.sample.original import MyModel, MyOtherTable

# As the README has it, but for the parenthesis that it lacks after values_list('cached_value').
README = """
class MyModel(models.Model, MaterializedView):

    key = models.CharField(max_length=100, db_index=True, unique=True)

    cached_value = models.CharField(max_length=100, db_index=True)

    @classmethod
    def needs_insert(cls):
        # This returns true if there are new materialized records we need to create.
        return MyOtherTable.objects.exclude(value__in=cls.objects.all().values_list('cached_value')).count()

    @classmethod
    def needs_update(cls):
        # This returns true if there are new materialized records we need to update.
        return MyOtherTable.objects.filter(some_criteria_date__gt=date.today()-timedelta(days=7)).count()

    @classmethod
    def needs_delete(cls):
        # This returns true if there are new materialized records we need to delete.
        return MyOtherTable.objects.filter(deleted__isnull=False).count()

    @classmethod
    def do_insert(cls):
        for r in MyOtherTable.objects.get_new():
            cls.objects.create(key=r.key, cached_value=r.value)

    @classmethod
    def do_update(cls):
        for r in MyOtherTable.objects.get_updated():
            obj, _ = cls.objects.get_or_create(key=r.key, cached_value=r.value)
            obj.cached_value = r.value
            obj.save()

    @classmethod
    def do_delete(cls):
        cls.objects.filter(key__in=MyOtherTable.objects.get_obsolete().values_list('key')).delete()
"""  # noqa: E501


def test_the_sample_is_the_example_as_written() -> None:
    module = ast.parse(Path(original.__file__).read_text())
    written = next(node for node in module.body if getattr(node, "name", "") == "MyModel")

    assert ast.dump(written) == ast.dump(ast.parse(README).body[0])


def test_its_hooks_are_whole_phase_hooks() -> None:
    view = registry.usable(MyModel)

    assert view.problems == ()
    assert {view.hooks[phase].kind for phase in Phase} == {HookKind.WHOLE}


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
class TestRefreshing:
    @pytest.fixture(autouse=True)
    def _controls(self) -> None:
        engine.sync_controls()

    def source(self, **values: str) -> None:
        today = date.today()  # noqa: DTZ011
        for key, value in values.items():
            MyOtherTable.objects.create(key=key, value=value, some_criteria_date=today)

    def view(self) -> dict[str, str]:
        return dict(MyModel.objects.values_list("key", "cached_value"))

    def states(self, refresh: Refresh) -> dict[str, str]:
        return dict(refresh.runs.values_list("phase", "state"))

    def test_inserts_and_deletes(self) -> None:
        self.source(a="one", b="two")

        first = run(MyModel)
        assert self.view() == {"a": "one", "b": "two"}

        MyOtherTable.objects.filter(key="a").update(deleted=timezone.now())
        self.source(c="three")
        second = run(MyModel)

        assert self.view() == {"b": "two", "c": "three"}
        assert first.state == second.state == RefreshState.SUCCEEDED

    def test_update_runs_once_although_its_needs_never_turns_false(self) -> None:
        self.source(a="one")

        refresh = run(MyModel)

        update = refresh.runs.get(phase=Phase.UPDATE)
        assert MyModel.needs_update()  # type: ignore[no-untyped-call]
        assert (update.state, update.batches) == (RunState.SUCCEEDED, 1)

    def test_update_as_written_makes_what_insert_has_left_out(self) -> None:
        """Its `get_or_create` looks for key and value together."""
        self.source(a="one")

        run(MyModel, phases=["update"])

        assert self.view() == {"a": "one"}

    def test_update_as_written_fails_on_a_changed_value_and_the_other_phases_go_on(self) -> None:
        self.source(a="one", b="two")
        run(MyModel)
        # given a new value, a new key, and one that is gone
        MyOtherTable.objects.filter(key="a").update(value="changed")
        MyOtherTable.objects.filter(key="b").update(deleted=timezone.now())
        self.source(c="three")

        refresh = run(MyModel)

        # then insert and delete are done
        assert self.view() == {"a": "one", "c": "three"}
        assert self.states(refresh) == {
            Phase.INSERT: RunState.SUCCEEDED,
            Phase.UPDATE: RunState.FAILED,
            Phase.DELETE: RunState.SUCCEEDED,
        }
        # and the failure is recorded and shown
        update: PhaseRun = refresh.runs.get(phase=Phase.UPDATE)
        assert refresh.state == RefreshState.FAILED
        assert refresh.error == f"update: {update.error}"
        assert update.error.startswith(f"{IntegrityError.__name__}: ")
        assert "get_or_create" in update.traceback
        status = next(each for each in engine.view_statuses() if each.label == "sample.MyModel")
        assert (status.state, status.error) == ("failed", refresh.error)

    def test_the_next_refresh_tries_again(self) -> None:
        self.source(a="one")
        run(MyModel)
        MyOtherTable.objects.update(value="changed")
        assert run(MyModel).state == RefreshState.FAILED
        MyModel.objects.all().delete()

        refresh = run(MyModel)

        assert refresh.state == RefreshState.SUCCEEDED
        assert self.view() == {"a": "changed"}
