"""Keys that are computed from a date are looked for where the date can be: none is missed."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connection, models
from django.db.models import Count, F, Sum
from django.db.models.functions import (
    ExtractYear,
    Trunc,
    TruncDate,
    TruncDay,
    TruncHour,
    TruncMonth,
    TruncQuarter,
    TruncWeek,
    TruncYear,
)
from django.test.utils import CaptureQueriesContext, override_settings
from hypothesis import given
from hypothesis import strategies as st

from matviews import changes, engine
from matviews.databases.keys import Keys
from matviews.queryset import plan_of
from matviews.queryset.sql.date_ranges import date_bounds, ranged_column
from matviews.registry import registry
from matviews.states import RefreshState
from tests.helpers import services, view_classes
from tests.helpers.tables import derived_view, made, model

EAST, WEST = "Pacific/Kiritimati", "Pacific/Pago_Pago"  # 14 hours ahead of UTC, and 11 behind
KINDS = {
    "hour": (TruncHour, "%Y-%m-%dT%H:00:00"),
    "day": (TruncDay, "%Y-%m-%dT00:00:00"),
    "date": (TruncDate, "%Y-%m-%d"),
    "month": (TruncMonth, "%Y-%m-01T00:00:00"),
    "year": (TruncYear, "%Y-01-01T00:00:00"),
    "of a year": (ExtractYear, "%Y"),
}


def resolved(function: Any, field: Any = models.DateTimeField) -> Any:
    """The function of a column, as a compiled query has it."""
    return of(model("Row", at=field()), function)


def of(row: Any, function: Any) -> Any:
    [expression] = row._base_manager.annotate(x=function("at")).query.annotations.values()
    return expression


@pytest.mark.usefixtures("alone")
class TestBounds:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("zone", [EAST, WEST, "UTC"])
    def test_hold_every_moment_with_the_key(self, kind: str, zone: str) -> None:
        function, form = KINDS[kind]
        expression = resolved(function)

        @given(st.datetimes(datetime(1000, 1, 9), datetime(9998, 12, 1)))  # noqa: DTZ001 - in UTC
        def held(moment: datetime) -> None:
            local = moment.replace(tzinfo=UTC).astimezone(ZoneInfo(zone))
            key = local.strftime(form)
            low, high = date_bounds(expression, Keys(((key,),)), 0)
            assert low <= moment.isoformat(" ") < high

        held()

    @pytest.mark.parametrize("key", ["infinity", "0044-03-01 BC", "0000-00-00", "10001-01-01", "x"])
    def test_are_unknown_for_what_python_cannot_hold(self, key: str) -> None:
        assert date_bounds(resolved(TruncMonth), Keys((("2024-01-01",), (key,))), 0) == []

    @pytest.mark.parametrize("kind", ["decade", "century", "MONTH", "quarters"])
    def test_are_unknown_for_periods_of_the_database_alone(self, kind: str) -> None:
        row = model("Row", at=models.DateTimeField())
        assert ranged_column(of(row, lambda name: Trunc(name, kind))) is None

    def test_are_unknown_for_functions_of_a_project(self) -> None:
        class FiscalYear(TruncYear):
            pass

        assert ranged_column(resolved(FiscalYear)) is None

    def test_are_dates_for_a_column_of_dates(self) -> None:
        expression = resolved(TruncMonth, models.DateField)
        assert date_bounds(expression, Keys((("2024-01-01",), ("2024-03-01",))), 0) == [
            "2023-12-30", "2024-04-03",
        ]  # fmt: skip

    def test_are_of_functions_of_a_column_only(self) -> None:
        row = model("Row", at=models.DateTimeField())
        assert ranged_column(of(row, TruncMonth)) is not None
        assert ranged_column(of(row, lambda name: TruncMonth(TruncDay(name)))) is None
        assert ranged_column(of(row, F)) is None


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("zone", [EAST, WEST, "UTC"])
@pytest.mark.parametrize(
    "function",
    [TruncHour, TruncDay, TruncDate, TruncWeek, TruncMonth, TruncQuarter, TruncYear, ExtractYear],
)
class TestViews:
    @pytest.fixture
    def view(self, function: Any, zone: str) -> Iterator[type[Any]]:
        """A view of the rows by what the function makes of their time."""
        if zone != "UTC" and not connection.features.has_zoneinfo_database:
            pytest.skip("the database knows no time zones")
        of_key: dict[Any, Any] = {TruncDate: models.DateField, ExtractYear: models.IntegerField}
        at, n = models.DateTimeField(db_index=True), models.IntegerField()
        self.Row = row = model("Row", at=at, n=n)
        totals = {"rows": Count("pk"), "total": Sum("n")}
        view = derived_view(
            lambda cls: row._base_manager.values(ref=function("at")).annotate(**totals),
            ref=of_key.get(function, models.DateTimeField)(unique=True),
            rows=models.IntegerField(),
            total=models.IntegerField(),
        )
        with made(row, view):
            changes.install(engine.alias())
            yield view
            changes.remove(engine.alias())

    def refresh(self, view: type[Any]) -> set[str]:
        refresh = view_classes.run(view)
        assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
        assert view.verify().equal
        return {run.full_refresh_reason for run in refresh.runs.all()}

    def test_follow_rows_at_the_ends_of_periods_and_ask_for_a_range_of_the_column(
        self, view: type[Any], zone: str
    ) -> None:
        with override_settings(TIME_ZONE=zone):
            start = datetime(2023, 12, 30, tzinfo=UTC)
            rows = self.Row._base_manager
            for hours in range(0, 96, 5):
                rows.create(at=start + timedelta(hours=hours), n=1)
                rows.create(at=start + timedelta(hours=hours + 5, microseconds=-1), n=1)
            self.refresh(view)
            for pk in range(1, 40, 7):
                rows.filter(pk=pk).update(n=F("n") + pk)
                with CaptureQueriesContext(connection) as captured:
                    assert self.refresh(view) == {""}
        ranged = any('"at" >= ' in e["sql"] or "`at` >= " in e["sql"] for e in captured)
        assert ranged == (services.selected_database() != "sqlite")
        assert plan_of(registry.find(view), "default").strategy.is_incremental
