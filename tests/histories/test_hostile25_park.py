import pytest
from matviews import engine
from matviews.models import *
from matviews.queryset import sharding
from tests.helpers import tables, poison
from tests.helpers.engine import let_time_pass
from tests.helpers.view_classes import run
pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", ["check", "null"])
@pytest.mark.parametrize("bad", [4, 5, 6])
def test_park(bad, kind, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_ROWS", 1); monkeypatch.setattr(sharding, "sharding_obstacle", lambda *a: "")
    with tables.alone():
        p = poison.Poisoned()
        with p.ready():
            from django.db import connection
            base = dict(poison.HEALTHY)
            mk = lambda k, **m: p.Row._base_manager.create(k=k, **{"second": k + 100, **base, **m})
            p.fill(9)
            label = p.View._meta.label
            def show(t):
                print("PARK", kind, bad, t, sorted(p.right()), list(ParkedKey.objects.values_list("shard__number", "key", "phase")), list(ViewShard.objects.filter(view__label=label).values_list("number", "parked_count", "key_range")))
            f = run(p.View); print("PARK", f.state, f.error[:200])
            ViewControl.objects.filter(label=label).update(shard_count=2); engine.sync_shards()
            p.poison(kind, bad)
            f = run(p.View); print("PARK", f.state, f.error[:200]); show("full")
            ViewControl.objects.filter(label=label).update(shard_count=3); engine.sync_shards(); show("3")
            f = run(p.View); print("PARK", f.state, f.error[:200]); show("3 full")
            p.heal(bad)
            f = run(p.View); show("healed")
            print("PARK verify", p.View.verify().equal)
            assert p.View.verify().equal and not ParkedKey.objects.exists()
