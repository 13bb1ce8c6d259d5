import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from celery import Celery
from django.apps.registry import Apps
from django.core.checks import CheckMessage
from django.db import migrations, models
from django.db.migrations.state import ProjectState
from django.test import override_settings

from matviews import Batch, MaterializedView, Phase, checks, databases
from matviews.definition import HookKind, ViewOptions, define
from matviews.exceptions import UnknownView
from matviews.registry import registry
from matviews.states import RefreshStrategy
from matviews.tasks import checks as celery_checks
from tests.helpers.view_classes import INSERT_ONLY, defined, make_view, own_models, six_hooks
from tests.sample.models import Limited


@pytest.fixture
def _own_models() -> Iterator[None]:
    with own_models():
        yield


def ids(problems: Any) -> list[str]:
    return [problem.id for problem in problems]


def only(problems: Any, number: str) -> CheckMessage:
    found: list[CheckMessage] = list(problems)
    assert ids(found) == [f"matviews.{number}"]
    return found[0]


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Hooked(MaterializedView, models.Model):
    """A base with hooks and options, for models to inherit."""

    class MatviewMeta:
        phases = ["insert"]
        batch_size = 7

    class Meta:
        abstract = True

    @classmethod
    def needs_insert(cls) -> bool:
        return False

    @classmethod
    def do_insert(cls, limit: int) -> int:
        return 0


@pytest.mark.usefixtures("_own_models")
class TestWhatIsAView:
    @pytest.mark.parametrize(
        "bases", [(MaterializedView, models.Model), (models.Model, MaterializedView)]
    )
    def test_a_model_with_the_mixin_in_either_order(self, bases: tuple[type, ...]) -> None:
        Meta = type("Meta", (), {"app_label": "sample"})  # noqa: N806
        view = type("New", bases, {"__module__": __name__, "Meta": Meta, **six_hooks()})

        assert registry.find("sample.New").model is view
        assert registry.usable("sample.New").hooks.keys() == set(Phase)

    def test_an_abstract_base_is_none_and_its_children_inherit_hooks_and_options(self) -> None:
        class First(Hooked):
            class Meta:
                app_label = "sample"

        class Second(Hooked):
            class MatviewMeta(Hooked.MatviewMeta):
                batch_size = 9

            class Meta:
                app_label = "sample"

        assert "sample.Hooked" not in registry
        assert not any(found.model is Hooked for found in registry)
        first, second = registry.usable("sample.First"), registry.usable("sample.Second")
        assert first.options == ViewOptions(phases=(Phase.INSERT,), batch_size=7)
        assert second.options == ViewOptions(phases=(Phase.INSERT,), batch_size=9)
        assert first.hooks == second.hooks

    def test_options_of_a_child_replace_those_of_its_base(self) -> None:
        class Third(Hooked):
            class MatviewMeta:
                phases = ["insert"]

            class Meta:
                app_label = "sample"

        assert registry.usable("sample.Third").options.batch_size is None

    def test_a_view_that_inherits_from_a_view_is_another_view_and_warned_about(self) -> None:
        class Base(Hooked):
            class Meta:
                app_label = "sample"

        class Child(Base):
            class Meta:
                app_label = "sample"

        warning = only(registry.usable("sample.Child").problems, "W001")
        assert "sample.Child inherits from the view sample.Base" in warning.msg
        assert "Make sample.Base abstract" in (warning.hint or "")
        assert registry.usable("sample.Base").problems == ()
        assert registry.find("sample.Child").model is Child

    def test_a_proxy_of_a_view_is_none_and_says_what_to_refresh(self) -> None:
        class Base(Hooked):
            class Meta:
                app_label = "sample"

        class Stand(Base):
            class Meta:
                app_label = "sample"
                proxy = True

        assert "sample.Stand" not in registry
        with pytest.raises(UnknownView) as error:
            Stand.refresh()
        assert str(error.value) == (
            "Stand is a proxy of the view sample.Base: refresh that view instead."
        )

    def test_a_proxy_of_another_model_cannot_be_one(self) -> None:
        class Plain(models.Model):
            class Meta:
                app_label = "sample"

        class Mixed(MaterializedView, Plain):
            class Meta:
                app_label = "sample"
                proxy = True

        errors = registry.find("sample.Mixed").errors
        assert "matviews.W106" in ids(errors)
        assert errors[0].msg.startswith("sample.Mixed is a proxy")
        assert "not into a proxy of sample.Plain" in (errors[0].hint or "")

    @override_settings(SAMPLE_SWAPPED="sample.Limited")
    def test_a_swapped_model_is_none(self) -> None:
        class Replaced(Hooked):
            class Meta:
                app_label = "sample"
                swappable = "SAMPLE_SWAPPED"

        assert Replaced._meta.swapped
        assert "sample.Replaced" not in registry

    def test_views_of_several_apps_have_labels_of_their_own(self) -> None:
        class Twin(Hooked):
            class Meta:
                app_label = "sample"

        first = Twin

        class Twin(Hooked):  # type: ignore[no-redef]
            class Meta:
                app_label = "auth"

        assert registry.find("sample.Twin").model is first
        assert registry.find("auth.Twin").model is Twin

    def test_a_table_that_django_does_not_manage_can_be_one(self) -> None:
        class Unmanaged(Hooked):
            class Meta:
                app_label = "sample"
                managed = False

        assert registry.usable("sample.Unmanaged").problems == ()

    def test_models_of_migrations_are_none(self) -> None:
        create = migrations.CreateModel(
            "Historical",
            [("id", models.BigAutoField(primary_key=True))],
            bases=(MaterializedView, models.Model),
        )
        state = ProjectState()
        create.state_forwards("sample", state)
        historical = state.apps.get_model("sample", "Historical")

        assert issubclass(historical, MaterializedView)
        assert "sample.Historical" not in registry

    def test_a_model_of_migrations_does_not_take_the_place_of_the_view(self) -> None:
        state = ProjectState.from_apps(Apps())
        migrations.CreateModel(
            "Limited",
            [("id", models.BigAutoField(primary_key=True))],
            bases=(MaterializedView, models.Model),
        ).state_forwards("sample", state)
        assert state.apps.get_model("sample", "Limited")

        assert registry.find("sample.Limited").model is Limited


