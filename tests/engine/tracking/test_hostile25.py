"""Attacks."""
from tests.engine.tracking.test_key_ranges import *  # noqa
from tests.engine.tracking.test_key_ranges import _shop, _move_only  # noqa
import tests.engine.tracking.test_key_ranges as base
for _n in [n for n in dict(globals()) if n.startswith("Test") or n.startswith("test_")]:
    del globals()[_n]
from matviews.engine.tracking import queues
from matviews.engine.batches import batch as batch_module


def test_late_distribution(monkeypatch):
    """A worker found changes while there were two shards; until it distributes, the view has one,
    was refreshed in full, and another change came."""
    want(2)
    refresh()
    Order.objects.filter(pk=1).update(price=7)
    found = engine.request(CustomerTotal)
    real = batch_module.await_changes
    done = []

    def slow(logged):
        if not done:
            done.append(1)
            # meanwhile, others:
            print("has begun", found.runs.count())
            assert len(want(1)) == 1
            print("shards", shards())
            # the claimed shard: its token is claimed. Somebody else
            from matviews.models import ViewShard
            # the lease ends, another worker does it (this process is frozen)
            let_time_pass()
            inline.run_until_idle(shards_of(found.view_id))
            found.refresh_from_db()
            print("state", found.state, found.error)
            assert differences(CustomerTotal) == []
            Order.objects.filter(pk=1).update(price=70)
        return real(logged)

    monkeypatch.setattr(batch_module, "await_changes", slow)
    report = engine.run_batch(due(CustomerTotal))
    print(report.outcome)
    assert True
    engine.collapse_long_queues()
    print("fresh", CustomerTotal.is_fresh())
    f = run(CustomerTotal)
    print(f.state, f.error, list(f.runs.values_list("phase", "strategy")))
    assert differences(CustomerTotal) == []


def _redefine(**members):
    for name, value in members.items():
        setattr(CustomerTotal, name, value)
    registry._definitions.pop(LABEL, None) if hasattr(registry, "_definitions") else None
    registry.register(CustomerTotal)
    engine.sync_controls()
    engine.sync_shards()


def test_mixed_definition_drops_a_shard_with_dirty_keys():
    """2 shards with open dirty keys; new code writes the hooks of DELETE by hand (1 shard)."""
    want(2)
    refresh()
    Order.objects.filter(pk=9).update(price=7)
    engine.move_log()
    changes.distribute(control().pk)
    print(list(ShardChange.objects.values_list("shard__number", "table")))
    with registry.preserved():
        try:
            _redefine(needs_delete=classmethod(lambda cls: False), do_delete=classmethod(lambda cls: 0))
            d = registry.find(CustomerTotal)
            print("key ranges", d.has_key_ranges, [ (p, h.is_derived) for p, h in d.hooks.items()], d.errors)
            print(shards(), [s.checkpoints for s in shards()])
            assert len(want(1)) == 1; print([(s.number, s.key_range, s.checkpoints.keys()) for s in shards()])
            assert len(shards()) == 1
            for _ in range(2):
                f = run(CustomerTotal)
                print(f.state, f.error, list(f.runs.values_list("phase", "strategy", "full_refresh_reason")))
            print("fresh", CustomerTotal.is_fresh())
            assert differences(CustomerTotal) == []
        finally:
            del CustomerTotal.needs_delete, CustomerTotal.do_delete


def test_rollback_of_mixed():
    want(2)
    refresh()
    Order.objects.filter(pk=9).update(price=7)
    engine.move_log()
    changes.distribute(control().pk)
    with registry.preserved():
        try:
            _redefine(needs_delete=classmethod(lambda cls: False), do_delete=classmethod(lambda cls: 0))
            assert len(want(1)) == 1
        finally:
            del CustomerTotal.needs_delete, CustomerTotal.do_delete
    _redefine()
    print(registry.find(CustomerTotal).has_key_ranges, shards())
    f = run(CustomerTotal)
    print(f.state, f.error, list(f.runs.values_list("phase", "strategy", "full_refresh_reason")))
    print("fresh", CustomerTotal.is_fresh())
    assert differences(CustomerTotal) == []


