"""Quiet hours by the clock of a place: across midnight, and when clocks go forward or back."""

from datetime import UTC, datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matviews.quiet_hours import QuietHours, quiet_hours_fault, read_quiet_hours, zone_fault

NIGHT = QuietHours(time(22), time(6), "Europe/Berlin")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "until"),
    [
        ("2026-11-29 20:59", None),
        ("2026-11-29 21:00", "2026-11-30 05:00"),
        ("2026-11-30 00:00", "2026-11-30 05:00"),
        ("2026-11-30 04:59", "2026-11-30 05:00"),
        ("2026-11-30 05:00", None),
        ("2026-06-30 19:59", None),
        ("2026-06-30 20:00", "2026-07-01 04:00"),
        ("2026-03-28 21:00", "2026-03-29 04:00"),  # an hour shorter
        ("2026-10-24 20:00", "2026-10-25 05:00"),  # an hour longer
    ],
)
def test_they_cross_midnight_and_follow_the_clocks_of_the_place(
    moment: str, until: str | None
) -> None:
    assert NIGHT.until(utc(moment)) == (until and utc(until))


@pytest.mark.parametrize(
    ("start", "end", "begins", "ends"),
    [
        # On 29 March 2026, 02:00 to 03:00 is skipped.
        ("02:30", "04:00", "2026-03-29 01:30", "2026-03-29 02:00"),
        ("01:00", "02:30", "2026-03-29 00:00", "2026-03-29 01:30"),
        # On 25 October 2026, 02:00 to 03:00 comes twice.
        ("02:30", "04:00", "2026-10-25 00:30", "2026-10-25 03:00"),
        ("01:00", "02:30", "2026-10-24 23:00", "2026-10-25 01:30"),
    ],
)
def test_times_that_are_skipped_or_come_twice(start: str, end: str, begins: str, ends: str) -> None:
    hours = read_quiet_hours((start, end, "Europe/Berlin"))
    second = timedelta(seconds=1)

    assert hours.until(utc(begins) - second) is None
    assert hours.until(utc(begins)) == hours.until(utc(ends) - second) == utc(ends)
    assert hours.until(utc(ends)) is None
    assert hours.last_end(utc(ends)) == utc(ends)


def test_a_day_that_is_skipped_as_a_whole() -> None:
    hours = read_quiet_hours(("02:00", "01:45", "Pacific/Apia"))  # it had no 30 December 2011

    assert hours.last_end(utc("2011-12-30 11:29")) == utc("2011-12-29 11:45")
    assert hours.until(utc("2011-12-30 11:29")) is not None


ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
MOMENTS = st.integers(1_577_836_800, 1_893_456_000).map(
    lambda each: datetime.fromtimestamp(each, UTC)
)


@given(start=st.times(), end=st.times(), zone=ZONES, moment=MOMENTS)
def test_they_end_within_a_day_and_their_last_end_is_past(
    start: time, end: time, zone: str, moment: datetime
) -> None:
    hours = QuietHours(start, end, zone)
    until, day = hours.until(moment), timedelta(hours=25)

    assert until is None or moment < until <= moment + day
    assert moment - 2 * day <= hours.last_end(moment) <= moment
    # and when they are over, no more than these are
    if until and until - moment < timedelta(hours=22) and start != end:
        assert hours.last_end(until) == until


@pytest.mark.parametrize(
    "value", [("22:00", "06:00", "Europe/Berlin"), [time(1), time(2, 30), "UTC"]]
)
def test_what_can_be_read(value: object) -> None:
    assert quiet_hours_fault(value) is None
    assert (
        quiet_hours_fault(tuple(str(read_quiet_hours(value)).replace(" to ", " ").split())) is None
    )


@pytest.mark.parametrize(
    "value",
    [
        (), "22:00", 5, True, ("22:00", "06:00"), ("22", "25:00", "UTC"), ("22:00", "22:00", "UTC"),
        ("22:00", "06:00", "Mars/Olympus"), ("22:00", "06:00", None), ("22:00", "06:00", ""),
        ("22:00+01:00", "06:00", "UTC"), (22, 6, "UTC"), ("22:00", "06:00", "../etc"),
    ],
)  # fmt: skip
def test_what_cannot(value: object) -> None:
    assert "as in ('22:00'" in (quiet_hours_fault(value) or "")


def test_a_zone_is_known_by_name() -> None:
    assert zone_fault("Asia/Kolkata") is None
    assert zone_fault("Kolkata/Asia")
