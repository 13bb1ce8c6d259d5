"""What the command tells of a refresh while it works, without a database and without a terminal."""

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.utils import timezone
from rich.console import Console

from matviews.engine import BatchReport, Claim, Message, Outcome, Progress, RunProgress
from matviews.management.bars import Bars, bar
from matviews.management.progress import Meter, so_far
from matviews.management.reporting import Lines
from matviews.models import PhaseRun
from matviews.phases import Phase
from matviews.presentation import format_duration
from matviews.states import RunState

LABEL = "warehouse_reporting.CustomerLifetimeValueByRegion"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def progress(
    phase: Phase = Phase.INSERT,
    *,
    current: bool = True,
    run: dict[str, Any] | None = None,
    **own: Any,
) -> RunProgress:
    values = {"state": RunState.RUNNING if current else RunState.PENDING, **(run or {})}
    return RunProgress(
        phase=phase, run=PhaseRun(pk=1, phase=phase, **values), current=current, **own
    )


def under_way(rows: int, batches: int, estimate: int | None = None, **others: Any) -> RunProgress:
    return progress(run={"rows": rows, "batches": batches, "estimate": estimate}, **others)


def looking(keys_scanned: int, rows: int, **others: Any) -> RunProgress:
    """A phase derived from `source()`, which looks through keys."""
    run = {
        "fingerprint": "f",
        "keys_scanned": keys_scanned,
        "rows": rows,
        "batches": 1 if keys_scanned else 0,
    }
    return progress(run={**run, **others})


def ended(rows: int, batches: int, **others: Any) -> RunProgress:
    run = {"rows": rows, "batches": batches, "seconds": 1.5, "state": RunState.SUCCEEDED}
    return progress(current=False, run={**run, **others})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    return Meter(clock)


def after(meter: Meter, clock: Clock, *steps: tuple[float, RunProgress]) -> str:
    for seconds, step in steps:
        clock.now += seconds
        meter.note(step)
    return meter.text


def test_the_rate_and_the_time_left_go_by_the_clock_on_the_wall(meter: Meter, clock: Clock) -> None:
    # given 1,000 rows in 2 seconds, of which the hooks took only one
    run = {"rows": 1000, "batches": 1, "estimate": 5000, "seconds": 1.0}
    text = after(meter, clock, (0, under_way(0, 0)), (2, progress(run=run)))
    # then the second that went elsewhere is part of the rate
    assert text == "1,000 of about 5,000 rows, 500 rows/s, 8.0 s left"


def test_the_time_left_runs_down_while_a_batch_takes_its_time(meter: Meter, clock: Clock) -> None:
    after(meter, clock, (0, under_way(0, 0)), (2, under_way(1000, 1, 5000)))

    clock.now += 3

    assert meter.text.endswith(", 5.0 s left")


def test_a_batch_that_takes_longer_than_the_time_left_says_so(meter: Meter, clock: Clock) -> None:
    after(meter, clock, (0, under_way(0, 0)), (2, under_way(1000, 1, 1500)))

    clock.now += 20

    assert meter.text == ("1,000 of about 1,500 rows, 500 rows/s, this batch has taken 20 s so far")


def test_only_the_last_half_minute_counts_for_the_rate(meter: Meter, clock: Clock) -> None:
    # given a fast minute and then a slow one
    fast = [(1.0, under_way(1000 * n, n)) for n in range(60)]
    slow = [(1.0, under_way(60_000 + 10 * n, 60 + n)) for n in range(60)]

    assert after(meter, clock, *fast).endswith("1,000 rows/s")
    assert after(meter, clock, *slow).endswith(", 10 rows/s")


def test_without_an_estimate_there_is_no_total_and_no_time_left(meter: Meter, clock: Clock) -> None:
    text = after(meter, clock, (0, under_way(0, 0)), (1, under_way(700, 1)))

    assert text == "700 rows, 700 rows/s"
    assert (meter.progress.total, meter.left) == (None, None)


def test_an_estimate_that_is_overrun_says_so(meter: Meter, clock: Clock) -> None:
    text = after(meter, clock, (0, under_way(0, 0)), (1, under_way(700, 1, 600)))

    assert text == "700 rows, 700 rows/s, more than the 600 estimated"
    assert (meter.progress.total, meter.left) == (None, None)


def test_batches_that_write_nothing_are_told(meter: Meter, clock: Clock) -> None:
    assert after(meter, clock, (0, under_way(0, 3))) == "0 rows in 3 batches"


def test_a_run_that_others_began_has_no_jump_in_its_rate(meter: Meter, clock: Clock) -> None:
    # given a run with a million rows when it is first seen
    text = after(meter, clock, (0, under_way(10**6, 9)), (1, under_way(10**6 + 50, 10)))

    assert text == "1,000,050 rows, 50 rows/s"


