"""The admin speaks the language of the person; what is stored or printed is always English."""

import gettext
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import django
import django_celery_beat
import pytest
from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.core.management import call_command
from django.db import models
from django.test import Client
from django.utils import translation
from django_celery_beat.models import PeriodicTask
from pytest_django import DjangoCaptureOnCommitCallbacks

from matviews.models import Refresh, RefreshSchedule, ViewControl
from matviews.states import ViewState
from tests import ROOT
from tests.helpers import services
from tests.helpers.ledger import add_items, fault
from tests.helpers.view_classes import run
from tests.sample.models import Item, Limited, Walked

PACKAGE = ROOT / "matviews"
GERMAN = PACKAGE / "locale" / "de" / "LC_MESSAGES" / "django.mo"
MAKE = "makemessages -l de --no-location --no-obsolete --no-wrap"
VIEWS = "/admin/matviews/viewcontrol/"

Message = str | tuple[str, int]


# The catalogue


def catalog(compiled: Path) -> Mapping[Message, str]:
    """The translations in a catalogue: by text, with its context, or by text and plural form."""
    with compiled.open("rb") as file:
        translations = gettext.GNUTranslations(file)
        found: dict[Message, str] = translations._catalog  # type: ignore[attr-defined]
    return {message: text for message, text in found.items() if message != ""}


def compiled(source: Path, target: Path) -> Mapping[Message, str]:
    """As `catalog`, of a file that is not compiled yet."""
    subprocess.run(["msgfmt", "--check", "-o", target, source], check=True)
    return catalog(target)


@pytest.fixture
def _tools() -> None:
    if all(map(shutil.which, ("xgettext", "msgen", "msgfmt"))):
        return
    problem = "GNU gettext is not installed: its tools compare the catalogue with the sources."
    if services.in_ci():
        pytest.fail(problem)
    pytest.skip(problem)


@pytest.mark.usefixtures("_tools")
def test_every_text_in_the_sources_is_translated_and_no_other(tmp_path: Path) -> None:
    # given the texts in the sources, without any translation
    sources = tmp_path / "matviews"
    shutil.copytree(PACKAGE, sources, symlinks=True, ignore=shutil.ignore_patterns("locale"))
    (sources / "locale").mkdir()
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    subprocess.run(
        [sys.executable, "-m", "django", *MAKE.split()], cwd=sources, env=environment, check=True
    )
    # as a catalogue where each is translated by itself
    extracted = sources / "locale" / "de" / "LC_MESSAGES" / "django.po"
    subprocess.run(["msgen", "-o", tmp_path / "english.po", extracted], check=True)
    texts = compiled(tmp_path / "english.po", tmp_path / "english.mo")

    # then the German one has the same; fuzzy and empty translations are not compiled
    german = catalog(GERMAN)
    assert texts
    assert german.keys() == texts.keys(), f"in matviews/, run django-admin {MAKE}, and translate"
    assert all(german.values())


@pytest.mark.usefixtures("_tools")
def test_the_compiled_catalogue_is_that_of_its_source(tmp_path: Path) -> None:
    assert catalog(GERMAN) == compiled(GERMAN.with_suffix(".po"), tmp_path / "german.mo")


def test_translations_keep_placeholders_and_markup() -> None:
    for message, translated in catalog(GERMAN).items():
        if isinstance(message, str):  # msgfmt checks the plural forms
            assert placeholders(translated) == placeholders(message)


def placeholders(text: str) -> set[str]:
    return set(re.findall(r"%\(\w+\)[sd]|\{\}|<[^>]*>", text))


def test_no_text_is_translated_otherwise_by_django_or_celery_beat() -> None:
    """All apps of a project share one catalogue: the first of them decides."""
    ours = catalog(GERMAN)
    for package in (django, django_celery_beat):
        for other in Path(package.__path__[0]).rglob("locale/de/LC_MESSAGES/django.mo"):
            theirs = catalog(other)
            shared = ours.keys() & theirs.keys()
            assert {each: ours[each] for each in shared} == {each: theirs[each] for each in shared}


# What is shown


@pytest.fixture
def german(admin_client: Client) -> Iterator[Client]:
    """A browser that asks for German."""
    admin_client.defaults["HTTP_ACCEPT_LANGUAGE"] = "de"
    with translation.override("en"):  # the middleware leaves its language behind
        yield admin_client


def text(client: Client, address: str) -> str:
    answer = client.get(address)
    assert answer.status_code == 200
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer.content.decode()))


def page_of(view: type[Any]) -> str:
    return f"{VIEWS}{ViewControl.objects.get(label=view._meta.label).pk}/change/"


