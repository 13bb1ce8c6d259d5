"""`update_materialized_views --verify` and `--explain`: views held against their `source()`."""

import json
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, transaction
from django.db.models import F

import matviews
from matviews import api, engine, tasks
from matviews.engine import Verification
from matviews.json_fields import Cost
from matviews.management import formatting
from matviews.management.commands.update_materialized_views import Command
from matviews.models import Refresh, ViewControl, ViewShard
from matviews.phases import Phase
from matviews.queryset import Difference, ExplainedIndex, Explanation, Kind
from tests.helpers import triggers
from tests.helpers.ledger import add_items
from tests.helpers.source_views import LABEL, sourced, staged
from tests.management.test_command import Ran, command
from tests.sample.models import Item, Limited

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("own_views"),
]


def verify(*arguments: str) -> Ran:
    return command("--verify", "--models", "Sourced", *arguments)


def differing_view(source: Any = None) -> tuple[int, int, int]:
    """A view with one difference of each kind among ten; the keys missing, differing, surplus."""
    view = sourced(source) if source else sourced()
    add_items(10)
    command("--models", "Sourced")
    missing, differing = Item.objects.order_by("pk").values_list("pk", flat=True)[:2]
    view.objects.filter(key=missing).delete()
    view.objects.filter(key=differing).update(value=-7)
    surplus = differing + 1_000_000
    view.objects.create(key=surplus, value=9)
    return missing, differing, surplus


# What it tells


def test_a_view_that_equals_its_source_ends_with_status_0() -> None:
    sourced()
    add_items(10)
    command("--models", "Sourced")

    ran = verify()

    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"{LABEL}: equals its source (10 rows compared)\n"


@pytest.mark.parametrize("source", [None, staged])
def test_what_differs_is_told_with_its_key_and_both_values(source: Any) -> None:
    missing, differing, surplus = differing_view(source)

    ran = verify()

    assert ran.status == 1
    value = Item.objects.get(pk=differing).value
    first, *others = ran.out.splitlines()
    reason = "no triggers log all changes of sample_item"
    assert first == f"{LABEL}: 1 missing, 1 differing, 1 surplus (10 rows compared)"
    assert sorted(others) == sorted(
        [
            f"  missing key={missing}: in the source value={Item.objects.get(pk=missing).value}",
            f"  differing key={differing}: value is -7, in the source {value}",
            f"  surplus key={surplus}: in the view value=9",
            f"  These may be changes since its last refresh: {reason}.",
        ]
    )
    assert f"1 of 1 views differ from their source: {LABEL}." in ran.err
    assert "--repair" in ran.err
    assert Limited.objects.filter(key=surplus).exists()


def test_pending_changes_do_not_count(tracked: None) -> None:
    # given a tracked view, and a change that waits for its refresh
    sourced()
    add_items(10)
    triggers.install(engine.alias())
    command("--models", "Sourced")
    Item.objects.filter(value=3).update(value=-3)
    # then only code that asks for it sees a difference
    ran = verify()
    assert ran.status == 0
    compared = "(10 rows compared; 1 key left out, changes are pending)"
    assert ran.out == f"{LABEL}: equals its source, apart from pending changes {compared}\n"
    assert matviews.verify(LABEL).differing == 1
    with transaction.atomic():
        assert matviews.verify(LABEL, leave_out_pending=True).differing == 1
    # and a row that no change explains counts
    Limited.objects.filter(value=5).update(value=-5)
    ran = verify()
    assert ran.status == 1
    assert ran.out.splitlines()[0].startswith(f"{LABEL}: 0 missing, 1 differing, 0 surplus")
    assert verify("--format", "json").document["views"][0]["pending"] == 1
    # and a repair writes both
    assert "0 missing, 2 differing, 0 surplus" in verify("--repair").out
    assert matviews.verify(LABEL).equal


