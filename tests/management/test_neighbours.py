"""Views around the named ones, their order, and the wave of a refresh."""

from collections.abc import Iterator

import pytest

from matviews import tasks
from matviews.models import Origin, Refresh
from tests.helpers.view_graphs import DIAMOND, Views, built, label, label_names
from tests.management.test_command import Ran, command

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]


@pytest.fixture
def views() -> Iterator[Views]:
    """The diamond, with a change, without schedules."""
    with built(DIAMOND, None) as found:
        found.change()
        yield found


def names(ran: Ran) -> str:
    return label_names([each["view"] for each in ran.document["views"]])


def test_named_views_are_sorted_and_wait_for_each_other(
    views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "dispatch", lambda _view: True)
    here = command("--models", "D", "B", "A", "C", "--format", "json")
    views.change()
    queued = command("--enqueue", "--models", "D", "A", "--format", "json")

    assert names(here) == "ABCD"
    assert names(queued) == "AD"
    first, last = queued.document["views"]
    assert last["upstream_refreshes"] == [first["refresh"]]
    assert Refresh.objects.get(pk=last["refresh"]).waits_for_upstream
    assert not Refresh.objects.get(pk=first["refresh"]).waits_for_upstream


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--models", "B", "--with-upstream"], "AB"),
        (["--models", "B", "--with-downstream"], "BD"),
        (["--models", "B", "--with-upstream", "--with-downstream"], "ABD"),
        (["--models", "D", "--with-upstream"], "ABCD"),
    ],
)
def test_views_around_the_named_ones(views: Views, options: list[str], expected: str) -> None:
    ran = command(*options, "--format", "json")

    assert (ran.status, names(ran)) == (0, expected)
    origins = {each["view"]: each["origin"] for each in ran.document["views"]}
    assert origins[label(options[1])] == Origin.COMMAND
    assert origins.get(label("D")) in (None, Origin.DEPENDENCY, Origin.COMMAND)
    assert (origins.get(label("D")) == Origin.DEPENDENCY) == ("downstream" in "".join(options))


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (["--with-upstream"], "--with-upstream is for named views: add --models."),
        (["--models", "A", "--with-downstream", "--list"], "--list refreshes no views"),
        (["--models", "A", "--with-upstream", "--follow"], "--follow refreshes the views whose"),
        (["--wave", "x"], "--wave needs the number of a refresh, not 'x'."),
        (["--wave", "9876543"], "There is no refresh 9876543, or it has been deleted."),
    ],
)
def test_what_makes_no_sense_is_refused(views: Views, options: list[str], refusal: str) -> None:
    ran = command(*options)

    assert ran.status == 2
    assert refusal in ran.err


def test_the_wave_of_a_refresh(views: Views) -> None:
    command("--models", "A", "--with-downstream")
    number = views.last("C").pk
    text = command("--wave", str(number))
    found = command("--wave", str(number), "--format", "json").document["wave"]

    assert label_names([each["view"] for each in found]) == "ABCD"
    assert found[3]["upstream_refreshes"] == [found[1]["refresh"], found[2]["refresh"]]
    assert [each["rows"] for each in found] == [1, 1, 1, 1]
    assert None not in [each["finished_at"] for each in found]
    assert f"{label('D')}: succeeded, requested after" in text.out
    assert f"follows {found[1]['refresh']}, {found[2]['refresh']}" in text.out


def test_what_a_paused_view_does_to_those_below(views: Views) -> None:
    command("--models", "A", "--with-downstream")
    views.set("A", paused=True)
    on_time = command("--check", "--models", "D")
    pending = command("--check", "--pending", "--models", "D")
    listed = command("--list", "--models", "D")

    told = "upstream paused: shapes.A"
    assert (on_time.status, on_time.out) == (1, f"shapes.D: not on time: {told}\n")
    assert (pending.status, pending.out) == (1, f"shapes.D: {told}\n")
    assert f"shapes.D: {told}" in listed.out