def test_deleted_shard_while_claimed(monkeypatch):
    """KeysUncut in shard 1; another process cuts to one first."""
    want(2)
    refresh()
    from matviews.models import ViewShard
    engine.mark_dirty(CustomerTotal)
    ViewControl.objects.filter(label=LABEL).update(strategy=RefreshStrategy.FULL_STAGED)
    found = engine.request(CustomerTotal)
    second = shards()[1]
    real = batch_module._Attempt.after_cut
    def after_cut(self):
        from matviews.engine.tracking.key_ranges import split_keys
        print("cut by another", split_keys(control()))
        return real(self)
    monkeypatch.setattr(batch_module._Attempt, "after_cut", after_cut)
    message = engine.close_finished(second.pk).message
    print(message)
    report = engine.run_batch(message)
    print(report.outcome, report.error)


def test_null_key_row_of_the_view():
    """A surplus row whose key is NULL."""
    field = CustomerTotal._meta.get_field("customer")
    print("null allowed", field.null)


def test_stale_entries_make_the_poller_busy():
    _first, second = want(2)
    refresh()
    want(1)
    refresh()
    assert CustomerTotal.is_fresh()
    ShardChange.objects.create(shard_id=shards()[0].pk, links=[[1]], count=1, logged_at=timezone.now())
    print("fresh", CustomerTotal.is_fresh())
    f = run(CustomerTotal)
    print("fresh after refresh", CustomerTotal.is_fresh(), changes.oldest_waiting())


def test_late_distribution_by_thread():
    """As test_late_distribution, but by maintain of another connection alone (no lease ends):
    how long may the worker take? Only the order of commits matters."""


def test_queries_of_one_shard(django_assert_num_queries):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext
    want(1)
    refresh()
    for what in ("by keys", "full"):
        if what == "full":
            engine.mark_dirty(CustomerTotal)
        else:
            Order.objects.filter(pk=9).update(price=7)
        found = engine.request(CustomerTotal)
        with CaptureQueriesContext(connection, ) as c:
            r = engine.run_batch(due(CustomerTotal))
        print("ONE", what, len(c))
        refresh()
    ViewControl.objects.filter(label=LABEL).update(shard_count=2)
    import tests.engine.tracking.test_key_ranges
    from matviews.queryset import sharding
    sharding.MIN_ROWS, old = 1000, sharding.MIN_ROWS
    engine.mark_dirty(CustomerTotal)
    found = engine.request(CustomerTotal)
    with CaptureQueriesContext(connection, ) as c:
        r = engine.run_batch(due(CustomerTotal))
    print("WANTED TWO, FEW ROWS", len(c))
    sharding.MIN_ROWS = old


def test_is_fresh_with_stale_entry():
    want(2); refresh(); want(1); refresh()
    print("fresh before", CustomerTotal.is_fresh())
    Order.objects.filter(pk=9).update(price=7)
    engine.move_log()
    changes.distribute(control().pk)  # F1: by a late process
    print("fresh after late distribution", CustomerTotal.is_fresh(), engine.data_status(CustomerTotal).pending)
    f = run(CustomerTotal); print(f.state, list(f.runs.values_list("strategy")))
    print("fresh after refresh", CustomerTotal.is_fresh())
    engine.collapse_long_queues()
    print("fresh after maintain", CustomerTotal.is_fresh(), differences(CustomerTotal))
    print("current", differences(CustomerTotal, CustomerTotal.current))
    v = CustomerTotal.verify()
    print("verify", v.differing)


def _other_order():
    for shard, ends in zip(shards(), ([None, ["5"]], [["5"], None]), strict=True):
        ViewShard.objects.filter(pk=shard.pk).update(key_range=[*ends, ["text "], 9])


def test_cut_times_out_and_order_is_another(monkeypatch):
    from django.db import OperationalError
    want(2)
    refresh()
    _other_order()
    def times_out(*a, **k):
        raise OperationalError("canceling statement due to statement timeout")
    monkeypatch.setattr(key_ranges, "cut_ranges", times_out)
    Order.objects.filter(pk=9).update(price=7)
    for _ in range(3):
        engine.sync_shards()
        f = run(CustomerTotal)
        print("WEDGED", f.state, f.error[:200], len(shards()))


def test_other_order_and_the_other_shard_is_locked():
    import threading
    from django.db import connections, transaction
    want(2); refresh(); _other_order()
    Order.objects.filter(pk=9).update(price=7)
    locked, done = threading.Event(), threading.Event()
    second = shards()[1].pk
    def hold():
        with transaction.atomic():
            list(ViewShard.objects.select_for_update().filter(pk=second).order_by())
            locked.set(); done.wait(20)
        connections.close_all()
    t = threading.Thread(target=hold); t.start(); locked.wait()
    found = engine.request(CustomerTotal)
    report = engine.run_batch(due(CustomerTotal))
    done.set(); t.join()
    print("LOCKED", report.outcome, report.error)
    found.refresh_from_db(); let_time_pass()
    inline.run_until_idle(shards_of(found.view_id)); found.refresh_from_db()
    print("LOCKED", found.state, found.error)