def test_json_has_the_counts_and_the_first_differences() -> None:
    missing, differing, surplus = differing_view()

    ran = verify("--format", "json")

    assert ran.status == 1
    (found,) = ran.document["views"]
    examples = {each["kind"]: each for each in found.pop("examples")}
    assert found == {
        "view": LABEL, "equal": False, "compared": 10, "missing": 1, "differing": 1, "surplus": 1,
        "repaired": None, "sample": None, "null_keys": 0, "parked": 0, "pending": 0,
        "untracked": "no triggers log all changes of sample_item", "sums": None, "failed": 0,
        "error": "",
    }  # fmt: skip
    assert examples["missing"]["key"] == {"key": missing}
    assert examples["missing"]["in_view"] is None
    assert examples["differing"]["in_view"] == {"key": differing, "value": -7}
    assert examples["differing"]["in_source"]["value"] == Item.objects.get(pk=differing).value
    assert examples["surplus"]["in_view"] == {"key": surplus, "value": 9}
    assert examples["surplus"]["in_source"] is None
    assert ran.document["error"] in ran.err


def test_only_the_first_few_of_each_kind_are_told() -> None:
    sourced()
    add_items(30)

    found = verify("--format", "json").document["views"][0]

    assert (found["missing"], len(found["examples"])) == (30, 5)


def test_it_is_silent_where_that_is_wanted_but_not_about_differences() -> None:
    differing_view()

    ran = verify("--verbosity", "0")

    assert (ran.status, ran.out) == (1, "")
    assert LABEL in ran.err


# Repair and sample


