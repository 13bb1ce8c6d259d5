import os, random, threading, time, traceback, collections
from tests.engine.tracking.test_key_ranges import *  # noqa
from tests.engine.tracking.test_key_ranges import _shop  # noqa
for _n in [n for n in dict(globals()) if n.startswith("Test") or n.startswith("test_")]:
    del globals()[_n]
from django.db import connections
from matviews.states import RefreshState

SECONDS = float(os.environ.get("H_SECS", "25"))


def test_rounds():
    for n in range(int(os.environ.get("ROUNDS", "10"))):
        print("ROUND", n)
        one_round()


def one_round():
    end = time.monotonic() + SECONDS
    outcomes, errors, counts = collections.Counter(), [], collections.Counter()
    rnd = random.Random(int(os.environ.get("SEED", "1")))

    def guarded(work):
        def run_():
            try:
                while time.monotonic() < end:
                    try:
                        work()
                    except Exception as e:
                        errors.append((work.__name__, repr(e)[:200], traceback.format_exc()[-700:]))
                        time.sleep(0.01)
            finally:
                connections.close_all()
        return threading.Thread(target=run_)

    def worker():
        keys = list(ViewShard.objects.filter(view__label=LABEL).values_list("pk", flat=True))
        pk = random.choice(keys)
        step = engine.close_finished(pk)
        if step.message:
            time.sleep(random.random() * 0.01)
            report = engine.run_batch(step.message)
            outcomes[str(report.outcome)] += 1
            if report.error: outcomes[report.error[:160]] += 1
            engine.close_finished(pk, report)
        else:
            time.sleep(0.003)

    def writer():
        k = random.randint(1, 9)
        kind = random.random()
        if kind < 0.5:
            Order.objects.filter(pk=k).update(price=random.randint(1, 90))
        elif kind < 0.8:
            Order.objects.filter(pk=k).update(customer_id=random.randint(1, 9))
        else:
            n = random.randint(10, 40)
            if not Order.objects.filter(pk=n).delete()[0]:
                Order.objects.create(pk=n, customer_id=random.randint(1, 9), product_id="a", slot=n, price=1, paid=False)
        time.sleep(random.random() * 0.01)

    def requester():
        r = random.random()
        if r < 0.1: engine.mark_dirty(CustomerTotal)
        elif r < 0.15: engine.collapse_long_queues()
        engine.request(CustomerTotal, force=True, batch_size=random.choice([1, 2, 50]))
        time.sleep(random.random() * 0.05)

    def cutter():
        n = random.choice([1, 2, 3])
        ViewControl.objects.filter(label=LABEL).update(shard_count=n)
        if os.environ.get("PIN") and random.random() < 0.4:
            ViewControl.objects.filter(label=LABEL).update(strategy=random.choice(["", RefreshStrategy.FULL_STAGED]))
            engine.mark_dirty(CustomerTotal)
        for _ in range(random.choice([1, 10, 60])):
            engine.sync_shards()
            time.sleep(0.005)
        counts[len(shards())] += 1

    threads = [guarded(w) for w in (worker, worker, worker, writer, requester, cutter)]
    for t in threads: t.start()
    for t in threads: t.join()
    print("RESULT outcomes", dict(outcomes), "counts", dict(counts), "errors", collections.Counter((e[0], e[1]) for e in errors))
    for e in errors[:3]: print(e[2])
    print("states", collections.Counter(Refresh.objects.values_list("state", "error")))
    let_time_pass()
    inline.run_until_idle(shards_of(control().pk))
    for _ in range(1):
        f = run(CustomerTotal)
        print("RESULT final", f.state, f.error[:300])
    print("RESULT fresh", CustomerTotal.is_fresh(), "shardchanges", ShardChange.objects.filter(shard__view__label=LABEL).count())
    print("RESULT differences", differences(CustomerTotal))
    assert differences(CustomerTotal) == []
