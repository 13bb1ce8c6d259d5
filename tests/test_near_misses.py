"""Classes that are nearly views, and names nearly like those that are read: a sentence each."""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.db import models

import matviews
from matviews import MaterializedView, checks, early_checks, engine
from matviews.exceptions import UnknownView
from matviews.queryset import check_source
from matviews.registry import registry
from tests.helpers import tables
from tests.helpers.view_classes import defined, make_view, nothing_done, six_hooks
from tests.sample.models import Item, Limited


def rows(cls: type) -> Any:
    return Item.objects.values("value", key=models.F("pk"))


FIELDS: dict[str, Any] = {
    "key": models.BigIntegerField(unique=True),
    "value": models.IntegerField(),
}


def shown(problems: tuple[CheckMessage, ...]) -> list[str]:
    return [f"{problem.msg} {problem.hint}" for problem in problems]


@pytest.mark.parametrize(
    "name",
    ["sources", "get_source", "Source", "soruce", "sorce", "_source", "source_qs", "queryset"],
)
@pytest.mark.parametrize("wrap", [classmethod, staticmethod, property, lambda function: function])
def test_a_misspelt_source_is_one_fault_that_says_so(name: str, wrap: Any) -> None:
    definition = defined(**{name: wrap(rows)}, options={"key": "key"}, **FIELDS)

    (sentence,) = shown(definition.problems)
    assert f"{name}() is not called" in sentence
    assert "Did you mean source()?" in sentence
    assert len(definition.errors) == 1


def test_a_misspelt_source_of_an_abstract_base_is_found_too() -> None:
    base = make_view("Base", meta={"abstract": True}, get_source=classmethod(rows))
    definition = defined(bases=(base,))

    (sentence,) = shown(definition.problems)
    assert "Did you mean source()?" in sentence


@pytest.mark.parametrize("source", [property(rows), Item.objects, rows, "SELECT 1", lambda: None])
def test_a_source_that_is_no_class_method_is_one_fault(source: Any) -> None:
    definition = defined(source=source, **FIELDS)

    (sentence,) = shown(definition.problems)
    assert "source is not a class method" in sentence


def test_a_field_named_source_beside_hooks_is_only_a_field() -> None:
    definition = defined(source=models.CharField(max_length=10), **six_hooks())

    assert definition.problems == ()


def test_hooks_with_a_helper_that_is_named_like_a_source_are_hooks() -> None:
    assert defined(data_source=classmethod(rows), **six_hooks()).problems == ()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("do_inserts", "do_insert"),
        ("need_update", "needs_update"),
        ("do_Delete", "do_delete"),
        ("needs_updates", "needs_update"),
    ],
)
def test_a_misspelt_hook_is_named(wrong: str, right: str) -> None:
    hooks = six_hooks()
    hooks[wrong] = hooks.pop(right)

    (sentence,) = shown(defined(**hooks).problems)

    assert f"{right} is missing" in sentence
    assert f"Did you mean {right}() by {wrong}()?" in sentence


def test_a_misspelt_hook_beside_source_is_no_longer_silent() -> None:
    definition = defined(source=classmethod(rows), do_updat=classmethod(nothing_done), **FIELDS)

    (problem,) = definition.problems
    assert problem.id == "matviews.W027"
    assert "do_updat() is not called" in problem.msg
    assert "Did you mean do_update()?" in (problem.hint or "")
    assert definition.errors == ()


@pytest.mark.parametrize("name", ["do_update_all", "needs_insert_of", "update", "do_export"])
def test_a_helper_beside_source_is_left_alone(name: str) -> None:
    definition = defined(source=classmethod(rows), **{name: classmethod(nothing_done)}, **FIELDS)

    assert definition.problems == ()


def test_a_hook_with_a_helper_that_is_named_after_it_is_left_alone() -> None:
    definition = defined(
        source=classmethod(rows),
        do_update=classmethod(nothing_done),
        do_updates=classmethod(nothing_done),
        **FIELDS,
    )

    assert definition.problems == ()


@pytest.mark.parametrize("meta", [{"key": "key"}, "key", lambda: None])
def test_a_matview_meta_that_is_no_class_is_one_fault(meta: Any) -> None:
    definition = defined(source=classmethod(rows), MatviewMeta=meta, **FIELDS)

    (sentence,) = shown(definition.problems)
    assert "MatviewMeta must be a class" in sentence


def test_a_misspelt_matview_meta_of_an_abstract_base_is_found_too() -> None:
    base = make_view(
        "Base",
        meta={"abstract": True},
        MatView=type("MatviewsMeta", (), {}),
        source=classmethod(rows),
    )
    base.MatviewsMeta = type("MatviewsMeta", (), {})
    definition = defined(bases=(base,))

    assert [problem.id for problem in definition.problems] == ["matviews.W004"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (lambda: None, "not None. Is the return statement missing?"),
        (list, "not list."),
        (Item.objects.all, "not one of model instances."),
        (lambda: Item.objects.values_list("value"), "not values_list()."),
        (lambda: Item.objects.values_list("value", flat=True), "not values_list()."),
        (lambda: Item(value=1), "not Item."),
    ],
)
def test_what_source_returns_by_mistake_is_named(rows: Any, said: str) -> None:
    definition = defined(source=classmethod(lambda cls: rows()), **FIELDS)

    (problem,) = check_source(definition, "default")
    assert f"must return a queryset of columns, {said}" in problem.msg
    assert ".values(" in (problem.hint or "")