def test_a_derived_phase_tells_of_the_keys_that_it_has_looked_through(
    meter: Meter, clock: Clock
) -> None:
    # given a phase that looks at many keys and writes few rows
    text = after(meter, clock, (0, looking(0, 0)), (2, looking(12_000, 340)))
    assert text == "12,000 keys checked, 340 rows written, 6,000 keys/s"
    # when it is known how many keys there are
    text = after(meter, clock, (0, looking(18_000, 340, estimate=36_000, batches=2)))
    # then
    assert text == "18,000 of about 36,000 keys, 340 rows written, 9,000 keys/s, 2.0 s left"
    assert meter.progress.share == 0.5


def test_a_derived_phase_that_writes_nothing_has_a_rate_and_an_end(
    meter: Meter, clock: Clock
) -> None:
    assert after(meter, clock, (0, looking(0, 0)), (1, looking(5000, 0, estimate=10_000))) == (
        "5,000 of about 10,000 keys, 0 rows written, 5,000 keys/s, 1.0 s left"
    )


def test_a_run_that_starts_again_is_not_said_to_go_backwards(meter: Meter, clock: Clock) -> None:
    # given a run whose definition changes under way
    text = after(
        meter, clock, (0, looking(0, 0)), (1, looking(9000, 5)), (1, looking(100, 6, batches=2))
    )

    assert text == "100 keys checked, 6 rows written"


@pytest.mark.parametrize(("keys_scanned", "share"), [(25, 0.25), (75, 0.75)])
def test_the_bar_of_a_derived_phase_goes_by_its_keys(
    keys_scanned: int, share: float, meter: Meter
) -> None:
    seen = looking(keys_scanned, 0, estimate=100)
    meter.note(seen)

    drawn = bar(seen, meter, 40)

    assert (drawn.completed, drawn.total, drawn.pulse) == (share, 1, False)


def test_progress_adds_up_and_is_unknown_if_one_part_is() -> None:
    derived = PhaseRun(
        fingerprint="f", keys_scanned=30, rows=2, batches=3, estimate=90, seconds=3.0
    )
    done = PhaseRun(fingerprint="f", keys_scanned=10, rows=1, state=RunState.SUCCEEDED)
    hooks = PhaseRun(rows=20, estimate=40)
    overrun = PhaseRun(rows=20, estimate=19)

    assert Progress.of([derived, done]) == Progress(
        unit="key", done=40, total=100, rows=3, batches=3, rate=10.0
    )
    assert Progress.of([hooks]) == Progress(
        unit="row", done=20, total=40, rows=20, batches=0, rate=0.0
    )
    assert Progress.of([hooks, overrun]).total is None
    assert Progress.of([hooks, PhaseRun(rows=20)]).total is None
    assert (Progress.of([hooks]).share, Progress.of([]).share) == (0.5, None)


def test_a_worker_is_named_once_it_is_worth_telling(meter: Meter, clock: Clock) -> None:
    now = timezone.now()
    just_now = Claim("vm-1:4711", now)
    for_long = Claim("vm-1:4711", now - timedelta(seconds=75))

    assert after(meter, clock, (0, under_way(0, 0, claim=just_now))) == "0 rows"
    assert after(meter, clock, (0, under_way(0, 0, claim=for_long))) == (
        "0 rows, waiting for the worker vm-1:4711 (1 min 15 s so far)"
    )


def test_a_long_log_that_is_moved_first_is_told_at_once(
    meter: Meter, clock: Clock, lines: list[str]
) -> None:
    claim = Claim("vm-1:4711", timezone.now() - timedelta(seconds=75))
    waiting = under_way(0, 0, claim=claim, to_move=250_000)
    reporter = Lines(lines.append, lines.append, clock=clock)
    text = "0 rows, moving 250,000 entries of the change log"

    for _look in range(3):
        reporter.show(LABEL, [waiting])

    assert after(meter, clock, (0, waiting)) == text
    assert lines == [f"{LABEL} insert: {text}"]


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (progress(Phase.DELETE, current=False), "pending"),
        (ended(0, 0), "nothing to do"),
        (ended(0, 1), "1 batch, 1.5 s"),
        (ended(12_000, 13), "12,000 rows in 13 batches, 1.5 s"),
        (ended(0, 3, fingerprint="f"), "0 rows in 3 batches, 1.5 s"),
        (ended(5, 1, state=RunState.FAILED, error="ValueError: one\ntwo"), "failed"),
        (under_way(5, 1, other=7, ahead=True), "refresh 7 comes first: 5 rows"),
        (under_way(5, 1, other=7), "5 rows (shared with refresh 7)"),
        (
            under_way(5, 1, lost=True),
            "5 rows, the end of the last batch could not be recorded; trying again",
        ),
        (
            progress(run={"rows": 5, "failures": 1, "error": "OperationalError: deadlock\nDETAIL"}),
            "5 rows, trying again after OperationalError: deadlock",
        ),
    ],
)  # fmt: skip
def test_each_state_has_its_words(seen: RunProgress, text: str, meter: Meter) -> None:
    meter.note(seen)

    assert meter.text == text


