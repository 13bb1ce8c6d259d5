"""Writers of the source tables: `python -m tests.chaos.writers SEED`, until they are ended."""

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

__all__ = ["Writer", "fill"]

ACCOUNTS = 30
REGIONS = 5
KINDS = 4
ENTRIES = 1_500  # about which there are
LATE = 0.1  # of the transactions wait before their end
ROLLED_BACK = 0.1
MAX_PAUSE = 0.2  # seconds between two transactions


def fill(chance: random.Random) -> None:
    """The rows that a run begins with."""
    from .models import Account, Item

    Account.objects.bulk_create([Account(region=number % REGIONS) for number in range(ACCOUNTS)])
    Item.objects.bulk_create([Item() for _ in range(50)])
    Writer(chance).insert(ENTRIES)


class Writer:
    """Changes of many kinds, by the ORM, in bulk and in raw SQL."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def write(self) -> None:
        """One transaction with some changes, which may be late or be rolled back."""
        from django.db import transaction

        chance = self._chance
        with transaction.atomic():
            for _ in range(chance.choice([1, 1, 2, 4])):
                self._choose()()
            if chance.random() < LATE:
                time.sleep(chance.uniform(0, 2))
            transaction.set_rollback(chance.random() < ROLLED_BACK)

    def _choose(self) -> Callable[[], object]:
        from .models import Entry

        chance = self._chance
        grows = chance.random() < 0.1 and Entry.objects.count() < ENTRIES
        operations: list[tuple[int, Callable[[], object]]] = [
            (6, lambda: self.insert(chance.choice([1, 2, 5]))),
            (2, self.add_items),
            (6, self.update),
            (3, self.update_raw),
            (3, self.move),
            (6, self.delete),
            (1, self.move_account),
            (1, self.open_account),
            (1, self.close_account),
        ]
        if grows:
            return lambda: self.insert(200)
        weights = [weight for weight, _operation in operations]
        return chance.choices(operations, weights)[0][1]

    def insert(self, count: int) -> None:
        """New entries."""
        from .models import Account, Entry

        accounts = list(Account.objects.values_list("pk", flat=True))
        Entry.objects.bulk_create(
            [
                Entry(
                    account_id=self._chance.choice(accounts),
                    kind=self._chance.randrange(KINDS),
                    amount=self._amount(),
                    divisor=self._chance.choice([1, 2, 3, -4]),
                )
                for _ in range(count)
            ]
        )

    def add_items(self) -> None:
        """New items, for the ledgers."""
        from .models import Item

        Item.objects.bulk_create([Item() for _ in range(self._chance.choice([1, 3, 10]))])

    def update(self) -> None:
        """Other amounts, one by one."""
        from .models import Entry

        for entry in Entry.objects.filter(pk__in=self._some(3)):
            entry.amount = self._amount()
            entry.save(update_fields=["amount"])

    def update_raw(self) -> None:
        """Other amounts in one statement of raw SQL."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE chaos_entry SET amount = -amount WHERE account_id = %s AND kind = %s",
                [self._account(), self._chance.randrange(KINDS)],
            )

    def move(self) -> None:
        """Entries of another account and kind."""
        from .models import Entry

        kind = self._chance.randrange(KINDS)
        Entry.objects.filter(pk__in=self._some(4)).update(account=self._account(), kind=kind)

    def delete(self) -> None:
        """Fewer entries."""
        from .models import Entry

        Entry.objects.filter(pk__in=self._some(self._chance.choice([1, 2, 4]))).delete()

    def move_account(self) -> None:
        """An account in another region."""
        from .models import Account

        region = self._chance.randrange(REGIONS)
        Account.objects.filter(pk=self._account()).update(region=region)

    def open_account(self) -> None:
        """A new account."""
        from .models import Account

        Account.objects.create(region=self._chance.randrange(REGIONS))

    def close_account(self) -> None:
        """One account fewer, with its entries."""
        from .models import Account

        if Account.objects.count() > ACCOUNTS:
            Account.objects.filter(pk=self._account()).delete()

    def _amount(self) -> int:
        return self._chance.randrange(-1000, 1000)

    def _account(self) -> int:
        from .models import Account

        return self._chance.choice(list(Account.objects.values_list("pk", flat=True)))

    def _some(self, count: int) -> list[int]:
        from .models import Entry

        keys = list(Entry.objects.values_list("pk", flat=True))
        return self._chance.sample(keys, min(count, len(keys)))


def _main(seed: int) -> None:
    """Write until SIGTERM. What the database refuses is rolled back, and something else tried."""
    import django

    django.setup()
    from django.db import DatabaseError, InterfaceError, connection

    ended = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    chance = random.Random(seed)
    writer = Writer(chance)
    while not ended:
        try:
            writer.write()
        except (DatabaseError, InterfaceError) as error:
            print(f"{os.getpid()}: {type(error).__name__}: {str(error).strip()[:200]}", flush=True)
            with contextlib.suppress(Exception):
                connection.close()
            time.sleep(0.2)
        time.sleep(chance.uniform(0, MAX_PAUSE))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