@pytest.mark.parametrize("n", [1, 2])
def test_strange_marks(n):
    want(n); refresh()
    for keys in ([10**25], [-1], [2**63], ["9"], [None], [2**63 - 1]):
        try:
            engine.mark_dirty(CustomerTotal, keys)
        except Exception as e:
            print("MARK", n, keys, "refused", repr(e)[:100]); continue
        f = run(CustomerTotal)
        print("MARK", n, keys, f.state, f.error[:150])


def test_real_race():
    """No patching: entries of the log are locked for a moment, so the worker of shard 1 sleeps in
    await_changes; meanwhile the number of shards becomes 1, the view is refreshed, a row changes."""
    import threading, time
    from django.db import connections, transaction
    from matviews.models import Change
    want(2)
    refresh()
    second = shards()[1].pk
    locked, release, began = threading.Event(), threading.Event(), threading.Event()
    Order.objects.filter(pk=1).update(price=7)

    def hold():
        with transaction.atomic():
            list(Change.objects.select_for_update().order_by("pk"))
            locked.set(); release.wait(20)
        connections.close_all()

    holder = threading.Thread(target=hold); holder.start(); locked.wait()
    found = engine.request(CustomerTotal)
    message = engine.close_finished(second).message
    reports = []

    def work():
        began.set()
        reports.append(engine.run_batch(message))
        connections.close_all()

    worker = threading.Thread(target=work); worker.start(); began.wait()
    time.sleep(0.8)  # now it sleeps until 1.27 s
    release.set(); holder.join()
    left = want(1)
    inline.run_until_idle(shards_of(found.view_id)); found.refresh_from_db()
    print("RACE refreshed", found.state, len(left), differences(CustomerTotal), "worker asleep", worker.is_alive())
    Order.objects.filter(pk=1).update(price=70)
    engine.move_log()
    worker.join()
    print("RACE late worker", reports[0].outcome)
    f = run(CustomerTotal); print("RACE", f.state, list(f.runs.values_list("strategy")))
    engine.collapse_long_queues()
    for _ in range(2):
        f = run(CustomerTotal)
    print("RACE fresh", CustomerTotal.is_fresh(), differences(CustomerTotal), "current", differences(CustomerTotal, CustomerTotal.current))


def test_null_keys_of_the_source():
    from django.db import connection
    from django.test.utils import CaptureQueriesContext
    for n in range(20, 32):
        Order.objects.create(pk=n, customer_id=None, product_id="a", slot=n, price=1, paid=False)
    print("NULLS", len(want(2)), "of 9 orders with a key, 12 without")
    with CaptureQueriesContext(connection) as c:
        engine.sync_shards()
    print("NULLS maintain", len(c), [q["sql"][:150] for q in c if "COUNT(*)" in q["sql"] or "OFFSET" in q["sql"]])
    Order.objects.filter(pk__gte=24).delete()
    print("NULLS", [s.key_range for s in want(2)], "of 9 orders with a key, 4 without")
    refresh()


def test_many_orders_distinct():
    Order.objects.update(customer_id=9)
    print("EQUAL", [s.key_range for s in want(3)])
    refresh()


def test_late_while_full_runs(monkeypatch):
    """The late worker distributes while the full refresh of the one shard has passed the key."""
    want(2)
    refresh()
    Order.objects.filter(pk=1).update(price=7)
    found = engine.request(CustomerTotal, batch_size=2)
    second = shards()[1].pk
    message = engine.close_finished(second).message
    real = batch_module.await_changes
    done = []

    def slow(logged):
        if not done:
            done.append(1)
            want(1)
            engine.run_batch(due(CustomerTotal))  # first window of the full refresh: key 1 is over
            print("FULLRUN", list(found.runs.values_list("phase", "state", "cursor")))
            Order.objects.filter(pk=1).update(price=70)
        return real(logged)

    monkeypatch.setattr(batch_module, "await_changes", slow)
    report = engine.run_batch(message)
    let_time_pass()
    inline.run_until_idle(shards_of(found.view_id))
    found.refresh_from_db()
    engine.collapse_long_queues()
    f = run(CustomerTotal)
    print("FULLRUN", found.state, f.state, CustomerTotal.is_fresh(), differences(CustomerTotal))
