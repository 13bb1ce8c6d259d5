"""docs/reference.md has each field of the JSON and of the models, with its type, and no other."""

import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from django.db import DatabaseError
from django.db import models as fields
from django.db.models import F
from django.utils import timezone

import matviews.models
from matviews import api, changes, engine, tasks
from matviews.json_fields import Cost
from matviews.management.commands.update_materialized_views import ACTIONS
from matviews.models import Heartbeat, RefreshSchedule, ViewControl, ViewShard
from matviews.models.tracking import TransactionField
from matviews.phases import Phase
from tests.helpers import reference
from tests.helpers.poison import Poisoned
from tests.helpers.reference import Field
from tests.helpers.source_views import LABEL, sourced_up_to_date
from tests.management.test_command import command
from tests.sample.models import Item, Limited

MODELS: dict[str, Any] = {
    name: each
    for name, each in vars(matviews.models).items()
    if isinstance(each, type) and issubclass(each, fields.Model) and not each._meta.abstract
}
OF_CLASS = {
    TransactionField: "transaction",
    fields.FloatField: "seconds",
    fields.BooleanField: "true, false",
    fields.DateTimeField: "time",
    fields.TimeField: "time of day",
    fields.DurationField: "duration",
    fields.JSONField: "JSON",
    fields.IntegerField: "integer",
    fields.CharField: "text",
    fields.TextField: "text",
}


class TestTables:
    def test_each_model_has_a_heading(self) -> None:
        assert sorted(reference.headings(reference.TABLES)) == sorted(MODELS)

    @pytest.mark.parametrize("model", MODELS.values())
    def test_its_fields_have_their_types(self, model: type[Any]) -> None:
        found = {name: field.type for name, field in reference.model_fields(model.__name__).items()}

        own = [field for field in model._meta.fields if field.name != "id"]
        assert found == {field.name: type_of(field) for field in own}


def type_of(field: Any) -> str:
    """The type of a column, as the page has it."""
    if isinstance(field, TransactionField) and field.kind != "xid8":
        return "transactions"
    if field.is_relation:
        name = field.related_model.__name__
        shown = f"[`{name}`](#{name.lower()})" if name in MODELS else f"`{name}`"
    else:
        shown = next(name for kind, name in OF_CLASS.items() if isinstance(field, kind))
    if (field.name, field.null) == ("is_open", True):  # an open alarm or none
        shown = "true"
    return f"{shown} or null" if field.null else shown


# Output as JSON

Documents = list[dict[str, Any]]


def printed(*arguments: str) -> dict[str, Any]:
    """The document that the command prints."""
    document: dict[str, Any] = command(*arguments, "--format", "json").document
    return document


def of_view(*arguments: str) -> dict[str, Any]:
    return printed(*arguments, "--models", LABEL)


def refused(*arguments: str) -> dict[str, Any]:
    """The document if the view is disabled."""
    ViewControl.objects.filter(label=LABEL).update(enabled=False)
    document = of_view(*arguments)
    ViewControl.objects.filter(label=LABEL).update(enabled=True)
    return document


def refreshes() -> Documents:
    nothing, refusal = of_view(), refused()
    Item.objects.update(value=F("value") + 1)
    by_keys = of_view()
    ViewControl.objects.update(strategy="full")
    Item.objects.update(value=F("value") + 1)
    return [nothing, refusal, by_keys, of_view()]


def states(*arguments: str) -> Documents:
    """Of a view that is well, and of one that is refreshed, wrong, and verified twice."""
    well = of_view(*arguments)
    assert Limited.objects.update(value=-7)
    message = engine.request_verification(LABEL)
    while message:
        message = engine.verify_slice(message)
    engine.request_verification(LABEL)
    ViewControl.objects.update(paused_at=timezone.now(), paused=True)
    Item.objects.update(value=F("value") + 1)
    engine.request(LABEL)
    ViewShard.objects.update(claimed_token=F("token"), worker="vm-1", claimed_at=timezone.now())
    return [well, of_view(*arguments)]


def pending() -> Documents:
    fresh = of_view("--check", "--pending")
    with mock.patch.object(engine, "is_fresh", side_effect=RuntimeError("no")):
        return [fresh, of_view("--check", "--pending")]


def verifications() -> Documents:
    Limited.objects.filter(pk=Limited.objects.earliest("pk").pk).delete()
    Limited.objects.create(key=1_000_000, value=9)
    found, sample = of_view("--verify", "--repair"), of_view("--verify", "--sample", "2")
    with mock.patch.object(api, "verify", side_effect=DatabaseError("no")):
        return [found, sample, of_view("--verify")]


def explanations() -> Documents:
    unknown = of_view("--explain")
    ViewShard.objects.update(costs=dict.fromkeys(Phase, Cost(0.4, {0: 0.01})))
    known = of_view("--explain")
    with mock.patch.object(engine, "recent_refreshes", side_effect=DatabaseError("no")):
        return [unknown, known, of_view("--explain")]


def wave() -> Documents:
    Item.objects.update(value=F("value") + 1)
    number = str(engine.request(LABEL).pk)
    waiting, _refreshed = printed("--wave", number), of_view()
    return [waiting, printed("--wave", number)]