@pytest.mark.parametrize("source", [None, staged])
def test_repair_writes_what_differs_and_the_workers_are_told(
    source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_keys, surplus = differing_view(source)
    told: list[int] = []
    monkeypatch.setattr(tasks, "dispatch_on_commit", told.append)

    ran = verify("--repair")

    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(
        f"{LABEL}: 1 missing, 1 differing, 1 surplus (10 rows compared); repaired, 3 rows written\n"
    )
    assert not Limited.objects.filter(key=surplus).exists()
    assert verify().status == 0
    assert told == [ViewControl.objects.get(label=LABEL).pk]
    assert Refresh.objects.count() == 1  # the one that built it


def test_a_sample_compares_no_more_than_it_says() -> None:
    sourced()
    add_items(300)
    command("--models", "Sourced")

    ran = verify("--sample", "40")

    assert ran.status == 0
    assert "(40 rows compared, a sample of about 40 keys)" in ran.out


def test_a_staged_view_refuses_a_sample_and_the_others_go_on() -> None:
    sourced(staged)
    sourced(name="Other")
    add_items(3)
    command("--models", "Sourced,Other")

    ran = command("--verify", "--models", "Sourced,Other", "--sample", "2", "--format", "json")

    assert ran.status == 1
    assert f"{LABEL} cannot be sampled: a slice depends on all rows" in ran.err
    first, second = ran.document["views"]
    assert (first["equal"], second["equal"]) == (None, True)
    assert ran.document["error"] == f"1 of 2 views failed: {LABEL}."


# Which views


def test_without_models_it_takes_the_views_to_refresh_that_have_a_source() -> None:
    sourced()
    sourced(name="Disabled")
    ViewControl.objects.filter(label="sample.Disabled").update(enabled=False)

    ran = command("--verify")

    assert ran.status == 0
    note, *others = ran.out.splitlines()
    assert note.startswith("Skipped (no source()): ")
    assert "sample.Limited" in note
    assert others == [f"{LABEL}: equals its source (0 rows compared)"]


@pytest.mark.parametrize("action", ["--verify", "--explain"])
def test_a_view_without_a_source_is_refused_by_name_and_nothing_is_done(action: str) -> None:
    sourced()

    ran = command(action, "--models", "Sourced,Limited")

    assert (ran.status, ran.out) == (2, "")
    assert "sample.Limited has no source()" in ran.err
    assert ViewControl.objects.get(label=LABEL).verification is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--repair"], "--repair is for --verify: add that, or leave it out."),
        (["--sample", "5"], "--sample is for --verify"),
        (["--check", "--repair"], "--repair is for --verify"),
        (["--explain", "--sample", "5"], "--sample is for --verify"),
        (["--verify", "--sample", "0"], "--sample must be a whole number of keys from 1"),
        (["--verify", "--sample", "few"], "not 'few'"),
        (["--verify", "--phases", "insert"], "--verify compares whole rows: leave out --phases."),
        (["--verify", "--batch-size", "5"], "--verify runs no batches: leave out --batch-size."),
        (["--explain", "--phases", "insert"], "--explain shows every phase: leave out --phases."),
        (["--explain", "--batch-size", "5"], "--explain runs no batches: leave out --batch-size."),
        (["--verify", "--explain"], "Choose one of --verify and --explain."),
        (["--verify", "--enqueue"], "Choose one of --verify and --enqueue."),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence(
    arguments: list[str], sentence: str
) -> None:
    sourced()

    ran = command(*arguments)

    assert (ran.status, ran.out) == (2, "")
    assert sentence in ran.err
    assert Refresh.objects.count() == 0


def test_call_command_verifies_too() -> None:
    differing_view()

    with pytest.raises(CommandError, match="1 of 1 views differ") as refused:
        call_command(Command(), verify=True, models="Sourced", verbosity=0)
    assert refused.value.returncode == 1

    call_command(Command(), verify=True, repair=True, models=["Sourced"], verbosity=0)
    call_command(Command(), verify=True, sample=5, models=["Sourced"], verbosity=0)


def test_a_database_that_refuses_one_view_stops_no_other() -> None:
    sourced()
    sourced(name="Other")
    verified = api.verify

    def refuse(view: str, **options: Any) -> Verification:
        if view == LABEL:
            raise DatabaseError("canceling statement due to statement timeout\n")
        return verified(view, **options)

    with mock.patch.object(api, "verify", refuse):
        ran = command("--verify", "--models", "Sourced,Other")

    assert ran.status == 1
    assert f"{LABEL}: canceling statement due to statement timeout\n" in ran.err
    assert "sample.Other: equals its source" in ran.out


# Explain


def test_explain_tells_the_path_the_indexes_and_the_sql_of_each_phase() -> None:
    sourced()
    add_items(3)
    command("--models", "Sourced")

    ran = command("--explain", "--models", "Sourced")

    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(
        f"{LABEL}: windowed (the key is sample.Item (id), which an index serves)\n  key: key\n"
    )
    assert "  index of sample.Item (id): exists\n" in ran.out
    statements = dict(
        re.findall(r"^  (\w+), for one window of keys:\n(.*?;)$", ran.out, re.M | re.S)
    )
    assert list(statements) == ["insert", "update", "delete"]
    assert statements["insert"].startswith("INSERT INTO ")
    assert all(Limited._meta.db_table in statement for statement in statements.values())
    assert "%s" not in ran.out
    assert (Limited.objects.count(), Refresh.objects.count()) == (3, 1)


def test_explain_tells_what_refreshes_cost_and_which_strategy_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("matviews.engine.work.costs.CHEAP_SECONDS", 0.05)
    sourced()
    add_items(3)
    command("--models", "Sourced")
    costs = dict.fromkeys(Phase, Cost(0.4, {0: 0.01, 2: 0.5}))
    ViewShard.objects.update(costs=costs)

    ran = command("--explain", "--models", "Sourced")
    known = command("--explain", "--models", "Sourced", "--format", "json").document["views"][0]
    ViewControl.objects.update(strategy="full")
    pinned = command("--explain", "--models", "Sourced")

    taken = "a full one 1.2 s, 1 to 3 keys 30 ms, 16 to 63 keys 1.5 s"
    choice = "by keys up to 15 dirty keys, in full beyond"
    assert f"\n  last refreshes: {taken}\n  strategy of refreshes: {choice}\n" in ran.out
    assert known["costs"] == {
        "pinned": None, "full": pytest.approx(1.2), "max_keys": 15,
        "by_keys": [{"keys": [1, 3], "seconds": 0.03}, {"keys": [16, 63], "seconds": 1.5}],
    }  # fmt: skip
    assert "\n  strategy of refreshes: pinned to full\n" in pinned.out


def test_explain_says_that_a_pin_to_keys_changes_nothing_if_every_refresh_is_full() -> None:
    sourced(staged)
    ViewControl.objects.update(strategy="by_keys")

    told = command("--explain", "--models", "Sourced").out

    assert "  every change causes a full refresh: " in told
    assert (
        "  strategy of refreshes: pinned to by_keys, but every refresh is full (see above)\n"
        in told
    )


def test_explain_shows_what_is_staged_and_why() -> None:
    sourced(staged)

    ran = command("--explain", "--models", "Sourced")

    assert ran.out.startswith(f"{LABEL}: staged (a slice depends on all rows)\n")
    assert "staging table, filled at the start of a full refresh:\n" in ran.out
    assert "LIMIT 1000" in ran.out


def test_explain_as_json_has_values() -> None:
    sourced()

    ran = command("--explain", "--models", "Sourced", "--format", "json")

    (entry,) = ran.document["views"]
    assert (entry["view"], entry["strategy"], entry["key"]) == (LABEL, "windowed", ["key"])
    assert entry["reason"] == "the key is sample.Item (id), which an index serves"
    assert entry["indexes"][0] == {
        "model": "sample.Item", "fields": ["id"], "declared": True, "in_database": True,
    }  # fmt: skip
    assert entry["statements"].keys() == {"insert", "update", "delete"}
    assert (entry["staging"], entry["error"]) == ("", "")


def test_a_source_that_cannot_be_explained_is_told_and_the_others_are_explained() -> None:
    def nonsense() -> Any:
        return Item.objects.values("value", nobody=F("pk"))

    sourced(nonsense, name="Nonsense")
    sourced()

    ran = command("--explain", "--models", "Nonsense,Sourced", "--format", "json")

    assert ran.status == 1
    assert "sample.Nonsense" in ran.document["error"]
    bad, good = ran.document["views"]
    assert "nobody" in bad["error"]
    assert good["strategy"] == "windowed"


def test_a_value_in_the_sql_cannot_write_on_a_terminal() -> None:
    explanation = Explanation(
        label="shop.Total", strategy="windowed", reason="so", key=("day",),
        estimated_rows=None, null_keys=0,
        staging="", statements={Phase.DELETE: "DELETE\nWHERE day > '\x1b[2J'"}, indexes=(),
    )  # fmt: skip

    *_others, last = formatting.explanation_in_lines(explanation)

    assert last.endswith("\nDELETE\nWHERE day > '\\x1b[2J';")


@pytest.mark.parametrize(
    ("declared", "in_database", "words"),
    [
        (True, True, "exists"),
        (True, False, "declared but missing: run manage.py migrate"),
        (False, True, "exists but is not declared, so it is not relied on: add it to Meta.indexes"),
        (False, False, "missing: add it to Meta.indexes"),
    ],
)
def test_an_index_that_lacks_comes_with_the_way_out(
    declared: bool, in_database: bool, words: str
) -> None:
    index = ExplainedIndex(
        model="shop.Order", fields=("day", "kind"), declared=declared, in_database=in_database
    )
    explanation = Explanation(
        label="shop.Total", strategy="windowed", reason="so", key=("day",),
        estimated_rows=1234, null_keys=0,
        staging="", statements={}, indexes=(index,),
    )  # fmt: skip

    assert list(formatting.explanation_in_lines(explanation))[2:] == [
        "  rows: about 1,234, by the database's estimate",
        f"  index of shop.Order (day, kind): {words}",
    ]


# Values


def found(**values: Any) -> Verification:
    """A verification with one differing row, whose values are given."""
    difference = Difference(
        kind=Kind.DIFFERING,
        key={"key": 1},
        in_view={"key": 1, **values},
        in_source={"key": 1, **dict.fromkeys(values)},
    )
    return Verification(
        label=LABEL, view_id=1, rows_compared=1, missing=0, differing=1, surplus=0,
        examples=(difference,), repaired=None, sample=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Decimal("1.50"), "1.50"),
        (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00+00:00"),
        (timedelta(days=1, seconds=2), "1 day, 0:00:02"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (memoryview(b"\x00\xff"), "00ff"),
        (float("inf"), "inf"),
        (0.5, 0.5),
        (True, True),
        ({"a": [Decimal(1), None]}, {"a": ["1", None]}),
    ],
)
def test_every_kind_of_value_goes_into_json_and_into_a_line(value: Any, plain: Any) -> None:
    verification = found(value=value)

    (example,) = json.loads(json.dumps(formatting.verification_as_dict(verification)))["examples"]
    _outcome, line = formatting.verification_in_lines(verification)

    assert example["in_view"]["value"] == plain
    assert line.endswith(f"value is {plain!r}, in the source None")


def test_a_value_cannot_write_on_a_terminal_nor_fill_it() -> None:
    _outcome, line = formatting.verification_in_lines(found(text="\x1b[2J\n" + "long " * 100))

    assert line.isprintable()
    assert len(line) < 200


def test_rows_that_look_alike_are_shown_all_the_same() -> None:
    row = {"key": 1, "value": 0.1}
    alike = Difference(kind=Kind.DIFFERING, key={"key": 1}, in_view=row, in_source=row)

    assert formatting._difference_in_line(alike).endswith("value is 0.1, in the source 0.1")
