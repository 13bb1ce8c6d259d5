"""Metrics: what is exported, that it never falls, and that it costs little."""

import json
import re
import sys
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection
from django.db.models import F
from django.http import HttpRequest
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from matviews import changes, engine, health, metrics, series
from matviews.models import Heartbeat, PhaseRun, Refresh, ViewControl, ViewShard
from matviews.registry import registry
from matviews.states import ViewState
from tests import ROOT
from tests.helpers import forked
from tests.helpers.engine import due
from tests.helpers.ledger import add_items
from tests.helpers.source_views import LABEL, sourced
from tests.helpers.view_classes import INSERT_ONLY, make_view, ready, run
from tests.sample.models import Item

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]
UNTRACKED = {"tracking": False}
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]
KEPT = (health.recent_statuses, health.recent_health, series.recent_samples)
TIMES = re.compile(r".*(_age|lag|staleness)_seconds$")  # they go on


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    for kept in (*KEPT, series._row_counts):
        kept.forget()


@pytest.fixture
def view() -> type[Any]:
    made = sourced(options=UNTRACKED)
    add_items(3)
    run(made)
    return made


def request(**headers: Any) -> HttpRequest:
    return RequestFactory().get("/metrics/", headers=headers)


def text() -> str:
    for kept in KEPT:
        kept.forget()
    response = metrics.metrics(request())
    assert response.status_code == 200
    return response.content.decode()


def parsed(exposition: str) -> Values:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def value(name: str, **labels: str) -> float | None:
    return parsed(text()).get((f"matviews_{name}", tuple(sorted(labels.items()))))


def of_view(name: str, **labels: str) -> float | None:
    return value(name, view=LABEL, **labels)


def counters(exposition: str) -> Values:
    return {key: found for key, found in parsed(exposition).items() if key[0].endswith("_total")}


def steady(exposition: str) -> Values:
    return {key: found for key, found in parsed(exposition).items() if not TIMES.match(key[0])}


def never_fell(before: Values, after: Values) -> None:
    fell = {key: (old, after.get(key)) for key, old in before.items() if after.get(key, -1) < old}
    assert not fell


def test_only_what_has_changed_is_written_again(view: type[Any]) -> None:
    text()
    with patch.object(metrics, "_lines", wraps=metrics._lines) as written:
        before = metrics.metrics(request()).content
        assert not written.called
        ViewControl.objects.filter(label=LABEL).update(insert_batches=F("insert_batches") + 1)
        after = metrics.metrics(request()).content
        assert {sample.labels[0] for call in written.call_args_list for sample in call[0][0]} == {
            LABEL
        }
    assert counters(after.decode()) != counters(before.decode())
    assert parsed(after.decode()).keys() == parsed(before.decode()).keys()


class TestViews:
    def test_one_that_is_fine(self, view: type[Any]) -> None:
        ViewControl.objects.update(freshness_target=timedelta(hours=1))
        assert value("up") == 1
        assert value("health_state", state="fine") == 1
        assert of_view("view_state", state="on time") == 1
        assert of_view("view_on_time") == 1
        assert of_view("view_rows") == 3
        assert of_view("view_target_seconds") == 3600
        age = of_view("view_age_seconds")
        assert age is not None
        assert 0 <= age == pytest.approx(of_view("view_staleness_seconds"), abs=5)
        assert of_view("view_suspended") == of_view("view_failures_in_a_row") == 0
        assert of_view("waiting_requests") == of_view("pending_changes") == 0

    def test_requests_wait_until_a_batch_has_begun(self, view: type[Any]) -> None:
        engine.request(view)
        engine.request(view)
        assert of_view("waiting_requests") == 2
        engine.run_batch(due(view))
        assert of_view("waiting_requests") == 0

    def test_marked_keys_are_pending_changes(self, view: type[Any]) -> None:
        engine.mark_dirty(view, [1, 2])
        assert of_view("pending_changes") == 2

    def test_parked_keys(self, view: type[Any]) -> None:
        shard = ViewShard.objects.get(view__label=LABEL)
        now = engine.now()
        for phase in ("insert", "update", "update"):
            shard.parked.create(
                phase=phase, key=["1"], error_class="E", message="", first_seen=now,
                last_seen=now, retry_at=now,
            )  # fmt: skip
        ViewShard.objects.update(parked_count=F("parked_count") + 3)
        assert of_view("parked_keys", phase="update") == 2
        assert of_view("parked_keys", phase="delete") is None
        assert of_view("view_state", state="keys parked") == 1

    def test_maintenance_and_the_log(self, view: type[Any]) -> None:
        assert value("maintenance_age_seconds") is None
        Heartbeat.objects.create(maintenance_ended_at=engine.now())
        age = value("maintenance_age_seconds")
        assert age is not None
        assert age < 60
        assert value("change_log_age_seconds") == 0


