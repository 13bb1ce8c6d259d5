import pytest
from django.db import models, connection
from matviews import engine
from matviews.models import ViewControl, ViewShard
from matviews.queryset import sharding
from tests.helpers import tables
from tests.helpers.keyed_views import Kept
from tests.helpers.view_classes import run
pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("n", [1, 2])
def test_null(n, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_ROWS", 1)
    with tables.alone():
        kept = Kept(lambda **m: models.BigIntegerField(null=True, **m))
        with kept.tracked():
            kept.insert(*[(i, i) for i in range(-3, 7)], (None, 5))
            kept.refresh()
            ViewControl.objects.filter(label=kept.View._meta.label).update(shard_count=n); engine.sync_shards()
            print("NULL", n, [s.key_range for s in ViewShard.objects.filter(view__label=kept.View._meta.label)])
            kept.refresh()
            print("NULL", n, "rows", kept.rows)
            kept.sql("INSERT INTO VIEW (ref, total) VALUES (NULL, 77)")
            v = kept.View.verify(); print("NULL verify", n, v)
            engine.mark_dirty(kept.View); print("NULL", n, kept.refresh())
            print("NULL", n, "after full", kept.rows)
            v = kept.View.verify(repair=True); print("NULL repair", n, v)
            kept.refresh(); print("NULL", n, "after repair", kept.rows, kept.View.verify().equal)