class TestSignatures:
    """What a hook declares is read once, and decides how often it is called."""

    @pytest.mark.parametrize(
        ("hook", "declared", "kind"),
        [
            (lambda cls: 0, set(), HookKind.WHOLE),
            (lambda cls, limit: 0, {"limit"}, HookKind.LIMIT),
            (lambda cls, limit=100: 0, {"limit"}, HookKind.LIMIT),
            (lambda cls, *, limit: 0, {"limit"}, HookKind.LIMIT),
            (lambda cls, shard: 0, {"shard"}, HookKind.WHOLE),
            (lambda cls, limit, shard: 0, {"limit", "shard"}, HookKind.LIMIT),
            (lambda cls, cursor: Batch(0), {"cursor"}, HookKind.CURSOR),
            (lambda cls, cursor, limit: Batch(0), {"limit", "cursor"}, HookKind.CURSOR),
            (
                lambda cls, shard, cursor=None, *, limit: Batch(0),
                {"limit", "cursor", "shard"},
                HookKind.CURSOR,
            ),
            (lambda cls, limit, other=1: 0, {"limit"}, HookKind.LIMIT),
            (lambda cls, **kwargs: 0, set(), HookKind.WHOLE),
            (lambda cls, *limit, **cursor: 0, set(), HookKind.WHOLE),
            (lambda cls, limit, *args, **kwargs: 0, {"limit"}, HookKind.LIMIT),
            (lambda cls, limit=100, /: 0, set(), HookKind.WHOLE),
            (decorated(lambda cls, limit: 0), {"limit"}, HookKind.LIMIT),
            (decorated(decorated(lambda cls, cursor: Batch(0))), {"cursor"}, HookKind.CURSOR),
        ],
    )
    def test_of_a_do_hook(
        self, hook: Callable[..., Any], declared: set[str], kind: HookKind
    ) -> None:
        view = defined(**six_hooks(do_insert=classmethod(hook)))

        assert view.problems == ()
        assert view.hooks[Phase.INSERT].do == declared
        assert view.hooks[Phase.INSERT].kind is kind

    @pytest.mark.parametrize(
        ("hook", "declared"),
        [
            (lambda cls: 0, set()),
            (lambda cls, shard: 0, {"shard"}),
            (lambda cls, shard=None: 0, {"shard"}),
            (lambda cls, limit=5: 0, set()),
            (lambda cls, **kwargs: 0, set()),
        ],
    )
    def test_of_a_needs_hook(self, hook: Callable[..., Any], declared: set[str]) -> None:
        view = defined(**six_hooks(needs_insert=classmethod(hook)))

        assert view.problems == ()
        assert view.hooks[Phase.INSERT].needs == declared

    def test_of_a_static_method(self) -> None:
        view = defined(**six_hooks(do_delete=staticmethod(lambda limit, cursor: Batch(0))))

        assert view.hooks[Phase.DELETE].do == {"limit", "cursor"}
        assert view.problems == ()

    def test_of_hooks_from_a_plain_mixin(self) -> None:
        hooks = type("Hooks", (), six_hooks(do_insert=classmethod(lambda cls, limit: 0)))
        view = defined(bases=(hooks, MaterializedView, models.Model))

        assert view.problems == ()
        assert view.hooks[Phase.INSERT].kind is HookKind.LIMIT

    def test_annotated_with_what_only_type_checkers_import(self) -> None:
        # given annotations that nobody evaluates, before Python 3.14 because they are strings
        lazily = "" if sys.version_info >= (3, 14) else "from __future__ import annotations\n"
        names: dict[str, Any] = {}
        exec(f"{lazily}def hook(cls, limit: Unknown, cursor: Unknown.Part) -> Unknown: ...", names)

        view = defined(**six_hooks(do_insert=classmethod(names["hook"])))

        assert view.problems == ()
        assert view.hooks[Phase.INSERT].kind is HookKind.CURSOR

    @pytest.mark.parametrize(
        ("name", "hook", "wanted"),
        [
            ("do_insert", lambda cls, rows: 0, "rows"),
            ("do_insert", lambda cls, limit, rows, *, size: 0, "rows, size"),
            ("do_insert", lambda cls, limit, /: 0, "limit"),
            ("needs_update", lambda cls, limit: 0, "limit"),
            ("needs_update", lambda cls, cursor, shard: 0, "cursor"),
            ("do_insert", decorated(lambda cls, rows: 0), "rows"),
        ],
    )
    def test_that_nobody_can_call_are_refused(
        self, name: str, hook: Callable[..., Any], wanted: str
    ) -> None:
        error = only(defined(**six_hooks(**{name: classmethod(hook)})).problems, "W105")

        noun = "parameters" if "," in wanted else "parameter"
        assert error.msg == (
            f"sample.Made.{name} has the {noun} {wanted}, which the engine does not pass."
        )
        assert "shard" in (error.hint or "")
        assert "by name" in (error.hint or "")


