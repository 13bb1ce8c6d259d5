"""Verifications of views whose source cannot compute some rows: the others are compared."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, models, transaction
from django.db.models import F
from django.db.models.functions import Abs

from matviews import changes, engine, verify
from matviews.engine.verification import halves, key_parts
from matviews.models import ParkedKey, ViewControl
from tests.helpers.tables import derived_view, made, model, refreshed

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

TOO_SMALL = -(2**63)  # ABS of it is out of range on each database
ROWS = 40


class Amounts:
    """A source of amounts, and a view with their absolute values."""

    def __init__(self) -> None:
        self.Row = row = model(
            "Row", k=models.BigIntegerField(unique=True), amount=models.BigIntegerField()
        )
        self.View = derived_view(
            lambda cls: row._base_manager.values(ref=F("k"), size=Abs("amount")),
            name="AbsoluteAmount",
            key=["ref"],
            ref=models.BigIntegerField(unique=True),
            size=models.BigIntegerField(),
        )
        self.label = self.View._meta.label

    def spoil(self, *keys: int) -> None:
        """Make rows of the source fail; their changes are pending."""
        self.Row._base_manager.filter(k__in=keys).update(amount=TOO_SMALL)

    def spoil_unseen(self, *keys: int) -> None:
        """Make rows of the source fail, and nobody has logged it."""
        changes.remove(engine.alias())
        self.spoil(*keys)
        changes.install(engine.alias())
        refreshed(self.View)  # parks them
        ParkedKey.objects.all().delete()
        self.control.shards.update(parked_count=0)

    def plant(self, key: int) -> None:
        """A wrong value in the view that no change explains."""
        self.View._base_manager.filter(ref=key).update(size=-1)

    @property
    def control(self) -> Any:
        return ViewControl.objects.get(label=self.label)

    def verified(self, **options: Any) -> dict[str, Any]:
        """What a verification in the background stores."""
        message = engine.request_verification(self.label, **options)
        while message:
            message = engine.verify_slice(message)
        found: dict[str, Any] = self.control.verification
        return found


@pytest.fixture
def amounts(transactional_db: None, alone: None) -> Iterator[Amounts]:
    found = Amounts()
    with made(found.Row, found.View):
        changes.install(engine.alias())
        found.Row._base_manager.bulk_create(
            found.Row(k=key, amount=-key) for key in range(1, ROWS + 1)
        )
        refreshed(found.View)
        try:
            yield found
        finally:
            changes.remove(engine.alias())


def test_the_other_rows_are_compared(amounts: Amounts) -> None:
    amounts.spoil(7, 30)
    amounts.plant(8)

    found = verify(amounts.View)

    assert (found.failed, found.missing, found.differing, found.surplus) == (2, 0, 1, 0)
    assert found.rows_compared == ROWS - 2
    assert found.error.startswith("2 keys could not be computed: 7: ")
    assert not found.equal


def test_what_cannot_be_computed_is_pending_while_its_change_is(amounts: Amounts) -> None:
    amounts.spoil(7)
    amounts.plant(8)

    found = verify(amounts.View, leave_out_pending=True)

    assert (found.failed, found.error, found.pending, found.differing) == (0, "", 1, 1)


def test_a_verification_in_the_background_compares_and_repairs_the_others(
    amounts: Amounts,
) -> None:
    amounts.spoil_unseen(7)
    amounts.plant(8)

    found = amounts.verified()

    assert (found["missing"], found["differing"], found["surplus"]) == (0, 1, 0)
    assert found["error"].startswith("1 key could not be computed: 7: ")
    assert amounts.control.differing["differing"] == 1
    found = amounts.verified(repair=True)
    assert (found["differing"], found["repaired"]) == (1, 1)
    assert verify(amounts.View).differences == 0


def test_of_lists_without_parked_keys_too(amounts: Amounts) -> None:
    amounts.spoil(7)
    refreshed(amounts.View)  # which parks the key
    assert ParkedKey.objects.exists()
    amounts.spoil(9)
    amounts.plant(8)

    found = verify(amounts.View)

    assert (found.parked, found.failed, found.differing) == (1, 1, 1)
    assert found.rows_compared == ROWS - 2


def test_of_a_sample_too(amounts: Amounts) -> None:
    amounts.spoil(7)

    found = verify(amounts.View, sample=ROWS)

    assert (found.failed, found.differences) == (1, 0)


def test_ranges_after_it_are_not_compared_twice(
    amounts: Amounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_parts, "KEYS_PER_RANGE", 7)
    amounts.spoil(7, 8)
    amounts.Row._base_manager.filter(k__in=(6, 9, 20)).delete()
    amounts.View._base_manager.filter(ref__in=(5, 10, 21)).delete()

    found = verify(amounts.View)

    assert (found.failed, found.missing, found.surplus) == (2, 3, 3)
    assert found.rows_compared == ROWS - 2 - 3


def test_too_many_are_an_error(amounts: Amounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "MAX_FAILED", 3)
    amounts.spoil(1, 2, 3, 4)

    with pytest.raises(DatabaseError):
        verify(amounts.View)


def test_so_is_one_in_a_transaction_which_it_may_have_broken(amounts: Amounts) -> None:
    amounts.spoil(7)

    with pytest.raises(DatabaseError), transaction.atomic():
        verify(amounts.View)


def test_the_command_names_the_view_and_the_key(amounts: Amounts) -> None:
    amounts.spoil_unseen(7)
    out, err = io.StringIO(), io.StringIO()

    with pytest.raises(CommandError, match=f"1 of 1 views failed: {amounts.label}"):
        call_command(
            "update_materialized_views", verify=True, models=[amounts.label],
            stdout=out, stderr=err,
        )  # fmt: skip

    compared = f"({ROWS - 1} rows compared; 1 key could not be computed)"
    assert f"0 missing, 0 differing, 0 surplus {compared}" in out.getvalue()
    assert f"{amounts.label}: 1 key could not be computed: 7: " in err.getvalue()


def test_json_has_the_number_and_the_error(amounts: Amounts) -> None:
    amounts.spoil_unseen(7)
    out = io.StringIO()

    with pytest.raises(CommandError):
        call_command(
            "update_materialized_views", verify=True, models=[amounts.label], format="json",
            stdout=out, stderr=io.StringIO(),
        )  # fmt: skip

    (found,) = json.loads(out.getvalue())["views"]
    assert (found["failed"], found["equal"], found["differing"]) == (1, False, 0)
    assert found["error"].startswith("1 key could not be computed: 7: ")


def test_keys_are_not_named_where_the_settings_hide_them(amounts: Amounts, settings: Any) -> None:
    amounts.spoil(7)
    settings.MATVIEWS = {"VALUES_IN_ERRORS": "none"}

    found = verify(amounts.View)

    assert found.failed == 1
    assert "7" not in found.error.partition("computed: ")[2][:3]
