"""Views whose refreshes are usually full: counted over the last ones, and named by a check."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.db import models
from django.test import Client

from matviews import changes, engine
from matviews.changes import Tracking
from matviews.engine import RecentRefreshes, recent_refreshes
from matviews.models import ViewControl
from tests.admin.test_source_section import section, text
from tests.helpers.keyed_views import Kept
from tests.management.test_command import command

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

LABEL = "shapes.Made"
WORDS = "7 of the last 9 refreshes were full, most of them because all keys were marked as dirty"


@pytest.fixture
def kept() -> Iterator[Kept]:
    """A view whose first refresh, which is full, has succeeded."""
    kept = Kept(lambda **more: models.CharField(max_length=8, **more))
    with kept.tracked():
        kept.refresh()
        yield kept


def refresh_in_full(kept: Kept, times: int) -> None:
    for _ in range(times):
        kept.View.mark_dirty()
        kept.refresh()


def refresh_by_keys(kept: Kept, times: int) -> None:
    for _ in range(times):
        kept.View.mark_dirty(["a"])
        kept.change()


def found() -> list[CheckMessage]:
    return [each for each in run_checks(databases=["default"]) if each.id == "matviews.W041"]


def test_a_new_view_has_one_full_refresh(kept: Kept) -> None:
    recent = recent_refreshes(LABEL)

    assert (recent.count, recent.full, recent.usually_full) == (1, 1, False)
    assert recent.reason == "it has not succeeded since tracking began"


def test_a_view_that_does_not_exist_has_none() -> None:
    recent = recent_refreshes("shapes.Nothing")

    assert recent == RecentRefreshes(count=0, full=0, reason="")
    assert recent.in_words == ""


def test_only_refreshes_in_which_something_ran_count(kept: Kept) -> None:
    refresh_by_keys(kept, 1)
    for _ in range(3):
        kept.refresh()

    assert (recent_refreshes(LABEL).count, recent_refreshes(LABEL).full) == (2, 1)


def test_the_oldest_drop_out(kept: Kept) -> None:
    refresh_in_full(kept, 4)
    refresh_by_keys(kept, 18)

    recent = recent_refreshes(LABEL)

    assert (recent.count, recent.full) == (20, 2)
    assert recent.reason == "all keys were marked as dirty"


@pytest.mark.parametrize(
    ("count", "full", "usually"),
    [(5, 5, True), (4, 4, False), (20, 11, True), (20, 10, False), (9, 5, True)],
)
def test_what_is_usual(count: int, full: int, usually: bool) -> None:
    recent = RecentRefreshes(count=count, full=full, reason="it was so")

    assert recent.usually_full == usually


def test_a_view_that_is_usually_refreshed_in_full_is_named_everywhere(
    kept: Kept, admin_client: Client
) -> None:
    refresh_in_full(kept, 6)
    refresh_by_keys(kept, 2)

    (warning,) = found()
    assert warning.msg == f"{LABEL}: {WORDS}."
    assert f"--explain --models {LABEL}" in str(warning.hint)
    listed = command("--list")
    assert f"{LABEL}: {WORDS}\n" in listed.out
    assert WORDS in command("--check", "--models", LABEL).out
    assert f"  {WORDS}\n" in command("--explain", "--models", LABEL).out
    assert WORDS in text(section(admin_client, "source", LABEL))
    for what in ("--list", "--check", "--explain"):
        (view,) = command(what, "--models", LABEL, "--format", "json").document["views"]
        assert view["recent_refreshes"] == {
            "count": 9, "full": 7, "reason": "all keys were marked as dirty",
        }  # fmt: skip


def test_no_other_view_is(kept: Kept) -> None:
    refresh_in_full(kept, 3)
    refresh_by_keys(kept, 4)

    assert found() == []
    assert "were full" not in command("--list").out
    assert "were full" not in command("--check", "--models", LABEL).out


@pytest.mark.parametrize("strategy", ["full", "full_staged"])
def test_nothing_is_said_of_a_view_that_is_pinned_to_full_refreshes(
    kept: Kept, strategy: str
) -> None:
    refresh_in_full(kept, 6)
    assert found()

    ViewControl.objects.update(strategy=strategy)

    assert found() == []
    assert recent_refreshes(LABEL).in_words == ""
    for what in ("--list", "--check", "--explain"):
        assert "were full" not in command(what, "--models", LABEL).out


def test_nothing_is_said_of_a_view_that_is_not_tracked(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh_in_full(kept, 6)
    assert recent_refreshes(LABEL).usually_full

    monkeypatch.setattr(changes, "known_tracking", lambda *_arguments: Tracking(reason="it is so"))

    assert not recent_refreshes(LABEL).usually_full
    assert recent_refreshes(LABEL).in_words == ""


def test_a_view_whose_changes_never_lead_to_keys_is_named_by_its_definition_alone() -> None:
    measure: Any = models.TimeField
    kept = Kept(measure)
    with kept.tracked():
        refresh_in_full(kept, 6)

        assert engine.recent_refreshes(LABEL).usually_full
        assert found() == []


def test_one_refresh_is_told_in_the_singular() -> None:
    only = RecentRefreshes(count=1, full=1, reason="all keys were marked as dirty")
    assert only.in_words == "the last refresh was full because all keys were marked as dirty"