# Views that read each other


@pytest.fixture
def copies(alone: None) -> Callable[..., Any]:
    """Makes views, each of which reads another by its name, or the sample's items."""

    def copy(name: str, read: str = "") -> Any:
        def read_rows(cls: Any) -> Any:
            model = registry.find(read).model if read else Item
            rows = model._default_manager
            return rows.values("value", "ref") if read else rows.values("value", ref=models.F("pk"))

        return tables.derived_view(
            read_rows, name=name, ref=tables.key(), value=models.IntegerField()
        )

    return copy


@pytest.mark.django_db
def test_e026_views_that_read_each_other_in_a_cycle(copies: Callable[..., Any]) -> None:
    copies("First", "Third")
    copies("Second", "First")
    copies("Third", "Second")

    (problem,) = [each for each in checks.check_sources() if each.id == "matviews.E026"]

    assert "in a cycle" in problem.msg
    assert problem.msg.count("shapes.Second") == 1


@pytest.mark.django_db
def test_a_chain_of_views_is_no_circle(copies: Callable[..., Any]) -> None:
    copies("First")
    copies("Second", "First")
    copies("Third", "First")

    assert engine.find_cycle() == []


@pytest.mark.django_db
def test_a_circle_or_a_view_of_itself_leaves_the_order_of_the_others(
    copies: Callable[..., Any],
) -> None:
    # given two views in a circle, one of itself, and two others that are named in the wrong order
    copies("Ring", "Round")
    copies("Round", "Ring")
    copies("Itself", "Itself")
    copies("Late", "Early")
    copies("Early")

    # when all are put in order
    ordered = [label.partition(".")[2] for label in engine.views_to_refresh()]

    # then each is there once, and what the others read comes before them
    assert sorted(ordered) == ["Early", "Itself", "Late", "Ring", "Round"]
    assert ordered.index("Early") < ordered.index("Late")


# Classes that are no models


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """What was there before is not looked through after each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What a test defines is not what the next one finds."""
    yield
    gc.collect()


def half() -> list[str]:
    return [
        str(problem.msg)
        for problem in early_checks.check_half_views()
        if "test_near" in problem.msg
    ]


def test_a_class_with_fields_or_a_source_that_is_no_model_is_named() -> None:
    class Total(MaterializedView):
        value = models.IntegerField()

    class Sum(MaterializedView):
        source: Any = classmethod(rows)

    class Count(MaterializedView):
        do_insert: Any = classmethod(nothing_done)

    assert len(half()) == 3
    assert any("Total is not a model, so it is not a view" in sentence for sentence in half())
    (hint, *_others) = [problem.hint or "" for problem in early_checks.check_half_views()]
    assert "(MaterializedView, models.Model)" in hint
    del Total, Sum, Count


def test_what_others_inherit_from_is_no_half_view() -> None:
    class Plain(MaterializedView):
        """Nothing of a view in it."""

    class SourceMixin(MaterializedView):
        source: Any = classmethod(rows)

    class BaseView(MaterializedView):
        source: Any = classmethod(rows)

    class Totals(MaterializedView, ABC):
        @classmethod
        @abstractmethod
        def source(cls) -> Any: ...

    class Shared(MaterializedView):
        source: Any = classmethod(rows)

    class AlsoShared(Shared):
        needs_insert: Any = classmethod(nothing_done)

    view = make_view(bases=(AlsoShared, models.Model), **FIELDS)

    assert half() == []
    del Plain, SourceMixin, BaseView, Totals, Shared, AlsoShared, view


def test_of_classes_that_inherit_only_the_last_is_named() -> None:
    class Shared(MaterializedView):
        source: Any = classmethod(rows)

    class Last(Shared):
        value = models.IntegerField()

    (sentence,) = half()
    assert "Last" in sentence
    del Shared, Last


def test_the_projects_own_classes_are_no_half_views() -> None:
    assert [p for p in early_checks.check_half_views() if "test_near" not in p.msg] == []


@pytest.mark.parametrize("name", ["Item", "item", "sample.Item", "SAMPLE.ITEM"])
def test_a_model_that_is_no_view_is_called_so(name: str) -> None:
    message = r"sample\.Item is a model, but not a view\. The views are"
    with pytest.raises(UnknownView, match=message):
        matviews.refresh(name)


# The app


@pytest.fixture
def _not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django.apps.apps.is_installed", lambda name: name != "matviews")


@pytest.mark.usefixtures("_not_installed")
def test_e023_views_without_the_app() -> None:
    (problem,) = early_checks.check_installed()

    assert problem.id == "matviews.E023"
    assert "sample.Limited" in problem.msg
    assert "INSTALLED_APPS" in (problem.hint or "")


@pytest.mark.usefixtures("_not_installed")
@pytest.mark.parametrize(
    "call",
    [
        Limited.refresh,
        Limited.is_fresh,
        Limited.mark_dirty,
        Limited.verify,
        lambda: matviews.untracked(Item).__enter__(),
    ],
)
def test_a_call_without_the_app_says_what_is_missing(call: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="matviews is not in INSTALLED_APPS"):
        call()


@pytest.mark.usefixtures("_not_installed")
def test_without_views_the_app_need_not_be_there() -> None:
    with registry.preserved():
        for definition in registry:
            registry.unregister(definition.label)

        assert early_checks.check_installed() == []


def test_with_the_app_there_is_nothing_to_say() -> None:
    assert early_checks.check_installed() == []