class TestTracked:
    def test_changes_that_wait(self, tracked: None) -> None:
        view = sourced()
        changes.install(connection.alias)
        add_items(3)
        run(view)
        assert of_view("view_change_lag_seconds") == of_view("view_staleness_seconds") == 0
        Item.objects.update(value=F("value") + 1)
        assert (of_view("pending_changes") or 0) >= 1
        assert (of_view("view_change_lag_seconds") or 0) > 0
        engine.move_log()
        assert (of_view("pending_changes") or 0) >= 1


class TestTotals:
    def test_work_by_phase(self, view: type[Any]) -> None:
        assert of_view("batches_total", phase="insert") == 1
        assert of_view("rows_written_total", phase="insert") == 3
        assert (of_view("work_seconds_total", phase="insert") or 0) > 0
        assert of_view("batch_failures_total", phase="insert") == 0
        assert of_view("refreshes_total", outcome="succeeded") == 1
        Item.objects.update(value=F("value") + 1)
        run(view)
        assert of_view("rows_written_total", phase="update") == 3
        assert of_view("refreshes_total", outcome="succeeded") == 2

    def test_a_refresh_that_had_nothing_to_do_counts(self, tracked: None) -> None:
        view = sourced()
        changes.install(connection.alias)
        run(view)
        assert run(view).runs.count() == 0
        assert of_view("refreshes_total", outcome="succeeded") == 2

    def test_batches_of_a_refresh_that_goes_on_count_once(self) -> None:
        view = ready(
            make_view(
                "Many",
                options=INSERT_ONLY,
                needs_insert=classmethod(lambda cls: True),
                do_insert=classmethod(lambda cls, limit: limit),
            )
        )
        refresh = engine.request(view, batch_size=10)
        found = []
        for _ in range(3):
            engine.run_batch(due(view))
            found.append(value("rows_written_total", view="sample.Many", phase="insert"))
        assert found == [10, 20, 30]
        engine.request_stop(refresh.pk)
        engine.close_finished_in_view(refresh.view_id)
        assert value("rows_written_total", view="sample.Many", phase="insert") == 30
        assert value("refreshes_total", view="sample.Many", outcome="stopped") == 1

    def test_those_of_open_refreshes_change_nothing_that_is_known(self, view: type[Any]) -> None:
        def batches() -> list[int]:
            (found,) = (each for each in engine.view_totals() if each.label == LABEL)
            return [totals.batches for totals in found.phases.values()]

        before = batches()
        control, shard = (
            ViewControl.objects.get(label=LABEL),
            ViewShard.objects.get(view__label=LABEL),
        )
        opened = [
            Refresh.objects.create(view=control, phases=["insert"], requested_at=engine.now())
            for _number in range(3)
        ]
        for refresh in opened[1:]:  # the first one has yet to begin
            PhaseRun.objects.create(refresh=refresh, shard=shard, phase="insert", batches=2)
        assert batches() == [before[0] + 4, *before[1:]]
        assert batches() == [before[0] + 4, *before[1:]]
        Refresh.objects.filter(pk__in=[each.pk for each in opened]).delete()
        assert batches() == before

    def test_columns_are_read_again_only_where_they_have_grown(self, view: type[Any]) -> None:
        before = {each.label: each for each in engine.view_totals()}
        with CaptureQueriesContext(connection) as unchanged:
            again = {each.label: each for each in engine.view_totals()}
        run(view)
        with CaptureQueriesContext(connection) as grown:
            after = {each.label: each for each in engine.view_totals()}

        assert (len(unchanged), len(grown)) == (1, 2)
        assert all(again[label] is before[label] for label in before)
        others = before.keys() - {LABEL}
        assert others
        assert all(after[label] is before[label] for label in others)
        assert after[LABEL].refreshes != before[LABEL].refreshes

    def test_failures(self) -> None:
        def fail(cls: type) -> int:
            raise ValueError("no")

        view = ready(
            make_view(
                options=INSERT_ONLY,
                needs_insert=classmethod(lambda cls: True),
                do_insert=classmethod(fail),
            )
        )
        run(view)
        run(view)
        label = view._meta.label
        assert value("batch_failures_total", view=label, phase="insert") == 2
        assert value("refreshes_total", view=label, outcome="failed") == 2
        assert value("view_failures_in_a_row", view=label) == 2
        assert value("batches_total", view=label, phase="insert") == 0

    def test_a_batch_that_killed_its_worker_is_a_failure(self, view: type[Any]) -> None:
        engine.request(view)
        message = due(view)
        ViewShard.objects.filter(pk=message.shard_id).update(
            claimed_token=message.token, claimed_at=engine.now() - timedelta(hours=1), attempts=2
        )
        engine.run_batch(message)
        assert of_view("batch_failures_total", phase=message.phase.value) == 2

    def test_trimming_and_folding_take_nothing_away(self, view: type[Any]) -> None:
        before = counters(text())
        Refresh.objects.filter(pk=run(view).pk).update(state="failed")
        for _ in range(3):
            run(view)
        during = counters(text())
        never_fell(before, during)
        old = F("finished_at") - timedelta(days=90)
        Refresh.objects.update(finished_at=old)
        assert engine.fold_failures() + engine.trim_history() == 4
        assert Refresh.objects.count() == 1
        assert counters(text()) == during

    def test_pausing_migrating_and_removing_take_nothing_away(self, view: type[Any]) -> None:
        assert (of_view("batches_total", phase="insert") or 0) > 0
        before = counters(text())
        ViewControl.objects.update(paused=True)
        engine.sync_controls()
        assert counters(text()) == before
        registry.unregister(LABEL)
        assert of_view("view_state", state=ViewState.REMOVED.value) == 1
        assert counters(text()) == before

    def test_saving_a_whole_control_takes_nothing_away(self, view: type[Any]) -> None:
        control = ViewControl.objects.get(label=LABEL)
        run(view)
        before = counters(text())
        control.batch_size = 7
        control.save()
        assert counters(text()) == before
        assert ViewControl.objects.get(label=LABEL).batch_size == 7

    def test_they_are_the_sums_of_the_runs(self, view: type[Any]) -> None:
        for _ in range(2):
            Item.objects.update(value=F("value") + 1)
            run(view)
        runs = PhaseRun.objects.filter(phase="update")
        assert of_view("batches_total", phase="update") == sum(run.batches for run in runs)
        seconds = sum(run.seconds for run in runs)
        assert of_view("work_seconds_total", phase="update") == pytest.approx(seconds)