class TestChecksOfAView:
    def test_a_sound_view_has_no_problem(self) -> None:
        assert defined(**six_hooks()).problems == ()

    @pytest.mark.parametrize("name", [hook for p in Phase for hook in (p.needs_hook, p.do_hook)])
    @pytest.mark.parametrize("missing", ["left out", "None"])
    def test_w103_a_hook_is_missing(self, name: str, missing: str) -> None:
        hooks = six_hooks(**{name: None})
        if missing == "left out":
            del hooks[name]

        view = defined(**hooks)

        error = only(view.problems, "W103")
        phase = name.partition("_")[2]
        assert error.msg == f"sample.Made.{name} is missing."
        assert f"leave {phase!r} out of MatviewMeta.phases" in (error.hint or "")
        assert set(view.hooks) == set(Phase) - {Phase(phase)}

    def test_w103_names_every_hook_that_is_missing(self) -> None:
        assert ids(defined().problems) == ["matviews.W103"] * 6

    @pytest.mark.parametrize("phases", [["update"], ["delete", "insert"], (Phase.DELETE,)])
    def test_w103_hooks_of_phases_that_the_view_lacks_are_not_wanted(self, phases: Any) -> None:
        hooks = {
            name: classmethod(lambda cls: 0)
            for phase in phases
            for name in (Phase(phase).needs_hook, Phase(phase).do_hook)
        }

        view = defined(options={"phases": phases}, **hooks)

        assert view.problems == ()
        assert view.options.phases == tuple(phase for phase in Phase if phase in phases)
        assert set(view.hooks) == set(phases)

    @pytest.mark.parametrize("hook", [lambda self: 0, property(lambda self: 0), 5])
    def test_w104_a_hook_is_not_a_class_method(self, hook: Any) -> None:
        error = only(defined(**six_hooks(do_insert=hook)).problems, "W104")

        assert error.msg == "sample.Made.do_insert is not a class method."
        assert error.hint == "Put @classmethod above it."

    def test_w105_a_hook_is_a_coroutine(self) -> None:
        async def do_insert(cls: type) -> int:
            return 0

        error = only(defined(**six_hooks(do_insert=classmethod(do_insert))).problems, "W105")

        assert error.msg == "sample.Made.do_insert is a coroutine."
        assert "Define it with def" in (error.hint or "")

    def test_w107_every_hook_must_declare_shard_where_there_are_several(self) -> None:
        options = {**INSERT_ONLY, "shards": 2}
        hooks = {
            "needs_insert": classmethod(lambda cls, shard: 0),
            "do_insert": classmethod(lambda cls, limit: 0),
        }

        error = only(defined(options=options, **hooks).problems, "W107")
        hooks["do_insert"] = classmethod(lambda cls, limit, shard: 0)
        mended = defined(options=options, **hooks)

        assert "sample.Made.do_insert does not declare shard" in error.msg
        assert "Declare shard" in (error.hint or "")
        assert mended.problems == ()

    def test_the_check_shows_what_the_definitions_have_found(self) -> None:
        with registry.preserved():
            registry.register(make_view(**six_hooks(do_insert=None)))

            problems = checks.check_views()

        assert only(problems, "W103").msg == "sample.Made.do_insert is missing."
        assert checks.check_views() == []