def test_what_is_left_behind_is_told() -> None:
    assert so_far(under_way(5000, 3, shard=1)) == "insert shard 1 5,000 rows in 3 batches"
    assert so_far(progress(current=False)) == "insert not started"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0 ms"), (0.04, "40 ms"), (9.94, "9.9 s"), (9.96, "10 s"), (59.7, "1 min"),
        (75, "1 min 15 s"),
        (timedelta(seconds=3725), "1 h 02 min"), (86_400, "1 d"), (100_000, "1 d 03 h"),
    ],
)  # fmt: skip
def test_durations_are_words(seconds: timedelta | float, words: str) -> None:
    assert format_duration(seconds) == words


@pytest.fixture
def lines() -> list[str]:
    return []


def test_lines_come_when_a_phase_ends_and_every_ten_seconds(lines: list[str], clock: Clock) -> None:
    reporter = Lines(lines.append, lines.append, clock=clock)
    to_come = progress(Phase.UPDATE, current=False)

    reporter.show(LABEL, [under_way(1, 1), to_come])
    assert lines == []

    clock.now += 11
    reporter.show(LABEL, [under_way(2, 2), to_come])
    reporter.show(LABEL, [under_way(3, 3), to_come])
    assert [line.partition(", ")[0] for line in lines] == [f"{LABEL} insert: 2 rows"]

    for _again in range(2):
        reporter.show(LABEL, [ended(4, 4), to_come])
    assert lines[1:] == [f"{LABEL} insert: 4 rows in 4 batches, 1.5 s"]


def test_a_worker_that_is_waited_for_gets_a_line_at_once(lines: list[str], clock: Clock) -> None:
    since = timezone.now() - timedelta(seconds=3)
    waiting = under_way(0, 0, claim=Claim("vm-1:4711", since))
    reporter = Lines(lines.append, lines.append, clock=clock)

    for _look in range(3):
        reporter.show(LABEL, [waiting])

    assert lines == [f"{LABEL} insert: 0 rows, waiting for the worker vm-1:4711 (3.0 s so far)"]


def test_batches_are_lines_where_that_is_wanted(lines: list[str]) -> None:
    message = Message(Phase.INSERT, 1, 1)
    done = BatchReport(message=message, outcome=Outcome.DONE, label="a.B", rows=5, limit=9)
    busy = BatchReport(message=message, outcome=Outcome.BUSY)

    Lines(lines.append, lines.append).batch(done)
    reporter = Lines(lines.append, lines.append, batches=True)
    reporter.batch(done)
    reporter.batch(busy)

    assert lines == ["a.B insert: batch of 5 rows of at most 9, 0 ms"]


def screen(width: int, phases: list[RunProgress], *, height: int = 24, closed: bool = True) -> str:
    console = Console(
        file=(out := StringIO()), width=width, height=height, force_terminal=True,
        color_system=None, legacy_windows=False,
    )  # fmt: skip
    bars = Bars(console)
    bars.show(LABEL, phases)
    if not closed:
        console.print("----")
    bars.close()
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_bars_cut_no_label_and_no_text(width: int) -> None:
    # given shards, and text that is longer than a narrow terminal
    phases = [
        under_way(12_345, 3, 336_776, shard=0),
        progress(Phase.INSERT, shard=1, run={"failures": 1, "error": "E: " + "long " * 30}),
        progress(Phase.UPDATE, current=False, shard=0),
    ]

    words = " ".join(screen(width, phases).split())

    assert LABEL in words.replace(" ", "")
    assert "insert shard 1" in words
    assert "update shard 0" in words
    assert "…" not in words
    assert words.count("long") >= 30


def test_a_view_with_nothing_to_do_takes_one_line() -> None:
    picture = screen(80, [ended(0, 0), progress(Phase.UPDATE, current=False)])
    assert "nothing to do" in picture

    assert f"✓ {LABEL}: nothing to do\n" in screen(80, [ended(0, 0)])


def test_a_low_terminal_shows_the_shards_that_have_their_turn() -> None:
    done = ended(9, 1).run
    phases = [RunProgress(phase=Phase.INSERT, shard=number, run=done) for number in range(30)]
    phases.append(under_way(7, 1, shard=30))

    live = screen(80, phases, height=12, closed=False).partition("----")[0]
    whole = screen(80, phases, height=12)

    assert "insert shard 30" in live
    assert "and 23 more" in live
    assert "insert shard 29" not in live
    assert "insert shard 29" in whole.partition("and 23 more")[2]


def test_bars_of_a_terminal_without_unicode_are_plain() -> None:
    class Ascii(StringIO):
        encoding = "ascii"

    console = Console(file=(out := Ascii()), width=80, force_terminal=True, color_system=None)
    bars = Bars(console)
    bars.show(LABEL, [ended(9, 1), under_way(7, 1)])
    bars.close()

    assert out.getvalue().isascii()
