"""The pictures of what refreshes did: sound XML that says in words what it draws."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from django.utils.safestring import SafeString
from hypothesis import given
from hypothesis import strategies as st

from matviews.admin.pictures import MAX_BARS, durations_picture, pace_picture, rows_picture
from matviews.models import PhaseRun
from matviews.states import RunState

SVG = "{http://www.w3.org/2000/svg}"
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
GEOMETRY = {"x", "y", "cx", "cy", "r", "width", "height", "d", "points", "dx", "viewBox"}

ENDED = [state for state in RunState if not state.active]
seconds = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
rows = st.integers(min_value=0, max_value=2**63 - 1)


def run(number: int = 1, **values: Any) -> PhaseRun:
    """The run of the refresh with the same number."""
    given = {"state": RunState.SUCCEEDED, "batches": 1, "finished_at": NOON, **values}
    return PhaseRun(pk=given.pop("pk", number), refresh_id=number, phase="insert", **given)


def runs(values: Sequence[float], name: str = "seconds") -> list[PhaseRun]:
    return [run(number, **{name: value}) for number, value in enumerate(values, 1)]


def sampled(*samples: tuple[int, int | None, float, float]) -> PhaseRun:
    return run(samples=[list(sample) for sample in samples], batches=samples[-1][0])


def parsed(picture: SafeString) -> ET.Element:
    """The picture as XML, after what must hold for each."""
    root = ET.fromstring(picture.replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1))
    assert root.get("role") == "img"
    names = [each.get("id") for each in root.iter() if each.get("id")]
    assert (root.get("aria-labelledby") or "").split() == names
    for element in root.iter():
        assert element.tag != f"{SVG}script"
        assert not [name for name in element.attrib if name == "style" or name.startswith("on")]
    assert_numbers_fit(root)
    return root


def assert_numbers_fit(root: ET.Element) -> None:
    """Each number is one, and within the picture: a relative one too, as they are small."""
    size = max(float(number) for number in root.attrib["viewBox"].split())
    for element in root.iter():
        for name in GEOMETRY & set(element.attrib):
            text = re.sub(r"[MmHhVvz,]", " ", element.attrib[name]).replace("-", " -")
            assert all(-10 <= float(number) <= size for number in text.split()), (name, text)


def texts(root: ET.Element, tag: str = "text") -> list[str]:
    return ["".join(element.itertext()) for element in root.iter(SVG + tag)]


def described(picture: SafeString) -> str:
    (desc,) = texts(parsed(picture), "desc")
    return desc


def bars(picture: SafeString) -> list[float]:
    rects = [each for each in parsed(picture).iter(f"{SVG}rect") if each.get("class") == "bar"]
    return [float(each.attrib["height"]) for each in rects]


def axis(picture: SafeString) -> list[str]:
    """What is written at the gridlines, from the bottom."""
    found = parsed(picture).iter(f"{SVG}text")
    return [str(each.text) for each in found if each.get("x") == "44"]


def pictures(found: list[PhaseRun]) -> Iterator[SafeString]:
    yield durations_picture(found)
    yield rows_picture(found)


def test_without_an_ended_run_a_sentence_takes_the_picture_s_place() -> None:
    for picture in pictures([run(state=RunState.RUNNING, seconds=5.0)]):
        assert picture == '<p class="matviews-no-picture">No run has ended yet.</p>'

    assert "No batch has ended yet." in pace_picture(run())


def test_the_numbers_are_told_in_words() -> None:
    three = [
        run(1, seconds=0.25, rows=10),
        run(2, seconds=75.0, rows=0, state=RunState.FAILED),
        run(3, seconds=1.5, rows=1_234_567, state=RunState.STOPPED),
    ]

    assert described(durations_picture(three)) == (
        "3 runs: median 1.5 s, longest 1 min 15 s, 1 failed, 1 stopped."
    )
    assert described(rows_picture(three)) == (
        "3 runs: median 10 rows, most 1,234,567 rows, 1 failed, 1 stopped."
    )


def test_one_run_has_one_bar_and_one_date() -> None:
    picture = durations_picture([run(seconds=2.0)])

    assert len(bars(picture)) == 1
    assert [text for text in texts(parsed(picture)) if ":" in text] == ["5 Jan 12:00"]
    assert described(picture) == "1 run: median 2.0 s, longest 2.0 s."


def test_only_the_last_runs_are_drawn_the_oldest_at_the_left() -> None:
    picture = durations_picture(runs([float(number) for number in range(MAX_BARS + 5)]))

    heights = bars(picture)
    assert len(heights) == MAX_BARS
    assert heights == sorted(heights)
    assert described(picture) == "30 runs: median 20 s, longest 34 s."


def test_a_tooltip_tells_all_about_a_run() -> None:
    failed = run(7, seconds=2.0, rows=1, batches=3, state=RunState.NOT_CONVERGING)

    (_picture, tooltip) = texts(parsed(rows_picture([failed])), "title")

    assert tooltip == "Refresh 7, 5 Jan 12:00: 1 row in 3 batches, 2.0 s, failed"


def test_runs_that_did_not_succeed_have_a_shape_of_their_own() -> None:
    states = [RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED, RunState.NOT_CONVERGING]
    drawn = parsed(rows_picture([run(number, state=each) for number, each in enumerate(states)]))

    groups = list(drawn.iter(f"{SVG}g"))
    assert [group.get("class") for group in groups] == ["succeeded", "failed", "stopped", "failed"]
    shapes = [
        path.attrib["d"].partition("m")[2] for group in groups for path in group.iter(f"{SVG}path")
    ]
    assert shapes[0] == ""
    assert shapes[1] == shapes[3] != ""
    assert shapes[2] not in ("", shapes[1])


def test_the_shards_of_a_refresh_make_one_bar() -> None:
    shards = [
        run(1, pk=1, seconds=4.0, rows=10),
        run(1, pk=2, seconds=2.0, rows=30, state=RunState.FAILED),
    ]

    assert described(durations_picture(shards)) == "1 run: median 4.0 s, longest 4.0 s, 1 failed."
    assert described(rows_picture(shards)) == "1 run: median 40 rows, most 40 rows, 1 failed."


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 0.0], ["0", "1 ms"]),
        ([0.042], ["0", "20 ms", "40 ms", "60 ms"]),
        ([1.3], ["0", "0.5 s", "1 s", "1.5 s"]),
        ([300.0], ["0", "2 min", "4 min", "6 min"]),
        ([7200.0], ["0", "1 h", "2 h"]),
        ([900_000.0], ["0", "5 d", "10 d", "15 d"]),
    ],
)
def test_the_axis_of_durations_has_round_numbers_with_units(
    values: list[float], labels: list[str]
) -> None:
    assert axis(durations_picture(runs(values))) == labels


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0], ["0", "1"]),
        ([1], ["0", "1"]),
        ([7], ["0", "5", "10"]),
        ([336_776], ["0", "200k", "400k"]),
        ([2_500_000], ["0", "1M", "2M", "3M"]),
        ([2**63 - 1], ["0", "5,000P", "10,000P"]),
    ],
)
def test_the_axis_of_rows_has_round_numbers(values: list[float], labels: list[str]) -> None:
    assert axis(rows_picture(runs(values, "rows"))) == labels


def test_the_pace_is_told_in_words_with_its_target() -> None:
    paced = sampled((1, 1000, 1000, 0.2), (2, 4000, 4000, 1.1), (3, 4000, 120, 0.1))

    assert described(pace_picture(paced, target=1.0)) == (
        "3 batches. Seconds per batch: median 200 ms, longest 1.1 s, target 1.0 s. "
        "Rows per batch: median 1,000 rows, most 4,000 rows."
    )
    assert "Batch 2: 4,000 rows, 1.1 s" in texts(parsed(pace_picture(paced)), "title")


def test_the_pace_shows_what_there_is_to_compare_with() -> None:
    whole = sampled((1, None, 50, 3.0))
    full = sampled((1, 10, 10, 0.2), (2, 12, 12, 0.3))
    last = sampled((1, 10, 10, 0.2), (2, 12, 5, 0.3))

    def compared(picture: SafeString) -> set[str]:
        return {text.strip() for text in texts(parsed(picture)) if "- - -" in text}

    assert compared(pace_picture(whole)) == set()
    assert compared(pace_picture(full, target=0.25)) == {"- - - target 250 ms"}
    assert compared(pace_picture(last)) == {"- - - limit"}


def test_what_is_no_number_is_drawn_as_nothing() -> None:
    odd = [run(1, seconds=float("nan")), run(2, seconds=float("inf")), run(3, seconds=-1.0)]

    assert bars(durations_picture(odd))[::2] == [1.0, 1.0]


@given(st.lists(st.tuples(seconds, rows, st.sampled_from(ENDED)), min_size=1, max_size=40))
def test_any_runs_make_sound_pictures(values: list[tuple[float, int, RunState]]) -> None:
    found = [
        run(number, seconds=took, rows=wrote, state=state, finished_at=NOON + timedelta(number))
        for number, (took, wrote, state) in enumerate(values)
    ]

    for picture in pictures(found):
        assert len(bars(picture)) == min(len(values), MAX_BARS)
        assert 2 <= len(axis(picture)) <= 4


samples = st.tuples(st.none() | st.integers(1, 2**31 - 1), rows, seconds)


@given(st.lists(samples, min_size=1, max_size=60), st.integers(1, 50), st.none() | seconds)
def test_any_samples_make_a_sound_picture(
    values: list[tuple[int | None, int, float]], apart: int, target: float | None
) -> None:
    paced = sampled(*((place * apart + 1, *value) for place, value in enumerate(values)))

    drawn = parsed(pace_picture(paced, target=target))

    assert len(list(drawn.iter(f"{SVG}circle"))) == 2 * len(values)
