import random, traceback, os, collections
import pytest
from django.db import connection
from matviews import engine
from matviews.models import ViewControl, ViewShard
from matviews.queryset import sharding
from tests.helpers import tables
from tests.histories import test_keys as tk

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]
SEEN = collections.Counter()


_Kept = tk.Kept
class Indexed(_Kept):
    def __init__(self, field, *, grouped=False, indexed=True):
        super().__init__(field, grouped=grouped, indexed=True)
tk.Kept = Indexed


class Sharded(tk.History):
    def alter(self):
        super().alter()
        self.left = 9
    def want(self, n):
        label = self.kept.View._meta.label
        ViewControl.objects.filter(label=label).update(shard_count=n)
        engine.sync_shards()
        shards = ViewShard.objects.filter(view__label=label)
        SEEN[len(shards)] += 1
        self.last = [s.key_range for s in shards]

    def step(self):
        while self.left:
            self.left -= 1
            self.write()
            if not self.left:
                self.want(2)
        if self.chance.random() < 0.2:
            self.want(self.chance.choice([1, 2, 2, 3, 3, 5]))
            return
        super().step()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", list(tk.SORTS))
def test_keys(name, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_ROWS", 1)
    monkeypatch.setattr(tk, "History", Sharded)
    SEEN.clear()
    failures = []
    for i in range(int(os.environ.get("N", "8"))):
        seed = int(os.environ["SEED"]) if "SEED" in os.environ else i + 1000
        with tables.alone():
            try:
                tk.check(name, seed)
            except Exception as e:
                failures.append((seed, repr(e)[:600]))
                if "TB" in os.environ: traceback.print_exc()
    print("RESULT", name, dict(SEEN), len(failures), failures[:2], flush=True)
    assert not failures
