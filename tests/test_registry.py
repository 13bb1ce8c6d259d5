from contextlib import suppress
from typing import Any

import pytest
from django.db import models

from matviews import MaterializedView, is_fresh, refresh
from matviews.exceptions import InvalidView, UnknownView
from matviews.registry import Registry, registry
from tests.helpers.view_classes import make_view, six_hooks


def registered(*labels: str) -> Registry:
    views = Registry()
    for label in labels:
        app_label, name = label.split(".")
        views.register(make_view(name, meta={"app_label": app_label}, **six_hooks()))
    return views


class TestFinding:
    @pytest.mark.parametrize(
        "name",
        ["shop.DailyTotal", "shop.dailytotal", "SHOP.DAILYTOTAL", "DailyTotal", "dailytotal"],
    )
    def test_by_label_or_bare_name_in_any_case(self, name: str) -> None:
        views = registered("shop.DailyTotal", "shop.Weekly")

        assert views.find(name).label == "shop.DailyTotal"

    def test_by_class(self) -> None:
        views = Registry()
        view = make_view(**six_hooks())
        definition = views.register(view)

        assert views.find(view) is definition

    def test_a_bare_name_of_two_views_asks_which(self) -> None:
        views = registered("shop.Total", "bank.Total")

        with pytest.raises(UnknownView) as error:
            views.find("total")

        assert str(error.value) == (
            "'total' is the name of more than one view: use one of shop.Total, bank.Total."
        )
        assert views.find("bank.total").label == "bank.Total"

    @pytest.mark.parametrize(
        ("name", "near"),
        [
            ("shop.DailyTotl", "shop.DailyTotal"),
            ("DaylyTotal", "shop.DailyTotal"),
            ("shop.WEEKLI", "shop.Weekly"),
        ],
    )
    def test_an_unknown_name_is_answered_with_near_ones(self, name: str, near: str) -> None:
        views = registered("shop.DailyTotal", "shop.Weekly")

        with pytest.raises(UnknownView) as error:
            views.find(name)

        assert str(error.value) == f"There is no view {name!r}. Did you mean {near}?"

    @pytest.mark.parametrize("name", ["", "xyz", "shop.", "."])
    def test_a_name_like_no_other_is_answered_with_all(self, name: str) -> None:
        views = registered("shop.DailyTotal", "shop.Weekly")

        with pytest.raises(UnknownView) as error:
            views.find(name)

        assert str(error.value).startswith(f"There is no view {name!r}. ")
        assert "shop.Weekly" in str(error.value)

    @pytest.mark.parametrize("nonsense", [None, 5, [], {}, ["shop.Total"]])
    def test_nonsense_is_unknown(self, nonsense: Any) -> None:
        with pytest.raises(UnknownView, match="There is no view"):
            registered("shop.Total").find(nonsense)

    def test_without_any_view_it_says_so(self) -> None:
        with pytest.raises(UnknownView, match="No view is defined"):
            Registry().find("shop.Total")

    @pytest.mark.parametrize("other", [int, models.Model, MaterializedView])
    def test_a_class_that_is_none(self, other: type) -> None:
        with pytest.raises(UnknownView) as error:
            registered("shop.Total").find(other)

        assert str(error.value) == f"{other.__name__} is not a view."


class TestUsing:
    def test_a_sound_view_is_usable(self) -> None:
        views = registered("shop.Total")

        assert views.usable("Total") is views.find("shop.Total")

    def test_a_view_with_errors_is_found_but_not_usable(self) -> None:
        views = Registry()
        views.register(make_view(**six_hooks(do_insert=None, do_update=5)))

        with pytest.raises(InvalidView) as error:
            views.usable("Made")

        assert str(error.value) == (
            "sample.Made.do_insert is missing. sample.Made.do_update is not a class method. "
            "(See `manage.py check`.)"
        )
        assert "sample.Made" in views

    def test_a_view_with_a_warning_is_usable(self) -> None:
        base = make_view("Base", **six_hooks())
        apps = base._meta.apps
        views = Registry()
        views.register(make_view("Child", bases=(base,), meta={"apps": apps}))

        assert views.usable("Child").problems
        assert views.usable("Child").errors == ()

    @pytest.mark.parametrize("ask", [refresh, is_fresh])
    def test_the_public_functions_refuse_a_view_with_errors(self, ask: Any) -> None:
        with registry.preserved():
            registry.register(make_view())

            with pytest.raises(InvalidView, match=r"sample\.Made\.needs_insert is missing"):
                ask("sample.Made")


class TestRegistering:
    def test_keeps_the_order_and_counts_each_label_once(self) -> None:
        views = registered("shop.Total", "bank.Total", "shop.Total")

        assert [view.label for view in views] == ["shop.Total", "bank.Total"]

    def test_a_class_defined_again_replaces_the_earlier_one(self) -> None:
        views = registered("sample.Made")
        again = make_view(**six_hooks())

        views.register(again)

        assert views.find("Made").model is again

    def test_an_abstract_model_is_refused(self) -> None:
        view = make_view(meta={"abstract": True}, **six_hooks())

        with pytest.raises(InvalidView) as error:
            Registry().register(view)

        assert str(error.value) == "sample.Made is abstract: only concrete models are views."

    @pytest.mark.parametrize("bases", [(models.Model,), (MaterializedView,), ()])
    def test_what_is_no_model_with_the_mixin_is_refused(self, bases: tuple[type, ...]) -> None:
        other = (
            make_view("Other", bases=bases)
            if models.Model in bases
            else type("Other", bases, {"__module__": "somewhere"})
        )

        with pytest.raises(InvalidView, match=r"Other'> is not a model that mixes in Material"):
            Registry().register(other)

    @pytest.mark.parametrize("name", ["shop.Total", "shop.total", "total"])
    def test_a_view_can_be_taken_out_again(self, name: str) -> None:
        views = registered("shop.Total", "shop.Weekly")

        views.unregister(name)

        assert [view.label for view in views] == ["shop.Weekly"]
        assert "shop.Total" not in views

    def test_taking_out_an_unknown_view_is_refused(self) -> None:
        with pytest.raises(UnknownView):
            registered("shop.Total").unregister("shop.Other")

    @pytest.mark.parametrize("fails", [False, True])
    def test_what_a_test_changes_is_taken_back(self, fails: bool) -> None:
        before = list(registry)

        def end() -> None:
            if fails:
                raise KeyError

        with suppress(KeyError), registry.preserved():
            registry.register(make_view(**six_hooks()))
            registry.unregister("sample.Limited")
            assert "sample.Made" in registry
            assert "sample.Limited" not in registry
            end()

        assert list(registry) == before

    def test_views_may_be_registered_while_they_are_listed(self) -> None:
        views = registered("shop.Total")

        for view in views:
            views.unregister(view.label)

        assert list(views) == []