class TestOptions:
    def test_defaults(self) -> None:
        assert defined(**six_hooks()).options == ViewOptions()
        assert ViewOptions().phases == tuple(Phase)

    def test_w101_an_unknown_option_and_the_nearest_known_one(self) -> None:
        error = only(defined(options={"batchsize": 5}, **six_hooks()).problems, "W101")

        assert error.msg == "sample.Made: MatviewMeta has no option 'batchsize'."
        assert error.hint == "Did you mean batch_size?"

    def test_w101_an_option_like_no_other_and_all_that_there_are(self) -> None:
        error = only(defined(options={"xyz": 5}, **six_hooks()).problems, "W101")

        assert "phases, key, batch_size" in (error.hint or "")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("phases", ["insert", "update", "delete"]),
            ("phases", frozenset(Phase)),
            ("batch_size", 1),
            ("batch_size", None),
            ("batch_target", 0.5),
            ("batch_target", 2),
            ("batch_target", None),
            ("statement_timeout", 0.001),
            ("statement_timeout", None),
            ("shards", 1),
            ("include_in_refresh_all", False),
            ("max_parked_keys", 0),
            ("max_parked_keys", None),
            ("tracking", False),
            ("additive", True),
            ("strategy", "by_keys"),
            ("strategy", RefreshStrategy.FULL_STAGED),
            ("strategy", None),
            ("queue", "big"),
            ("quiet_hours", None),
            ("queue", None),
            ("depends_on", None),
            ("depends_on", {}),
            ("depends_on", {"a.B": ("c",), "a.C": None, "a.D": len}),
            ("freshness_target", timedelta(minutes=5)),
            ("freshness_target", {"insert": timedelta(minutes=5), Phase.DELETE: timedelta(days=1)}),
            ("freshness_target", None),
            ("refresh_every", timedelta(seconds=1)),
            ("refresh_every", timedelta(days=3650)),
            ("refresh_every", {"insert": timedelta(seconds=10), Phase.DELETE: timedelta(days=1)}),
            ("refresh_every", None),
            ("verify_every", timedelta(days=1)),
            ("verify_every", None),
        ],
    )
    def test_right_values_are_taken(self, name: str, value: Any) -> None:
        view = defined(options={name: value}, **six_hooks())

        assert view.problems == ()
        taken = getattr(view.options, name)
        assert taken == (tuple(Phase) if name == "phases" else value)

    WRONG: ClassVar[dict[str, list[Any]]] = {
        "phases": [None, [], "insert", ["upsert"], [["insert"]], {}, 5],
        "key": [5, "", [], [""], ["a", "a"], [None], {"a"}],
        "batch_size": [0, -1, 1.5, True, "10", 2**31, []],
        "batch_target": [0, -1.0, True, "1", float("nan"), timedelta(seconds=1)],
        "statement_timeout": [0, -5, 1e-9, float("inf"), 1e9, "60"],
        "shards": [0, -1, None, 2.0, True, 2**15],
        "include_in_refresh_all": [0, 1, None, "yes"],
        "max_retry_delay": [0, -1.0, True, "1", timedelta(seconds=1)],
        "suspend_after_failures": [0, -1, 1.5, True, "10", 2**31],
        "max_parked_keys": [-1, 1.5, True, "10", 100_001],
        "suspend_after": [300, timedelta(), timedelta(-1), timedelta.max, "5m"],
        "tracking": [0, 1, None, "yes"],
        "additive": [0, 1, "yes"],
        "strategy": ["", "keys", "by keys", True, 1],
        "quiet_hours": ["22:00", (), ("22:00", "06:00"), ("1", "2", "UTC"), 5],
        "queue": ["", 5, [], True, " big", "amq.big", "a" * 256],
        "depends_on": [
            "a.B",
            [],
            {5: "c"},
            {"a.B": 5},
            {"a.B": []},
            {"a.B": ["c", "c"]},
            {int: "c"},
        ],
        "freshness_target": [
            300,
            timedelta(),
            timedelta(-1),
            timedelta(days=3651),
            "5m",
            {},
            {"insert": 5},
            {"upsert": timedelta(minutes=5)},
        ],
        "refresh_every": [
            300,
            True,
            "5m",
            timedelta(),
            timedelta(-1),
            timedelta(seconds=1.5),
            timedelta(days=3651),
            {},
            {"insert": None},
            {"upsert": timedelta(minutes=5)},
            {"insert": 300},
            {5: timedelta(minutes=5)},
            [timedelta(minutes=5)],
        ],
        "refresh_on_change": [
            1,
            True,
            "1s",
            timedelta(-1),
            timedelta(seconds=0.5),
            timedelta(days=3651),
            {},
            {"insert": 1},
        ],
        "verify_every": [timedelta(), timedelta(seconds=1.5), timedelta(days=3651), 60, "1 day"],
    }

    @pytest.mark.parametrize(
        ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
    )
    def test_w102_wrong_values_are_refused_and_the_default_stays(
        self, name: str, value: Any
    ) -> None:
        view = defined(options={name: value}, **six_hooks())

        error = only(view.problems, "W102")
        assert error.msg.startswith(f"sample.Made: MatviewMeta.{name} must be ")
        assert error.msg.endswith(f", not {value!r}.")
        assert view.options == ViewOptions()

    def test_w113_an_interval_of_a_phase_that_the_view_lacks_is_refused(self) -> None:
        every = {"insert": timedelta(minutes=5), "update": timedelta(minutes=5)}
        view = defined(options={"phases": ["insert"], "refresh_every": every}, **six_hooks())

        error = only(view.problems, "W113")
        assert error.msg == (
            "sample.Made: MatviewMeta.refresh_every names update, but MatviewMeta.phases does not."
        )

    @pytest.mark.parametrize(
        ("every", "intervals"),
        [
            (None, {}),
            (timedelta(minutes=5), {(): timedelta(minutes=5)}),
            (
                {"delete": timedelta(days=1), "update": timedelta(seconds=10),
                 "insert": timedelta(seconds=10)},
                {("delete",): timedelta(days=1), ("insert", "update"): timedelta(seconds=10)},
            ),
        ],
    )  # fmt: skip
    def test_phases_that_share_an_interval_share_a_schedule(
        self, every: Any, intervals: Any
    ) -> None:
        assert ViewOptions(refresh_every=every).intervals == intervals

    def test_every_option_is_tried_with_wrong_values(self) -> None:
        assert set(self.WRONG) == {option.name for option in fields(ViewOptions)}