class TestScrapes:
    def test_statements_do_not_grow_with_views(self, view: type[Any]) -> None:
        text()
        with CaptureQueriesContext(connection) as one:
            text()
        for number in range(3):
            run(sourced(name=f"Sourced{number}", options=UNTRACKED))
        text()
        with CaptureQueriesContext(connection) as four:
            text()
        assert len(four) == len(one) < 25

    def test_the_collector_says_the_same_as_the_address(self, view: type[Any]) -> None:
        theirs_registry = CollectorRegistry()
        metrics.register(theirs_registry)
        theirs = generate_latest(theirs_registry).decode()
        assert steady(theirs) == steady(text())
        assert "matviews_batches_total" in theirs

    def test_a_database_that_is_down(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def down(*_arguments: Any, **_options: Any) -> Any:
            raise OperationalError("no route to host")

        monkeypatch.setattr(engine, "view_totals", down)
        assert parsed(text()) == {("matviews_up", ()): 0}

    def test_only_get(self) -> None:
        assert metrics.metrics(RequestFactory().post("/metrics/")).status_code == 405

    def test_without_the_package_the_collector_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        with pytest.raises(ImproperlyConfigured, match=r"pip install django-matviews\[metrics\]"):
            metrics.Collector()
        assert "matviews_up 1.0" in text()

    def test_a_connection_that_a_scrape_opened_is_closed(self, view: type[Any]) -> None:
        connection.close()
        was_open = connection.connection is not None  # SQLite in memory stays open
        list(metrics.Collector().collect())
        assert (connection.connection is not None) == was_open


@pytest.mark.only_on("postgres", "mariadb", reason="a database in memory is of one process")
def test_two_processes_say_the_same(view: type[Any], redis_environment: dict[str, str]) -> None:
    code = (
        "import django; django.setup()\n"
        "from django.test import RequestFactory; from matviews.metrics import metrics\n"
        "print(metrics(RequestFactory().get('/')).content.decode())"
    )
    one, other = (
        forked.run(["-c", code], cwd=ROOT, env=redis_environment).stdout for _ in range(2)
    )
    assert steady(one) == steady(other)
    assert parsed(one)["matviews_batches_total", (("phase", "insert"), ("view", LABEL))] == 1


@given(st.text(min_size=1, max_size=40))
def test_odd_names_come_back(label: str) -> None:
    line = f"matviews_view_rows{{{metrics._label('view', label)}}} 1.0\n"
    [family] = text_string_to_metric_families(f"# TYPE matviews_view_rows gauge\n{line}")
    assert family.samples[0].labels == {"view": label}


def test_names_follow_the_conventions() -> None:
    for each in series.SERIES:
        assert re.fullmatch(r"matviews_[a-z_]+", each.name)
        assert not re.search(r"_(ms|minutes|count)\b", each.name)
        assert set(each.labels) <= {"view", "phase", "state", "outcome"}
        assert each.help.endswith(".")
    assert len({each.name for each in series.SERIES}) == len(series.SERIES)


EXPRESSION = re.compile(r"(matviews_\w+)(?:\{([^}]*)\})?")


def test_the_dashboard_asks_for_what_is_exported() -> None:
    board = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
    known = {each.name: set(each.labels) for each in series.SERIES}
    used = set()
    for target in (each for panel in board["panels"] for each in panel["targets"]):
        found = EXPRESSION.findall(target["expr"])
        for name, matchers in found:
            assert set(re.findall(r"(\w+)\s*[=!]~?", matchers)) <= known[name], target
        lists = " ".join(re.findall(r"(?:by|on) \(([^)]*)\)", target["expr"]))
        shown = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
        of_all = set[str]().union(*(known[name] for name, _matchers in found))
        assert {*re.findall(r"\w+", lists), *shown} <= of_all, target
        used |= {name for name, _matchers in found}
    assert used >= {
        "matviews_view_state", "matviews_view_staleness_seconds", "matviews_view_target_seconds",
        "matviews_refreshes_total", "matviews_rows_written_total", "matviews_work_seconds_total",
        "matviews_batch_failures_total", "matviews_parked_keys",
    }  # fmt: skip


def test_the_rules_of_the_page_ask_for_what_is_exported() -> None:
    page = (ROOT / "docs" / "production.md").read_text()
    known = {each.name: set(each.labels) for each in series.SERIES}
    rules = re.findall(r"^ +expr: (.+)$", page, re.MULTILINE)
    assert len(rules) == page.count("- alert: ") > 6
    for rule in rules:
        found = EXPRESSION.findall(rule)
        assert found, rule
        by = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule))))
        for name, matchers in found:
            assert by | set(re.findall(r"(\w+)\s*=", matchers)) <= known[name], rule


def test_the_table_of_the_page_has_every_series_with_its_labels() -> None:
    page = (ROOT / "docs" / "production.md").read_text()
    rows = re.findall(r"^\| `(matviews_\w+)` \| (.*?) ?\|", page, re.MULTILINE)
    assert {name: tuple(filter(None, labels.split(", "))) for name, labels in rows} == {
        each.name: each.labels for each in series.SERIES
    }
