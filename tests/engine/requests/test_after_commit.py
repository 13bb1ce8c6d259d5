"""What follows a commit may fail: the caller's work is done, and an error is logged."""

from typing import Any, NoReturn

import pytest
from django.core import serializers
from django.db import DatabaseError, transaction

from matviews import engine, tasks
from matviews.models import Refresh, ViewControl
from tests.helpers.engine import items
from tests.sample.models import Limited

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


def fail(*_args: Any) -> NoReturn:
    raise DatabaseError("the server is gone")


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


@pytest.mark.parametrize("within", [True, False], ids=["in a transaction", "without one"])
class TestErrorsAreLogged:
    def test_after_a_request(
        self, within: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        items(1)
        monkeypatch.setattr(tasks, "dispatch", fail)

        self.do(Limited.refresh, within)

        assert Refresh.objects.count() == 1
        assert "the server is gone" in caplog.text

    def test_after_a_control_was_saved(
        self, within: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        control = ViewControl.objects.get(label="sample.Limited")
        monkeypatch.setattr(engine, "sync_shards", fail)

        self.do(control.save, within)

        assert "the server is gone" in caplog.text

    @staticmethod
    def do(work: Any, within: bool) -> None:
        if within:
            with transaction.atomic():
                work()
        else:
            work()


def test_an_error_after_rows_were_loaded_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    control = ViewControl.objects.get(label="sample.Limited")
    (loaded,) = serializers.deserialize("python", serializers.serialize("python", [control]))
    monkeypatch.setattr(engine, "sync_controls", fail)

    with transaction.atomic():
        loaded.save()

    assert "the server is gone" in caplog.text