class Elsewhere:
    """A database router that keeps the views of the tests away from the bookkeeping."""

    def db_for_write(self, model: type[models.Model], **hints: Any) -> str | None:
        return "elsewhere" if model._meta.app_label == "sample" else None


@pytest.mark.usefixtures("_own_models")
class TestFieldsOfAbstractModels:
    def test_w122_a_field_that_django_leaves_out(self) -> None:
        class Base(models.Model):
            state = models.IntegerField()
            status = models.IntegerField()

            class Meta:
                abstract = True
                app_label = "sample"

        hooks = six_hooks()
        after = make_view("After", options=INSERT_ONLY, **hooks, bases=(MaterializedView, Base))
        before = make_view("Before", options=INSERT_ONLY, **hooks, bases=(Base, MaterializedView))

        fault = only(define(after).errors, "W122")
        assert "lacks the field status of Base" in fault.msg
        assert not define(before).errors
        assert before._meta.get_field("status")


class TestChecksOfTheProject:
    def test_w108_a_view_in_another_database(self) -> None:
        with override_settings(DATABASE_ROUTERS=[Elsewhere()]):
            problems = {problem.obj: problem for problem in checks.check_views()}

        error = problems[Limited]
        assert error.id == "matviews.W108"
        assert "sample.Limited is in the database 'elsewhere'" in error.msg
        assert error.hint == "Route the view to 'default', or the app matviews to 'elsewhere'."
        ours = [each for each in registry if each.model._meta.app_label == "sample"]
        assert len(problems) == len(ours)

    @pytest.mark.parametrize("value", [{"BATCHTARGET": 1}, {"LEASE": 0}, None])
    def test_e009_a_setting_that_cannot_be(self, value: Any) -> None:
        with override_settings(MATVIEWS=value):
            error = only(checks.check_settings(), "E009")

        assert "MATVIEWS" in error.msg
        assert checks.check_settings() == []

    @pytest.mark.parametrize(
        ("vendor", "locks", "right"),
        [
            ("sqlite", False, True),
            ("postgresql", True, True),
            ("mysql", True, True),
            ("mysql", False, False),
            ("oracle", True, False),
        ],
    )
    def test_e010_a_database_that_cannot_lock_without_waiting(
        self, vendor: str, locks: bool, right: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        features = SimpleNamespace(
            has_select_for_update=vendor != "sqlite", has_select_for_update_skip_locked=locks
        )
        database = SimpleNamespace(vendor=vendor, display_name="Some Base", features=features)
        for module in (checks, databases):
            monkeypatch.setattr(module, "connections", {"default": database})

        problems = checks.check_database(databases=["default"])

        assert ids(problems) == ([] if right else ["matviews.E010"])
        assert all("Some Base" in p.msg and "MariaDB 10.6" in (p.hint or "") for p in problems)
        assert checks.check_database(databases=["other"]) == []
        assert checks.check_database() == []

    def test_w004_options_under_a_misspelt_name(self) -> None:
        misspelt = type("MatViewMeta", (), {"batch_size": 5})

        view = make_view(**six_hooks(MatViewMeta=misspelt))

        warning = only(define(view).problems, "W004")

        assert "its inner class MatViewMeta is ignored" in warning.msg
        assert warning.hint == "Did you mean MatviewMeta?"


class BeatElsewhere:
    def db_for_write(self, model: type[models.Model], **hints: Any) -> str | None:
        return "elsewhere" if model._meta.app_label == "django_celery_beat" else None


class TestChecksOfCelery:
    def test_e014_beat_in_another_database(self, settings: Any) -> None:
        assert celery_checks.check_one_database() == []
        settings.DATABASE_ROUTERS = [BeatElsewhere()]

        error = only(celery_checks.check_one_database(), "E014")

        assert "django_celery_beat is in the database 'elsewhere'" in error.msg

    @pytest.mark.parametrize(
        ("scheduler", "right"),
        [
            ("django_celery_beat.schedulers:DatabaseScheduler", True),
            ("celery.beat:PersistentScheduler", False),
        ],
    )
    def test_w005_a_beat_that_does_not_read_the_database(
        self, conf: Any, scheduler: str, right: bool
    ) -> None:
        conf.beat_scheduler = scheduler

        problems = celery_checks.check_beat_scheduler()

        assert ids(problems) == ([] if right else ["matviews.W005"])

    @pytest.fixture
    def conf(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        app = Celery("checked", set_as_current=False)
        monkeypatch.setattr(celery_checks, "current_app", app)
        return app.conf

    @pytest.mark.parametrize(
        ("accepted", "right"),
        [
            (["json"], True),
            (["application/json"], True),
            (["pickle", "json"], True),
            (["pickle"], False),
            ([], False),
        ],
    )
    def test_e011_workers_that_refuse_json(
        self, conf: Any, accepted: list[str], right: bool
    ) -> None:
        conf.accept_content = accepted

        problems = celery_checks.check_accepts_json()

        assert ids(problems) == ([] if right else ["matviews.E011"])
        assert all(str(accepted) in p.msg and "'json'" in (p.hint or "") for p in problems)

    @pytest.mark.parametrize("eager", [False, True])
    def test_e012_eager_tasks_in_production(self, conf: Any, eager: bool) -> None:
        conf.task_always_eager = eager

        problems = celery_checks.check_not_eager()

        assert ids(problems) == (["matviews.E012"] if eager else [])
        assert all("task_always_eager" in p.msg and "worker" in (p.hint or "") for p in problems)

    @pytest.mark.parametrize(
        ("url", "options", "missing"),
        [
            ("redis://here", {}, "socket_timeout and socket_connect_timeout"),
            ("rediss://here", {"socket_timeout": 2}, "socket_connect_timeout"),
            ("sentinel://a;sentinel://b", None, "socket_timeout and socket_connect_timeout"),
            (["redis://a", "redis://b"], {}, "socket_timeout and socket_connect_timeout"),
            ("redis://here", {"socket_timeout": 2, "socket_connect_timeout": 2}, None),
            ("amqp://here", {}, None),
            ([], {}, None),
        ],
    )
    def test_w002_a_redis_that_may_block_who_publishes(
        self, conf: Any, url: Any, options: Any, missing: str | None
    ) -> None:
        conf.broker_url = url
        conf.broker_transport_options = options

        problems = celery_checks.check_broker_timeouts()

        assert ids(problems) == (["matviews.W002"] if missing else [])
        assert all(
            f"do not set {missing}:" in p.msg and "2 (seconds)" in (p.hint or "") for p in problems
        )


def test_a_definition_is_read_again_when_asked() -> None:
    view = make_view(**six_hooks())
    before = define(view)

    view.do_insert = classmethod(lambda cls, limit: 0)

    assert before.hooks[Phase.INSERT].kind is HookKind.WHOLE
    assert define(view).hooks[Phase.INSERT].kind is HookKind.LIMIT
