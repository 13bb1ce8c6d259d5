"""Why a change affects all keys, as a refresh records it."""

from datetime import date
from unittest import mock

import pytest
from django.db import models
from django.db.models import Count, F, Subquery, Sum
from django.db.models.functions import TruncMonth

from matviews import changes, engine
from matviews.engine.tracking import dirty_keys
from tests.helpers import view_classes
from tests.helpers.tables import derived_view, key, made, model

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]


def test_the_reason_names_a_column_that_the_key_does_not_determine_and_the_way_out() -> None:
    row = model("Row", nation=models.IntegerField(), region=models.IntegerField())
    view = derived_view(
        lambda cls: row.objects.values("region", ref=F("nation")).annotate(n=Count("pk")),
        ref=key(),
        region=models.IntegerField(),
        n=models.IntegerField(),
    )
    with made(row, view):
        changes.install(engine.alias())
        try:
            row.objects.create(nation=1, region=1)
            view_classes.run(view)
            row.objects.create(nation=2, region=1)
            refresh = view_classes.run(view)
        finally:
            changes.remove(engine.alias())

    [reason] = {run.full_refresh_reason for run in refresh.runs.all()}
    assert reason == (
        "shapes_row changed, and it cannot be proved that no two rows of source() have the same "
        "key: they are also grouped by region, which the key may not determine. Use an aggregate, "
        "like Max(...), for region, or add it to the key."
    )


@pytest.mark.parametrize("keys", [0, 1, 3])
def test_a_key_that_is_null_takes_no_place_of_another(keys: int) -> None:
    # given a view by a month that may be unknown
    row = model("Row", day=models.DateField(null=True))
    view = derived_view(
        lambda cls: row.objects.values(ref=TruncMonth("day")).annotate(n=Count("pk")),
        ref=models.DateField(primary_key=True),
        n=models.IntegerField(),
    )
    with made(row, view):
        changes.install(engine.alias())
        try:
            row.objects.bulk_create(row(day=None) for _ in range(12))
            view_classes.run(view)
            # when months become known, and only so many keys are worth a refresh
            with mock.patch.object(dirty_keys, "max_worthwhile_keys", return_value=keys):
                for number, pk in enumerate(sorted(row.objects.values_list("pk", flat=True)), 1):
                    row.objects.filter(pk=pk).update(day=date(2024, number, 1))
                    if number % (keys + 1) == 0:
                        view_classes.run(view)
                        # then none of them is lost
                        assert view._base_manager.count() == number
        finally:
            changes.remove(engine.alias())


def test_a_key_that_is_given_twice_takes_no_place_of_another() -> None:
    # given a table that leads to keys by a function, which gives some of them twice
    row = model("Row", k=models.IntegerField(), n=models.IntegerField())
    rate = model("Rate", factor=models.IntegerField())
    view = derived_view(
        lambda cls: (
            row.objects.values(ref=F("k"))
            .annotate(n=Sum(F("n") * Subquery(rate.objects.values("factor")[:1])))
            .order_by()
        ),
        options={"depends_on": {rate: lambda _rates: [1, 1, 1, 2, 3, 4]}},
        ref=key(),
        n=models.IntegerField(),
    )
    with made(row, rate, view):
        changes.install(engine.alias())
        try:
            rate.objects.create(factor=1)
            row.objects.bulk_create(row(k=number, n=1) for number in (1, 2, 3, 4))
            view_classes.run(view)
            with mock.patch.object(dirty_keys, "max_worthwhile_keys", return_value=3):
                rate.objects.update(factor=2)
                view_classes.run(view)
            assert set(view._base_manager.values_list("n", flat=True)) == {2}
        finally:
            changes.remove(engine.alias())
