"""`update_materialized_views` within this process; its processes are in test_command_process."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import StringIO
from typing import Any
from unittest import mock

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.utils import timezone

from matviews import engine, tasks
from matviews.engine import ViewStatus
from matviews.management import output
from matviews.management.commands.update_materialized_views import Command
from matviews.management.refresh import _why_open
from matviews.management.tables import status_as_dict
from matviews.models import Origin, PhaseRun, Refresh, ViewControl, ViewShard
from matviews.registry import registry
from matviews.states import ViewState
from tests.helpers.ledger import add_items, assert_each_item_once, fault
from tests.helpers.source_views import LABEL as SOURCED
from tests.helpers.source_views import sourced
from tests.helpers.view_classes import INSERT_ONLY, make_view, ready, six_hooks
from tests.sample.models import Item, Limited, Sharded, Walked, Whole

pytestmark = pytest.mark.django_db(transaction=True)

IN_BATCH = {"sample.Limited", "sample.MyModel", "sample.Walked", "sample.Whole"}


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a run of the command came to."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def command(*arguments: str) -> Ran:
    """Run the command as manage.py does."""
    out, err = StringIO(), StringIO()
    status: Any = 0
    try:
        Command(stdout=out, stderr=err).run_from_argv(
            ["manage.py", "update_materialized_views", *arguments]
        )
    except SystemExit as ended:
        status = ended.code
    return Ran(status=status, out=out.getvalue(), err=err.getvalue())


def refreshed() -> set[str]:
    return set(Refresh.objects.values_list("view__label", flat=True))


# Which views


def test_without_models_it_refreshes_what_is_enabled_and_included() -> None:
    add_items(3)
    ViewControl.objects.filter(label="sample.Walked").update(enabled=False)

    ran = command()

    assert (ran.status, ran.err) == (0, "")
    assert refreshed() == IN_BATCH - {"sample.Walked"}
    assert (Limited.objects.count(), Whole.objects.count()) == (3, 3)
    refresh = Refresh.objects.get(view__label="sample.Limited")
    assert refresh.origin == Origin.COMMAND
    assert refresh.requested_by


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample.Limited,sample.Ledger"],
        ["Limited,ledger"],
        [" sample.Limited , sample.Ledger ,, LIMITED"],
        ["sample.Limited", "sample.Ledger"],
        ["sample.Limited", "--models", "sample.Ledger"],
    ],
)
def test_views_are_named_in_many_ways(arguments: list[str]) -> None:
    ran = command("--models", *arguments)

    assert (ran.status, ran.err) == (0, "")
    assert sorted(Refresh.objects.values_list("view__label", flat=True)) == [
        "sample.Ledger", "sample.Limited",
    ]  # fmt: skip


@pytest.mark.parametrize("models", ["Limited,Ledger", ["Limited", "Ledger"], ("Ledger,Limited",)])
def test_call_command_takes_a_text_or_a_list(models: Any) -> None:
    call_command(Command(), models=models, phases="insert", batch_size=7, verbosity=0)

    assert refreshed() == {"sample.Limited", "sample.Ledger"}
    assert {refresh.batch_size for refresh in Refresh.objects.all()} == {7}
    assert {tuple(refresh.phases) for refresh in Refresh.objects.all()} == {("insert",)}


def test_names_that_are_not_there_get_the_near_ones_and_nothing_is_done() -> None:
    ran = command("--models", "sample.Limited,Limitd,sample.Stripd,nonsense")

    assert ran.status == 2
    assert "There is no view 'Limitd'. Did you mean sample.Limited?" in ran.err
    assert "There is no view 'sample.Stripd'. Did you mean sample.Sharded" in ran.err
    assert "There is no view 'nonsense'. The views are " in ran.err
    assert refreshed() == set()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--models", " , "], "--models names nothing: name at least one, or leave it out."),
        (["--phases", ""], "--phases names nothing"),
        (["--phases", "insrt"], "There is no phase 'insrt'. Did you mean insert?"),
        (["--phases", "vacuum"], "Phases are insert, update, delete."),
        (["--batch-size", "0"], "--batch-size must be a whole number of rows from 1"),
        (["--batch-size=-5"], "not '-5'"),
        (["--batch-size", "1e3"], "not '1e3'"),
        (["--batch-size", "99999999999"], "to 2,147,483,647, not '99999999999'"),
        (["--list", "--check"], "Choose one of --list and --check."),
        (["--enqueue", "--check", "--list"], "Choose one of --list and --check and --enqueue."),
        (["--list", "--phases", "insert"], "leave out --phases."),
        (["--list", "--batch-size", "5"], "--list runs no batches: leave out --batch-size."),
        (["--check", "--phases", "insert"], "leave out --phases, or add --pending."),
        (["--list", "--pending"], "--pending is for --check: add that, or leave it out."),
        (["--check", "--batch-size", "5"], "--check runs no batches: leave out --batch-size."),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence(
    arguments: list[str], sentence: str
) -> None:
    ran = command(*arguments)

    assert (ran.status, ran.out) == (2, "")
    assert sentence in ran.err
    assert refreshed() == set()


def test_call_command_refuses_the_same() -> None:
    with pytest.raises(CommandError, match="Choose one of --list and --enqueue"):
        call_command(Command(), list=True, enqueue=True)


def test_it_says_so_when_there_is_nothing_to_do() -> None:
    ViewControl.objects.update(enabled=False)

    assert command().out == (
        f"Nothing to refresh: of {len(list(registry))} views, {len(list(registry))} disabled. "
        "Name views with --models.\n"
    )
    assert command("--format", "json").document == {"views": [], "error": ""}


# Phases and sizes


def test_only_the_phases_asked_for_run_in_batches_of_the_size_asked_for() -> None:
    add_items(7)
    Limited.objects.create(key=0, value=0)

    assert command("--models", "Limited", "--phases", "INSERT", "--batch-size", "3").status == 0

    run = PhaseRun.objects.get()
    assert (run.phase, run.rows, run.batches) == ("insert", 7, 3)
    assert Limited.objects.filter(key=0).exists()


def test_a_view_without_the_phase_is_left_out_unless_it_was_named() -> None:
    ViewControl.objects.filter(label="sample.Ledger").update(include_in_refresh_all=True)

    assert command("--phases", "delete").status == 0
    assert refreshed() == IN_BATCH

    named = command("--models", "Ledger", "--phases", "delete")
    assert named.status == 1
    assert "sample.Ledger: sample.Ledger has no phase delete; it has insert." in named.err


def test_a_view_comes_after_those_that_it_reads_however_they_are_named() -> None:
    with registry.preserved():
        engine.sync_controls()
        ran = command("--models", "ViewOfView,Limited,CustomerTotal,ViewOfView", "--format", "json")

    order = [each["view"] for each in ran.document["views"]]
    assert sorted(order) == ["sample.Limited", "shapes.CustomerTotal", "shapes.ViewOfView"]
    assert order.index("shapes.CustomerTotal") < order.index("shapes.ViewOfView")


@pytest.mark.parametrize("action", ["--enqueue", "--check", "--verify", "--explain", "-v1"])
def test_where_no_view_is_defined_it_says_so_and_fails(action: str) -> None:
    with registry.preserved():
        for definition in registry:
            registry.unregister(definition.label)
        ran = command(action)

    assert ran.status == 2
    assert "no view is defined" in ran.err
    assert "INSTALLED_APPS" in ran.err


def test_where_no_view_has_the_phase_it_says_so_and_fails() -> None:
    with registry.preserved():
        for definition in registry:
            registry.unregister(definition.label)
        ready(make_view(options=INSERT_ONLY, **six_hooks()))
        ran = command("--phases", "delete")

    assert (ran.status, ran.err) == (
        2,
        "CommandError: Nothing to refresh: no view has the phase delete.\n",
    )


# Failures


def test_a_view_that_fails_stops_no_other() -> None:
    add_items(3)
    with fault(Limited, "do_insert", "raise"):
        ran = command()

    assert ran.status == 1
    assert "sample.Limited: insert: RuntimeError: do_insert was told to fail\n" in ran.err
    assert "1 of 4 views failed: sample.Limited." in ran.err
    assert "sample.Limited insert: failed\n" in ran.out
    assert (Limited.objects.count(), Walked.objects.count(), Whole.objects.count()) == (0, 3, 3)

    assert command().status == 0
    assert Limited.objects.count() == 3


@pytest.mark.parametrize("verbosity", ["1", "2"])
def test_an_error_that_the_phases_share_is_printed_once(verbosity: str) -> None:
    with registry.preserved():
        sourced(list)

        ran = command("--models", "Sourced", "-v", verbosity)

    assert ran.status == 1
    assert (ran.out + ran.err).count("must return a queryset of columns") == 1


def test_a_disabled_an_unready_and_a_broken_view_fail_by_themselves() -> None:
    add_items(3)
    ViewControl.objects.filter(label="sample.Limited").update(enabled=False)
    with registry.preserved():
        ready(make_view(name="Hookless"))
        ViewControl.objects.filter(label="sample.Walked").delete()

        ran = command("--models", "Limited,Hookless,Walked,Whole")

    assert ran.status == 1
    assert "sample.Limited: sample.Limited is disabled" in ran.err
    assert "sample.Hookless: sample.Hookless.needs_insert is missing." in ran.err
    assert "sample.Walked: sample.Walked has no bookkeeping rows yet: run `manage.py" in ran.err
    assert "3 of 4 views failed" in ran.err
    assert Whole.objects.count() == 3


def test_a_view_that_is_disabled_under_way_is_left_open_and_told() -> None:
    add_items(30)

    def disable(**_kwargs: Any) -> None:
        ViewControl.objects.filter(label="sample.Limited").update(enabled=False)

    from matviews.signals import batch_finished

    batch_finished.connect(disable)
    try:
        ran = command("--models", "Limited", "--batch-size", "10")
    finally:
        batch_finished.disconnect(disable)

    assert ran.status == 1
    assert "sample.Limited: is disabled; the refresh continues when it is enabled" in ran.err
    assert Limited.objects.count() == 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"paused": True}, "is paused; the refresh continues when it is resumed"),
        ({"enabled": False}, "is disabled; the refresh continues when it is enabled"),
        ({}, "has failed and waits; the refresh continues with the next try"),
    ],
)
def test_why_a_refresh_stays_open_is_told(options: dict[str, Any], said: str) -> None:
    assert _why_open(ViewControl(label="sample.Limited", **options)) == said


def test_a_database_that_refuses_is_a_sentence() -> None:
    refusal = OperationalError("server closed the connection\n")
    with mock.patch.object(engine, "views_to_refresh", side_effect=refusal):
        ran = command("--format", "json")

    assert ran.status == 1
    assert "(OperationalError: server closed the connection)" in ran.err
    assert "manage.py migrate" in ran.document["error"]


# JSON


def test_json_is_one_document_also_when_views_fail() -> None:
    add_items(3)
    with fault(Limited, "do_insert", "raise"):
        ran = command("--models", "Limited,Whole", "--format", "json")

    assert ran.status == 1
    assert ran.document["error"] == "1 of 2 views failed: sample.Limited."
    limited, whole = ran.document["views"]
    assert (limited["view"], limited["state"]) == ("sample.Limited", "failed")
    assert limited["error"] == "insert: RuntimeError: do_insert was told to fail"
    assert (whole["state"], whole["error"], whole["merged_into"]) == ("succeeded", "", None)
    assert [phase["phase"] for phase in whole["phases"]] == ["insert", "update", "delete"]
    assert {**whole["phases"][0], "seconds": 0} == {
        "phase": "insert", "shard": 0, "state": "succeeded", "rows": 0, "keys_scanned": 0,
        "batches": 1, "seconds": 0, "full_refresh_reason": None, "parked": 0,
        "error": "",
        "strategy": None, "expected_seconds": {},
    }  # fmt: skip
    assert "sample.Limited: insert: RuntimeError" in ran.err


@pytest.mark.parametrize(
    "arguments", [["--models", "Nothing"], ["--batch-size", "0"], ["--list", "--check"]]
)
def test_json_is_one_document_also_when_nothing_is_done(arguments: list[str]) -> None:
    ran = command("--format", "json", *arguments)

    assert ran.status == 2
    assert ran.document["views"] == []
    assert ran.document["error"] in ran.err


# List


def test_the_list_is_not_cut_in_a_file() -> None:
    # given a view with a long name that is at work
    add_items(3)
    long = "shop.CustomerLifetimeValueByRegionAndCampaignAndAcquisitionChannelAndQuarter"
    gone = ViewControl.objects.create(label=long)
    shard = ViewShard.objects.create(view=gone, number=0, token=1, claimed_token=1)
    since = timezone.now() - timedelta(seconds=75)
    ViewShard.objects.filter(pk=shard.pk).update(worker="vm-1:4711", claimed_at=since)
    Refresh.objects.create(view=gone, phases=[], requested_at=since)
    with fault(Limited, "do_insert", "raise"):
        command("--models", "Limited")
    command("--models", "Whole")
    # when it is listed
    ran = command("--list")
    # then each view has a line, with all that is known
    assert ran.status == 1
    lines = {line.split()[0]: line.split() for line in ran.out.splitlines()}
    assert lines[long][1:] == ["removed", "from", "the", "code", "yes", "?", "never"]
    assert lines["sample.Whole"][1:6] == ["ok,", "no", "target", "yes", "3"]
    assert lines["sample.Sharded"][1:] == ["never", "built", "by", "name", "0", "never"]
    assert re.search(rf"{long}: running on vm-1:4711, this batch for 1 min \d+ s\n", ran.out)
    assert "sample.Limited insert: RuntimeError: do_insert was told to fail\n" in ran.out
    assert "\x1b" not in ran.out


def test_the_list_shows_only_what_was_named() -> None:
    ran = command("--list", "--models", "Limited,Whole", "--format", "json")

    assert [view["view"] for view in ran.document["views"]] == ["sample.Limited", "sample.Whole"]


def test_the_list_as_json_has_values() -> None:
    add_items(3)
    command("--models", "Limited")

    views = {view["view"]: view for view in command("--list", "--format", "json").document["views"]}

    limited = views["sample.Limited"]
    assert 0 <= limited.pop("age") < 60
    assert datetime.fromisoformat(limited.pop("last_success")).tzinfo is not None
    assert limited == {
        "view": "sample.Limited", "state": "ok, no target", "definition_changed": [],
        "enabled": True, "paused": False, "paused_at": None, "paused_by": "", "queue": None,
        "verification": None, "verifying": None, "differing": None, "waiting_for": None,
        "include_in_refresh_all": True,
        "rows": 3, "rows_exact": True, "change_lag": None, "running": [],
        "target": None, "not_logged": [], "parked": 0, "on_time": True, "error": "",
        "failures": 0, "failing_since": None, "retry_in": None, "suspended_at": None,
        "wait": None, "wait_reason": "", "quiet_until": None,
        "upstream_failed": [], "upstream_paused": [], "in_loop": False,
        "recent_refreshes": {"count": 1, "full": 0, "reason": ""},
    }  # fmt: skip
    assert (views["sample.Ledger"]["include_in_refresh_all"], views["sample.Ledger"]["age"]) == (
        False, None,
    )  # fmt: skip


# Check


def test_check_tells_by_its_status_whether_all_is_on_time() -> None:
    """By the age of the last success, for views whose changes are not tracked."""
    add_items(3)
    late = command("--check", "--models", "Limited,Sharded")
    assert late.status == 1
    assert late.out == (
        "sample.Limited: not on time: never built\nsample.Sharded: not on time: never built\n"
    )
    assert "2 of 2 views are not on time: sample.Limited, sample.Sharded." in late.err
    assert (Limited.objects.count(), Refresh.objects.count()) == (0, 0)

    command("--models", "Limited,Sharded")
    add_items(1)  # which no target says anything of
    ran = command("--check", "--models", "Limited,Sharded")
    assert (ran.status, ran.err) == (0, "")
    pattern = r"(sample\.\w+: on time \(last success \d[\d.]* m?s ago, no target\)\n){2}"
    assert re.fullmatch(pattern, ran.out)

    ViewControl.objects.filter(label="sample.Limited").update(
        freshness_target=timedelta(seconds=5),
        last_update=timezone.now() - timedelta(seconds=20),
    )
    ran = command("--check", "--models", "Limited,Sharded")
    assert ran.status == 1
    assert "sample.Limited: not on time: behind (last success 20 s ago, target 5.0 s)" in ran.out
    assert "1 of 2 views is not on time: sample.Limited." in ran.err


def test_check_asks_no_hook() -> None:
    command("--models", "Limited")

    with fault(Limited, "needs_insert", "raise"):
        assert command("--check", "--models", "Limited").status == 0


def test_check_without_models_is_about_every_view_that_nobody_holds() -> None:
    command("--models", *(each.label for each in registry if each.label.startswith("sample.")))
    ViewControl.objects.exclude(label__startswith="sample.").update(enabled=False)
    assert command("--check").status == 0

    # also of one that a refresh of all leaves out
    ViewControl.objects.filter(label="sample.Ledger").update(last_insert=None)
    assert "1 of 7 views is not on time: sample.Ledger." in command("--check").err

    for held in ({"enabled": False}, {"enabled": True, "paused": True}):
        ViewControl.objects.filter(label="sample.Ledger").update(**held)
        assert command("--check").status == 0
    assert command("--check", "--models", "Ledger").status == 1

    ViewControl.objects.update(enabled=False)
    nothing = command("--check")
    assert (nothing.status, nothing.out[:17]) == (0, "Nothing to check:")


def test_check_as_json_has_the_numbers() -> None:
    with fault(Limited, "do_insert", "raise"):
        add_items(1)
        command("--models", "Limited,Whole")

    ran = command("--check", "--models", "Limited,Whole", "--format", "json")

    limited, whole = ran.document["views"]
    assert 0 < limited.pop("retry_in") <= 10
    assert limited.pop("failing_since")
    assert limited == {
        "view": "sample.Limited", "on_time": False, "reason": "failed", "state": "failed",
        "reasons": ["failed", "never built"], "not_logged": [], "parked": 0,
        "change_lag": None, "age": None, "target": None,
        "failures": 1, "suspended_at": None, "wait": None, "wait_reason": "", "quiet_until": None,
        "upstream_failed": [], "upstream_paused": [], "in_loop": False,
        "error": "insert: RuntimeError: do_insert was told to fail",
        "recent_refreshes": {"count": 1, "full": 0, "reason": ""},
    }  # fmt: skip
    assert 0 <= whole.pop("age") < 60
    assert (whole["on_time"], whole["reason"], whole["change_lag"]) == (True, "", None)
    assert ran.document["error"] == "1 of 2 views is not on time: sample.Limited."


@pytest.mark.parametrize(
    ("changes", "status"),
    [({}, 1), ({"paused": True}, 0), ({"enabled": False}, 0)],
    ids=["of a view that nobody holds", "of a paused one", "of a disabled one"],
)
def test_the_list_exits_with_1_after_a_failure(changes: dict[str, bool], status: int) -> None:
    command("--models", "Whole")
    assert command("--list", "--models", "Limited,Whole").status == 0
    with fault(Limited, "do_insert", "raise"):
        add_items(1)
        command("--models", "Limited")
    ViewControl.objects.filter(label="sample.Limited").update(**changes)

    ran = command("--list", "--models", "Limited,Whole")

    assert ran.status == status
    assert "sample.Whole" in ran.out
    assert ("1 of 2 views failed: sample.Limited." in ran.err) == bool(status)
    assert command("--list", "--models", "Whole").status == 0
    ran = command("--list", "--models", "Limited,Whole", "--format", "json")
    assert ran.status == status


def test_the_list_exits_with_1_for_a_view_with_errors() -> None:
    with registry.preserved():
        ready(make_view(name="Hookless"))

        ran = command("--list", "--models", "Hookless", "--format", "json")

    assert ran.status == 1
    assert ran.document["error"].endswith("views failed: sample.Hookless.")


# Pending changes


def test_check_pending_tells_by_its_status_whether_a_source_has_changed() -> None:
    add_items(3)
    stale = command("--check", "--pending", "--models", "Limited,Sharded")
    assert stale.status == 1
    assert stale.out == (
        "sample.Limited: source changed since the last refresh (insert)\n"
        "sample.Sharded: source changed since the last refresh (insert)\n"
    )
    assert "2 of 2 views are out of date: sample.Limited, sample.Sharded." in stale.err
    assert (Limited.objects.count(), Refresh.objects.count()) == (0, 0)

    command("--models", "Limited,Sharded")
    fresh = command("--check", "--pending", "--models", "Limited,Sharded")
    assert (fresh.status, fresh.err) == (0, "")
    assert fresh.out == "sample.Limited: nothing pending\nsample.Sharded: nothing pending\n"


def test_check_pending_asks_about_the_phases_that_were_named() -> None:
    add_items(3)
    check = ["--check", "--pending", "--models", "Limited", "--phases"]

    assert command(*check, "update,delete").status == 0
    assert "1 of 1 views is out of date: sample.Limited." in command(*check, "insert").err


def test_check_pending_goes_on_after_a_hook_that_fails() -> None:
    with fault(Limited, "needs_insert", "raise"):
        ran = command("--check", "--pending", "--models", "Limited,Sharded", "--format", "json")

    assert ran.status == 1
    assert "sample.Limited: insert: RuntimeError: needs_insert was told to fail" in ran.err
    assert "1 of 2 views is not known to be up to date: sample.Limited." in ran.err
    limited, sharded = ran.document["views"]
    assert (limited["fresh"], limited["pending"]) == (None, [])
    assert limited["error"] == "insert: RuntimeError: needs_insert was told to fail"
    assert limited["phases"] == {"update": True, "delete": True}
    assert (sharded["fresh"], sharded["pending"]) == (True, [])


# Definitions that changed


@pytest.fixture
def changed() -> Iterator[type[Any]]:
    """A view whose inserts and deletes are those of an older `source()`."""
    with registry.preserved():
        view = sourced(options={"tracking": False})
        add_items(3)
        command("--models", "Sourced")
        control = ViewControl.objects.filter(label=SOURCED)
        fingerprints = control.get().fingerprints
        control.update(fingerprints={**fingerprints, "insert": "older", "delete": "older"})
        yield view


def test_check_tells_of_a_changed_definition_without_asking_hooks(
    changed: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "is_fresh", mock.Mock(side_effect=RuntimeError("asked")))

    text = command("--check", "--pending", "--models", "Sourced")
    (entry,) = command("--check", "--pending", "--models", "Sourced", "--format", "json").document[
        "views"
    ]

    assert (text.status, text.out) == (1, f"{SOURCED}: definition changed (insert, delete)\n")
    assert f"1 of 1 views is out of date: {SOURCED}." in text.err
    assert entry == {
        "view": SOURCED, "pending": ["insert", "delete"], "fresh": False,
        "phases": {"insert": False, "delete": False},
        "definition_changed": ["insert", "delete"], "parked": 0, "error": "",
        "upstream_failed": [], "upstream_paused": [],
    }  # fmt: skip


def test_check_of_a_phase_whose_definition_did_not_change_asks_it(changed: type[Any]) -> None:
    ran = command("--check", "--pending", "--models", "Sourced", "--phases", "update")

    assert (ran.status, ran.out) == (0, f"{SOURCED}: nothing pending\n")


def test_the_list_tells_of_a_changed_definition(changed: type[Any]) -> None:
    text = command("--list", "--models", "Sourced").out
    (entry,) = command("--list", "--models", "Sourced", "--format", "json").document["views"]

    assert re.search(rf"{SOURCED} +definition changed +yes +3 ", text)
    assert f"{SOURCED}: definition changed (insert, delete)\n" in text
    assert (entry["state"], entry["definition_changed"]) == (
        "definition changed",
        ["insert", "delete"],
    )
    # and after a refresh no more
    command("--models", "Sourced")
    assert "changed" not in command("--list", "--models", "Sourced").out


# Enqueue


def test_enqueue_leaves_the_work_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    add_items(3)
    sent: list[int] = []

    def dispatch(view: int) -> bool:
        sent.append(view)
        return True

    monkeypatch.setattr(tasks, "dispatch", dispatch)

    ran = command("--enqueue", "--models", "Limited", "--batch-size", "2")

    refresh = Refresh.objects.get()
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"sample.Limited: refresh {refresh.pk} requested\n"
    assert (refresh.state, refresh.batch_size, sent) == ("open", 2, [refresh.view_id])
    assert Limited.objects.count() == 0


def test_enqueue_with_a_broker_that_is_down_records_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise ConnectionError("no broker")

    add_items(3)
    monkeypatch.setattr(tasks.insert_batch, "apply_async", refuse)

    ran = command("--enqueue", "--models", "Limited", "--format", "json")

    assert ran.status == 0
    assert "recorded, but the broker is unreachable (no broker); the message will be" in ran.err
    (limited,) = ran.document["views"]
    assert (limited["state"], limited["sent"]) == ("requested", False)
    assert Refresh.objects.get().state == "open"


# How much it says


def test_verbosity_0_says_nothing_unless_something_fails() -> None:
    add_items(3)
    for action in ([], ["--check"]):
        quiet = command("--verbosity", "0", "--models", "Limited", *action)
        assert (quiet.status, quiet.out, quiet.err) == (0, "", "")

    with fault(Limited, "needs_insert", "raise"):
        loud = command("--verbosity", "0", "--models", "Limited")
    assert (loud.status, loud.out) == (1, "")
    assert "sample.Limited: insert: RuntimeError" in loud.err


def test_by_default_it_says_how_each_phase_ended() -> None:
    add_items(3)

    lines = command("--models", "Limited").out.splitlines()

    assert lines[0].startswith("sample.Limited insert: 3 rows in 1 batch, ")
    assert lines[1:] == [
        "sample.Limited update: nothing to do", "sample.Limited delete: nothing to do",
    ]  # fmt: skip


def test_verbosity_2_tells_of_each_batch() -> None:
    add_items(5)

    out = command("--models", "Limited", "--batch-size", "3", "--verbosity", "2").out

    assert "sample.Limited insert: batch of 3 rows of at most 3, " in out
    assert "sample.Limited insert: batch of 2 rows of at most 3, " in out


def test_shards_are_told_apart() -> None:
    add_items(4)

    out = command("--models", "Sharded").out

    assert "sample.Sharded insert shard 0: 2 rows in 1 batch" in out
    assert "sample.Sharded insert shard 1: 2 rows in 1 batch" in out


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_what_is_no_terminal_gets_no_bars_and_no_colour_even_if_forced(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    add_items(3)

    assert "\x1b" not in command("--models", "Limited").out
    assert "\x1b" not in command("--list").out


@pytest.mark.parametrize(("terminal", "reporter"), [("xterm", "Bars"), ("dumb", "Lines")])
def test_bars_are_for_terminals_that_can_draw_them(
    terminal: str, reporter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", terminal)
    out = output.Output(
        Command(stdout=Terminal()), as_json=False, verbosity=1, no_color=False
    )  # fmt: skip

    assert type(out.reporter()).__name__ == reporter


# With others


def test_a_refresh_that_joins_another_tells_of_that_ones_work() -> None:
    # given a refresh that somebody else began
    add_items(25)
    first = engine.request(Limited, batch_size=10)
    message = engine.close_finished(ViewShard.objects.get(view=first.view_id).pk).message
    assert message is not None
    engine.run_batch(message)
    # when the command asks for the same
    ran = command("--models", "Limited", "--format", "json")
    text = command("--models", "Limited")
    # then it shows what was done for both
    (limited,) = ran.document["views"]
    assert (limited["state"], limited["merged_into"]) == ("succeeded", first.pk)
    assert limited["phases"][0]["rows"] == 25
    assert text.status == 0


def test_a_joined_run_is_named_in_text() -> None:
    add_items(25)
    first = engine.request(Limited, batch_size=1_000)

    out = command("--models", "Limited").out

    assert "insert: 25 rows in 1 batch, " in out
    assert f" (shared with refresh {first.pk})" in out


def test_hundreds_of_batches_end_right() -> None:
    add_items(150)

    ran = command("--models", "Ledger,Sharded", "--batch-size", "1")

    assert (ran.status, ran.err) == (0, "")
    assert_each_item_once()
    assert Sharded.objects.count() == Item.objects.count()
    assert sum(run.batches for run in PhaseRun.objects.all()) == 300


def test_an_age_of_nothing_is_a_number_in_json() -> None:
    status = ViewStatus(
        label="a.B", state=ViewState.ON_TIME, age=timedelta(), change_lag=timedelta()
    )

    told = json.loads(json.dumps(status_as_dict(status)))

    assert (told["age"], told["change_lag"]) == (0, 0)
