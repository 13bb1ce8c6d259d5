"""What each view should hold, computed in Python from the rows of the source tables."""

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import groupby
from typing import Any

from django.db import models

from . import models as bank
from .comparison import Rows, compare

__all__ = ["ADDITIVE", "VIEWS", "differences"]


class Bank:
    """The rows of the source tables."""

    def __init__(self) -> None:
        self.regions = dict(bank.Account.objects.values_list("pk", "region"))
        names = ("pk", "account_id", "kind", "amount", "divisor")
        self.entries = list(bank.Entry.objects.values_list(*names))

    def account_totals(self) -> Rows:
        amounts = defaultdict(list)
        for _pk, account, _kind, amount, _divisor in self.entries:
            if amount >= bank.smallest_amount():
                amounts[account].append(amount)
        return {account: (len(each), sum(each)) for account, each in amounts.items()}

    def entry_details(self) -> Rows:
        return {
            pk: (self.regions[account], amount / divisor)
            for pk, account, _kind, amount, divisor in self.entries
        }

    def kind_totals(self) -> Rows:
        amounts = defaultdict(list)
        for _pk, _account, kind, amount, _divisor in self.entries:
            amounts[kind].append(amount)
        return {
            kind: (len(each), sum(amount > bank.LARGE for amount in each), sum(each))
            for kind, each in amounts.items()
        }

    def region_kinds(self) -> Rows:
        totals: Counter[Any] = Counter()
        for _pk, account, kind, amount, _divisor in self.entries:
            totals[self.regions[account], kind] += amount
        return {key: (total,) for key, total in totals.items()}

    def ranked(self) -> Rows:
        ordered = sorted((account, -amount, pk) for pk, account, _kind, amount, _ in self.entries)
        by_account = groupby(ordered, lambda entry: entry[0])
        return {
            pk: (place,)
            for _account, entries in by_account
            for place, (_, _, pk) in enumerate(entries, start=1)
        }

    def region_totals(self) -> Rows:
        totals: dict[int, list[int]] = defaultdict(list)
        for account, (_count, total) in self.account_totals().items():
            totals[self.regions[account]].append(total)
        return {region: (len(each), sum(each)) for region, each in totals.items()}


#: By view: the fields of its key and the others, and what they should hold.
VIEWS: dict[type[models.Model], tuple[tuple[str, ...], tuple[str, ...], Callable[[Bank], Rows]]] = {
    bank.AccountTotal: (("account_id",), ("entries", "total"), Bank.account_totals),
    bank.EntryDetail: (("entry_id",), ("region", "ratio"), Bank.entry_details),
    bank.KindTotal: (("kind",), ("entries", "large", "total"), Bank.kind_totals),
    bank.RegionKind: (("region", "kind"), ("total",), Bank.region_kinds),
    bank.Ranked: (("entry_id",), ("place",), Bank.ranked),
    bank.RegionTotal: (("region",), ("accounts", "total"), Bank.region_totals),
}


#: The views that are kept by adding and subtracting.
ADDITIVE = (bank.KindTotal,)


def differences(view: type[models.Model]) -> list[str]:
    """How a view differs from what it should hold, a line for each kind of difference."""
    key, others, expected_of = VIEWS[view]
    expected, held = expected_of(Bank()), dict[Any, tuple[Any, ...]]()
    for row in view._base_manager.values_list(*key, *others):
        held[row[0] if len(key) == 1 else row[: len(key)]] = row[len(key) :]
    return compare(expected, held)
