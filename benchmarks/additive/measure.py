"""What a refresh of an additive view costs, and what its value log costs writers.

Groups are few and large. Times are seconds. The ways take turns.
"""

from collections.abc import Callable, Iterator
from unittest import mock

from django.db import connection, transaction
from django.db.models import Case, F, Value, When
from django.db.models.functions import Mod

from matviews import changes, engine
from matviews.changes import value_logs
from matviews.models import PhaseRun, Refresh
from matviews.states import RefreshStrategy

from ..measured import Measured, medians
from ..models import Line, Month, Pricing, PricingInFull, Visit
from ..querysets.loading import empty, numbers, tidy
from ..querysets.ways import Native, View, Way
from ..statements import statements
from ..timers import Timer
from ..writers import measure_writes
from . import joins, reading
from .reading import MONTHS

__all__ = ["measure"]

KEY = ("flag", "state")
CHANGED = (1_000, 100, 20)  # one line of so many
NEW = 1_000  # visits of the newest month
SINGLE, BULK = 300, 50  # rows written one by one; one row of so many in a bulk


def measure(rows: int, runs: int, timer: Timer, say: Callable[[str], object]) -> list[Measured]:
    """Measure all with so many lines and visits."""
    say(f"{rows:,} lines and visits")
    changes.remove(engine.alias())
    _load(rows)
    found = list(_writes(runs, timer, say))
    changes.install(engine.alias())
    found += [
        _built(runs, timer, say),
        *_changed(rows, runs, timer, say),
        _newest(rows, runs, timer, say),
    ]
    for view in (Pricing, PricingInFull, Month):
        assert engine.verify(view).equal
    found += joins.measure(rows, runs, timer, say)
    return [*found, *reading.measure(rows, runs, timer, say)]


def _load(rows: int) -> None:
    empty(Line, Visit)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO benchmarks_line (id, flag, state, quantity, price, discount, tax) "
            "SELECT n, n % 2, n * 48271 % 2147483647 % 2, n % 50, (n * 7919) % 1000003 / 10, "
            f"n % 10 / 100.0, n % 8 / 100.0 FROM {numbers(rows)}"
        )
        cursor.execute(
            "INSERT INTO benchmarks_visit (id, month, pages) "
            f"SELECT n, 1 + n * {MONTHS} / {rows + 1}, n % 30 FROM {numbers(rows)}"
        )
    tidy(Line, Visit)


def _built(runs: int, timer: Timer, say: Callable[[str], object]) -> Measured:
    """The first build of the view and its sums."""
    say("build")
    ways = [View(Pricing), View(PricingInFull)]
    times: dict[str, list[float]] = {"with its sums": [], "the view alone": []}
    for number in range(runs):
        order = [*zip(times, ways, strict=True)][:: -1 if number % 2 else 1]
        for name, way in order:
            way.empty()
            engine.mark_dirty(way.model)
            times[name].append(timer(way.build))
    return Measured(name="build", seconds=medians(times))


def _changed(
    rows: int, runs: int, timer: Timer, say: Callable[[str], object]
) -> Iterator[Measured]:
    view = View(Pricing)
    ways: list[Way] = [view, View(PricingInFull)]
    names = ["additive", "full pass"]
    if connection.vendor == "postgresql":
        ways.append(Native(Pricing, Pricing.source, KEY))
        names.append(ways[-1].name)
    for way in ways:
        way.build()
        way.tidy()
    for share in CHANGED:
        count = rows // share
        name = f"{count:,} of {rows:,} lines changed"
        say(name)
        times: dict[str, list[float]] = {each: [] for each in names}
        for number in range(runs + 2):
            _change(count, rows, number)
            for each in range(len(ways)):
                way = ways[(number + each) % len(ways)]
                taken = timer(way.renew)
                if number > 1:  # warm
                    times[names[ways.index(way)]].append(taken)
            _added()
        _change(count, rows, runs + 2)
        with statements() as found:
            view.renew()
        _added()
        ways[1].renew()
        yield Measured(name=name, seconds=medians(times), statements={"additive": len(found)})


def _added() -> None:
    """The last refresh of the additive view has added, and has read no group."""
    last = Refresh.objects.filter(view__label=Pricing._meta.label).latest("pk")
    runs = PhaseRun.objects.filter(refresh=last)
    assert {run.strategy for run in runs} == {RefreshStrategy.BY_KEYS}


def _change(count: int, rows: int, number: int) -> None:
    """Change the quantity of some lines, and the group of a tenth of them."""
    low = 1 + number * count % rows
    lines = Line.objects.filter(pk__gte=low, pk__lt=low + count)
    lines.alias(rest=Mod(F("pk"), 10)).update(
        quantity=F("quantity") + 1,
        flag=Case(When(rest=0, then=Value(1) - F("flag")), default=F("flag")),
    )
    tidy(Line)


def _newest(rows: int, runs: int, timer: Timer, say: Callable[[str], object]) -> Measured:
    name = f"{NEW:,} new rows in the newest of {MONTHS} months"
    say(name)
    way, times = View(Month), list[float]()
    way.build()
    for number in range(runs + 2):
        first = 1 + rows + number * NEW
        Visit.objects.bulk_create(
            [Visit(pk=pk, month=MONTHS, pages=number) for pk in range(first, first + NEW)]
        )
        tidy(Visit)
        taken = timer(way.renew)
        if number > 1:  # warm
            times.append(taken)
    return Measured(name=name, seconds=medians({"additive": times}))


def _writes(runs: int, timer: Timer, say: Callable[[str], object]) -> Iterator[Measured]:
    """What writers take without triggers, with those of a view by keys, and with its value log."""
    say("writes")
    jobs = {f"{SINGLE} rows one by one": _one_by_one, "2 % of the rows in one statement": _in_bulk}
    triggers: dict[str, Callable[[str], object]] = {
        "with a value log": changes.install,
        "without a value log": _install_without_logs,
        "without triggers": changes.remove,
    }
    return measure_writes(Line, jobs, triggers, runs, timer)


def _install_without_logs(using: str) -> None:
    """The triggers as they are for a view that is refreshed by keys."""
    with mock.patch.object(value_logs, "create", return_value=frozenset()):
        changes.install(using)


def _one_by_one(number: int) -> None:
    for key in range(1, SINGLE + 1):
        Line.objects.filter(pk=number * SINGLE + key).update(quantity=F("quantity") + 1)


def _in_bulk(number: int) -> None:
    lines = Line.objects.alias(rest=Mod(F("pk"), BULK)).filter(rest=number % BULK)
    lines.update(quantity=F("quantity") + 1)
