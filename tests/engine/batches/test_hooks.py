"""Exceptions of hooks that are no `Exception`."""

import asyncio
import logging
from typing import Any

import pytest

from matviews import engine
from matviews.models import PhaseRun
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.engine import due

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


def raising(error: BaseException) -> type[Any]:
    def do_insert(cls: Any) -> int:
        raise error

    hooks: dict[str, Any] = {
        "needs_insert": classmethod(lambda cls: True),
        "do_insert": classmethod(do_insert),
    }
    options = view_classes.INSERT_ONLY
    return view_classes.ready(view_classes.make_view("Raising", options=options, **hooks))


class Unreadable(BaseException):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("error", [asyncio.CancelledError("why"), GeneratorExit(), Unreadable()])
@pytest.mark.usefixtures("own_views")
def test_fail_the_phase_like_any_other(error: BaseException) -> None:
    refresh = view_classes.run(raising(error))
    assert refresh.state == RefreshState.FAILED
    assert f"sample.Raising.do_insert raised {type(error).__name__}" in refresh.error
    assert type(error).__name__ in PhaseRun.objects.get().traceback


@pytest.mark.usefixtures("own_views")
def test_one_that_ends_the_process_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    view = raising(SystemExit("the library gave up"))
    engine.request(view)
    with caplog.at_level(logging.WARNING, "matviews"), pytest.raises(SystemExit):
        engine.run_batch(due(view))
    (record,) = [each for each in caplog.records if "hook ended its process" in each.message]
    assert record.exc_info
    assert record.exc_info[0] is SystemExit
    assert (record.view, record.phase) == ("sample.Raising", "insert")  # type: ignore[attr-defined]