def schedules() -> Documents:
    never = of_view("--schedules")
    view = ViewControl.objects.get(label=LABEL)
    RefreshSchedule.objects.create(view=view, every=1)
    tasks.schedules.reconcile()
    Heartbeat.objects.create(maintenance_ended_at=timezone.now())
    RefreshSchedule.objects.create(view=view, every=2, enabled=False)
    return [never, of_view("--schedules")]


def triggers() -> Documents:
    actions = ("remove", "sql", "install")
    return [printed("--triggers", action) for action in actions]


def requests() -> Documents:
    nothing, refusal = of_view("--enqueue"), refused("--enqueue")
    Item.objects.update(value=F("value") + 1)
    with mock.patch.object(tasks, "send", return_value=True):
        return [nothing, refusal, of_view("--enqueue")]


SCENARIOS: dict[str, Callable[[], Documents]] = {
    "A refresh": refreshes,
    "--list": lambda: states("--list"),
    "--check": lambda: states("--check"),
    "--check --pending": pending,
    "--verify": verifications,
    "--explain": explanations,
    "--graph": lambda: [of_view("--graph")],
    "--wave": wave,
    "--schedules": schedules,
    "--triggers": triggers,
    "--health": lambda: [printed("--health")],
    "--enqueue": requests,
}


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
class TestJson:
    def test_each_output_has_a_heading(self) -> None:
        outputs = {f"--{action}" for action in ACTIONS.keys() - {"refresh", "follow"}}

        found = reference.headings(reference.JSON)
        assert sorted(found) == sorted({*outputs, "A refresh", "--check --pending"})
        assert sorted(found) == sorted({*SCENARIOS, "--parked"})

    @pytest.mark.usefixtures("own_views")
    @pytest.mark.parametrize("output", SCENARIOS)
    def test_it_has_the_fields_of_the_page(self, output: str) -> None:
        sourced_up_to_date()
        try:
            documents = SCENARIOS[output]()
        finally:
            changes.remove(engine.alias())

        assert_described(output, documents)

    @pytest.mark.usefixtures("alone")
    def test_parked_keys_have_the_fields_of_the_page(self, settings: Any) -> None:
        poisoned = Poisoned()
        with poisoned.ready():
            poisoned.fill(3)
            poisoned.poison("null", 2)
            poisoned.refresh()
            shown = printed("--parked")
            settings.MATVIEWS = {"VALUES_IN_ERRORS": "none"}
            documents = [shown, printed("--parked")]

        assert_described("--parked", documents)

    @pytest.mark.usefixtures("own_views")
    def test_waiting_adds_those_of_a_refresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sourced_up_to_date()
        Item.objects.update(value=F("value") + 1)
        monkeypatch.setattr(tasks, "send", work)
        try:
            [waited] = of_view("--enqueue", "--wait")["views"]
        finally:
            changes.remove(engine.alias())

        of_both = reference.json_fields("--enqueue") | reference.json_fields("A refresh")
        found = {path for path, _value in values(waited, of_both)}
        assert found == of_both.keys()

    def test_a_process_that_follows_reports_nothing(self) -> None:
        with mock.patch("matviews.management.follow.Follower"):
            assert printed("--follow") == {"views": [], "error": ""}


def work(messages: Any) -> bool:
    """Do what the messages ask for, as workers do."""
    tasks.inline.run_until_idle([message.shard_id for message in messages])
    return True


def assert_described(output: str, documents: Documents) -> None:
    """Together, documents have all the fields that the page tells of, and no others."""
    of_document, of_object = reference.document_fields(output), reference.json_fields(output)
    [subject] = [name for name, field in of_document.items() if field.type == "list of objects"]
    outside = [
        (path, value)
        for document in documents
        for path, value in values({**document, subject: []}, of_document)
    ]
    inside = [
        found
        for document in documents
        for each in document[subject]
        for found in values(each, of_object)
    ]
    for found, described in ((outside, of_document), (inside, of_object)):
        assert {path for path, _value in found} == described.keys()
        wrong = [
            (path, value, described[path].type)
            for path, value in found
            if not is_of_type(value, described[path].type)
        ]
        assert wrong == []


def values(
    value: dict[str, Any], described: dict[str, Field], path: str = ""
) -> Iterator[tuple[str, Any]]:
    """The values of an object and of those inside, with their paths."""
    for name, each in value.items():
        here = f"{path}.{name}".removeprefix(".")
        yield here, each
        yield from inner_values(each, described, here)


def inner_values(value: Any, described: dict[str, Field], path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and not is_map(described.get(path)):
        yield from values(value, described, path)
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            if isinstance(each, dict):
                yield from values(each, described, path)


def is_map(field: Field | None) -> bool:
    """Whether the names in an object are those of tables, phases or fields."""
    return field is not None and field.type.startswith("object by ")


PYTHON: dict[str, Any] = {
    "text": str, "time": str, "integer": int, "true, false": bool, "seconds": int | float,
}  # fmt: skip


def is_of_type(value: Any, kind: str) -> bool:
    """Whether a value is what the page says."""
    if value is None:
        return kind.endswith("or null")
    kind = re.sub(",? or null$", "", kind)
    if kind.startswith("list"):
        inner = {"list of texts": str, "list of integers": int, "list of objects": dict}.get(kind)
        return isinstance(value, list) and all(isinstance(each, inner or object) for each in value)
    return isinstance(value, dict if kind.startswith("object") else PYTHON[kind])