@pytest.mark.django_db
@pytest.mark.usefixtures("own_views")
class TestShown:
    def test_the_list_has_german_headings_and_states(self, german: Client) -> None:
        run(Limited)

        shown = text(german, VIEWS)

        assert "Materialisierte Views" in shown
        for heading in ("Zustand", "Zeilen", "Letzter Erfolg", "Alter", "Zeitplan"):
            assert f" {heading} " in shown
        assert "nie aufgebaut (" in shown
        assert "Jetzt aktualisieren" in shown

    def test_the_page_of_a_view_is_german(self, german: Client) -> None:
        add_items(1234)
        run(Limited)

        shown = text(german, page_of(Limited))

        assert "Geschriebene Zeilen 1.234 Zeilen in" in shown
        assert "Median 1.234 Zeilen" in shown
        assert "Jetzt aktualisieren" in shown
        assert "Aktualitätsziel: " in shown
        assert "Leer: Standardwert aus dem Code." in shown

    def test_the_page_of_a_refresh_is_german(self, german: Client) -> None:
        done = run(Limited)

        shown = text(german, f"/admin/matviews/refresh/{done.pk}/change/")

        assert f"Aktualisierung {done.pk}" in shown
        assert "Angefordert von" in shown
        assert "erfolgreich" in shown

    def test_a_message_and_a_fault_are_german(self, german: Client) -> None:
        control = ViewControl.objects.get(label="sample.Limited")
        paused = german.post(f"{VIEWS}{control.pk}/pause/", follow=True)
        assert "Pausiert: sample.Limited. Ein laufender Batch wird noch beendet." in (
            paused.content.decode()
        )

        with translation.override("de"), pytest.raises(Exception, match="Geben Sie ein Intervall"):
            RefreshSchedule(view=control).clean()

    def test_every_state_has_a_german_name_and_meaning(self) -> None:
        for state in ViewState:
            english, meaning = str(state.label), state.meaning
            with translation.override("de"):
                assert str(state.label) != english
                assert state.meaning != meaning

    def test_json_of_the_command_is_english(self) -> None:
        run(Limited)

        def listed(language: str) -> Any:
            out = StringIO()
            with translation.override(language):
                call_command(
                    "update_materialized_views",
                    "--list",
                    "--models=Limited,Walked",
                    "--format=json",
                    stdout=out,
                )
            return json.loads(out.getvalue())

        def states(document: Any) -> list[str]:
            return [view["state"] for view in document["views"]]

        assert states(listed("de")) == states(listed("en")) == ["ok, no target", "never built"]


# What is stored


def stored() -> list[str]:
    """Every text in our tables, the admin's log and the periodic tasks, without numbers."""
    tables = [*apps.get_app_config("matviews").get_models(), LogEntry, PeriodicTask]
    found = []
    for table in tables:
        names = [
            field.attname
            for field in table._meta.concrete_fields
            if isinstance(field, (models.CharField, models.TextField, models.JSONField))
        ]
        rows = table._base_manager.values_list(*names) if names else []
        found += [f"{table.__name__}: {json.dumps(row, default=str)}" for row in rows]
    return sorted(re.sub(r"[0-9a-f]{16,}|\d+(\.\d+)?(e-\d+)?", "N", each) for each in found)


@pytest.mark.django_db
@pytest.mark.usefixtures("own_views")
def test_what_is_stored_does_not_depend_on_the_language(
    german: Client, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    def texts(language: str) -> list[str]:
        german.defaults["HTTP_ACCEPT_LANGUAGE"] = language
        with translation.override(language), django_capture_on_commit_callbacks(execute=True):
            operate(german)
        return stored()

    def forget() -> None:
        for table in (Refresh, RefreshSchedule, LogEntry, PeriodicTask, Item, Limited, Walked):
            table._base_manager.all().delete()
        ViewControl.objects.update(paused=False, batch_size=None)

    def operate(client: Client) -> None:
        add_items(3)
        with fault(Walked, "do_insert", "raise"):
            run(Walked)
        limited = ViewControl.objects.get(label="sample.Limited")
        address = f"{VIEWS}{limited.pk}/"
        for action in ("pause", "resume", "refresh"):
            client.post(f"{address}{action}/", {"phases": ["insert"]})
        (refresh,) = limited.refreshes.all()
        client.post(f"/admin/matviews/refresh/{refresh.pk}/stop/")
        client.post(
            f"{address}change/",
            {
                "enabled": "on",
                "shard_count": "1",
                "batch_size": "7",
                "initial-batch_size": "",
                "schedules-TOTAL_FORMS": "1",
                "schedules-INITIAL_FORMS": "0",
                "schedules-0-enabled": "on",
                "schedules-0-phases": ["insert"],
                "schedules-0-every": "5",
                "schedules-0-period": "minutes",
                "schedules-0-view": limited.pk,
            },
        )
        # and a schedule that can never run, so its periodic task says why
        RefreshSchedule.objects.create(view=limited, every=1, phases=["upsert"])

    english = texts("en")

    assert any("Requested refresh N: insert." in each for each in english)
    assert any("has no phase upsert" in each for each in english)
    assert any("Batch size" in each for each in english)
    assert any("do_insert was told to fail" in each for each in english)
    forget()
    assert texts("de") == english
