"""A view whose definition is wrong is not refreshed, and keeps nobody from migrating."""

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError
from django.db import models
from django.db.models import Count, F
from django.test import override_settings

from matviews import MaterializedView, checks, engine
from matviews.exceptions import InvalidView
from matviews.registry import registry
from matviews.states import RefreshState, ViewState
from matviews.tasks import inline
from tests.helpers.tables import derived_view, key, made, model
from tests.helpers.view_classes import six_hooks
from tests.shapes.models import Order

pytestmark = [pytest.mark.database, pytest.mark.django_db, pytest.mark.usefixtures("alone")]


def misspelt_option() -> type[Any]:
    return derived_view(
        lambda cls: Order.objects.values(ref=F("pk")), options={"fases": []}, ref=key()
    )


def without_hooks() -> type[Any]:
    return model("Made", bases=(MaterializedView, models.Model), ref=key())


def unknown_column() -> type[Any]:
    return derived_view(lambda cls: Order.objects.values(ref=F("pk"), m=F("slot")), ref=key())


def raising() -> type[Any]:
    def source(cls: Any) -> Any:
        raise LookupError("no such thing")

    return derived_view(source, ref=key())


class Unreadable:
    """An option whose value cannot even be compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compared with nothing")

    __hash__ = None  # type: ignore[assignment]


def unreadable_option() -> type[Any]:
    return derived_view(
        lambda cls: Order.objects.values(ref=F("pk")), options={"phases": [Unreadable()]}, ref=key()
    )


FAULTY = [
    (misspelt_option, "W101"), (without_hooks, "W103"), (unknown_column, "W116"), (raising, "W115"),
    (unreadable_option, "W121"),
]  # fmt: skip
faulty = pytest.mark.parametrize(("define", "number"), FAULTY)


def output_of(*command: str) -> str:
    out = io.StringIO()
    call_command(*command, stdout=out, stderr=out, no_color=True, skip_checks=False)
    return out.getvalue()


@faulty
class TestFaultyView:
    def test_keeps_nobody_from_migrating(
        self, define: Callable[[], type], number: str, settings: Any
    ) -> None:
        settings.SILENCED_SYSTEM_CHECKS = []
        define()

        for command in (
            ["migrate", "--check"],
            ["makemigrations", "--check", "--dry-run", "sample"],
        ):
            assert f"(matviews.{number}) shapes.Made" in output_of(*command)

    def test_fails_a_check_that_fails_on_warnings(
        self, define: Callable[[], type], number: str, settings: Any
    ) -> None:
        settings.SILENCED_SYSTEM_CHECKS = []
        define()

        with pytest.raises(SystemCheckError, match=f"matviews.{number}"):
            call_command("check", fail_level="WARNING")

    @pytest.mark.parametrize("silenced", [[], None])
    def test_is_not_refreshed_silenced_or_not(
        self, define: Callable[[], type], number: str, silenced: Any, transactional_db: None
    ) -> None:
        view = define()
        silenced = [f"matviews.{number}"] if silenced is None else silenced
        with override_settings(SILENCED_SYSTEM_CHECKS=silenced), made(view):
            try:
                refresh = inline.run_to_end(engine.request(view))
            except InvalidView as error:
                told = str(error)
            else:
                assert refresh.state == RefreshState.FAILED
                told = refresh.error
            assert "shapes.Made" in told
            (status,) = engine.view_statuses(["shapes.Made"])
            with pytest.raises(CommandError):
                call_command("update_materialized_views", "--check", "--models", "shapes.Made")

        assert status.state == ViewState.INVALID
        assert status.error.startswith("shapes.Made")


class Elsewhere:
    def db_for_write(self, model: Any, **_hints: Any) -> str | None:
        return "elsewhere" if model.__name__ == "Hooked" else None


def test_a_view_in_another_database_is_not_refreshed(settings: Any) -> None:
    settings.DATABASE_ROUTERS = [Elsewhere()]
    model("Hooked", bases=(MaterializedView, models.Model), ref=key(), **six_hooks())

    (fault,) = checks.check_views()

    assert fault.id == "matviews.W108"
    with pytest.raises(InvalidView, match="a batch could not commit to both at once"):
        registry.usable("shapes.Hooked")


def test_a_class_that_cannot_be_read_is_defined_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matviews.registry.define", lambda model: SimpleNamespace().missing)

    view = derived_view(
        lambda cls: Order.objects.values(ref=F("pk")).annotate(Count("pk")), ref=key()
    )

    (fault,) = registry.find(view).errors
    assert fault.id == "matviews.W121"
    assert fault.msg.startswith(
        "shapes.Made: its hooks and options cannot be read: AttributeError:"
    )
