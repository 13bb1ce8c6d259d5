"""Bad rows of each kind among many: what finding them costs, at the first build and by key."""

import pytest

from benchmarks.statements import statements
from matviews.models import ParkedKey, Refresh
from tests.helpers.poison import KINDS, Poisoned

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

COUNT = 100_000
BAD = {
    "one of 100,000": [50_000],
    "100 of 100,000": list(range(500, COUNT, 1_000)),
}
# Of one bad key: in halves from a batch of at most 10,000, each with a savepoint, in two phases.
PER_KEY = 160
# Those of a unique constraint are tried again among each other, and after other phases.
PER_KEY_OF_OTHERS = 400
# Of 100,000 good ones, most on SQLite, which takes 1,000 at once: twelve or so, in three phases.
OF_BATCHES = 3_800


def test_one_bad_row_of_1000(capsys: pytest.CaptureFixture[str]) -> None:
    source = Poisoned()
    with source.ready():
        source.fill(1_000)
        costs = {kind: poisoned(source, kind, 1_000, [500]) for kind in KINDS}
    with capsys.disabled():
        print(f"\none of 1,000, statements: {costs}")


@pytest.mark.long
@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_rows_of_100000(kind: str, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = Poisoned()
    with source.ready():
        source.fill(COUNT)
        costs = poisoned(source, kind, COUNT, BAD[case])
    with capsys.disabled():
        print(f"\n{case}, {kind}, statements: {costs}")


def poisoned(source: Poisoned, kind: str, count: int, bad: list[int]) -> dict[str, int]:
    """Poison rows of a source that is not built yet, or by key; what each refresh costs."""
    source.View.objects.all().delete()
    source.View.mark_dirty()
    source.poison(kind, *bad)
    found = {"first build": refreshed(source, count, bad)}
    source.heal(*bad)
    found["healed"] = refreshed(source, count, [])
    source.change(*range(1, 501))
    source.poison(kind, *bad)
    found["by key"] = refreshed(source, count, bad)
    assert set(Refresh.objects.latest("pk").runs.values_list("full_refresh_reason")) == {("",)}
    found["with nothing new"] = refreshed(source, count, bad)
    source.View.mark_dirty()
    found["in full"] = refreshed(source, count, bad)
    source.heal(*bad)
    refreshed(source, count, [])
    return found


def refreshed(source: Poisoned, count: int, bad: list[int]) -> int:
    """Refresh the view; how many statements that took."""
    with statements() as found:
        source.refresh()
    assert source.parked() == set(bad)
    assert all(ParkedKey.objects.values_list("message", flat=True))
    # A bad row may be as it was, with the values that the source has besides the bad one.
    assert source.right() - set(bad) == set(range(1, count + 1)) - set(bad)
    of_others = ParkedKey.objects.filter(involves_others=True).exists()
    per_key = PER_KEY_OF_OTHERS if of_others else PER_KEY
    assert len(found) < OF_BATCHES * count / COUNT + per_key * len(bad) + 100
    return len(found)
