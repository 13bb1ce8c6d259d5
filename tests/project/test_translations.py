"""The admin speaks the language of the person; what is stored or printed is always English."""

import gettext
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import django
import django_celery_beat
import pytest
from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.contrib.messages import get_messages
from django.core.checks import Tags, run_checks
from django.core.management import call_command
from django.db import models
from django.test import Client
from django.utils import timezone, translation
from django_celery_beat.models import CrontabSchedule, PeriodicTask
from pytest_django import DjangoCaptureOnCommitCallbacks

from matviews.models import Heartbeat, Refresh, RefreshSchedule, ViewControl, ViewShard
from matviews.states import ViewState
from matviews.tasks import heartbeat, schedules
from tests import ROOT
from tests.helpers import services
from tests.helpers.ledger import add_items, fault
from tests.helpers.view_classes import make_view, ready, run
from tests.sample.models import Item, Limited, Walked

PACKAGE = ROOT / "matviews"
GERMAN = PACKAGE / "locale" / "de" / "LC_MESSAGES" / "django.mo"
MAKE = "makemessages -l de --symlinks --no-location --no-obsolete --no-wrap"
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
    shutil.copytree(PACKAGE, sources, ignore=shutil.ignore_patterns("locale"))
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
def german(admin_client: Client) -> Client:
    """A browser that asks for German."""
    admin_client.defaults["HTTP_ACCEPT_LANGUAGE"] = "de"
    return admin_client


def text(client: Client, address: str) -> str:
    answer = client.get(address)
    assert answer.status_code == 200
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer.content.decode()))


def control(label: str = "sample.Limited") -> ViewControl:
    return ViewControl.objects.get(label=label)


def page_of(view: type[Any]) -> str:
    return f"{VIEWS}{control(view._meta.label).pk}/change/"


MAINTENANCE = PeriodicTask.objects.filter(task="matviews.maintain")


def keep_silent(for_seconds: float | None) -> None:
    """The maintenance task last ran so long ago, or never."""
    if for_seconds is None:
        MAINTENANCE.update(total_run_count=9)
    else:
        before = timezone.now() - timedelta(seconds=for_seconds)
        Heartbeat.objects.create(maintenance_ended_at=before)


def schedule(label: str = "sample.Limited", **fields: Any) -> RefreshSchedule:
    return RefreshSchedule.objects.create(view=control(label), **{"every": 5, **fields})


def never() -> CrontabSchedule:
    return CrontabSchedule.objects.create(
        minute="0", hour="0", day_of_month="31", month_of_year="2"
    )


@pytest.mark.django_db
@pytest.mark.usefixtures("own_views")
class TestShown:
    def test_the_list_has_german_headings_and_states(self, german: Client) -> None:
        run(Limited)

        shown = text(german, VIEWS)

        assert "Materialisierte Views" in shown
        for heading in ("Zustand", "Zeilen", "Letzte Aktualisierungen", "Alter", "Nächste"):
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
        view = control()
        paused = german.post(f"{VIEWS}{view.pk}/pause/", follow=True)
        assert "Pausiert: sample.Limited. Ein laufender Batch wird noch beendet." in (
            paused.content.decode()
        )

        with translation.override("de"), pytest.raises(Exception, match="Geben Sie ein Intervall"):
            RefreshSchedule(view=view).clean()

    @pytest.mark.parametrize(
        ("stop", "shown"),
        [
            (MAINTENANCE.delete, "„matviews: maintenance“ fehlt, darum"),
            (lambda: MAINTENANCE.update(enabled=False), "„matviews: maintenance“ ist deaktiviert,"),
            (lambda: keep_silent(3600), "Die Wartungsaufgabe ist seit 1 h nicht gelaufen, darum"),
            (lambda: keep_silent(None), "Die Wartungsaufgabe ist noch nie gelaufen, darum"),
        ],
    )
    def test_what_keeps_the_maintenance_task_from_running_is_german(
        self, german: Client, stop: Callable[[], object], shown: str
    ) -> None:
        stop()

        assert shown in text(german, VIEWS)
        assert shown in text(german, page_of(Limited))

    def test_how_to_find_out_why_it_does_not_run_is_german(self, german: Client) -> None:
        keep_silent(3600)
        Heartbeat.objects.update(beat_began_at=timezone.now(), beat_sent_at=timezone.now())

        assert "ein Worker läuft und die Queue „" in text(german, VIEWS)
        with mock.patch.object(heartbeat, "queue_of", return_value=""):
            assert "die Queue dieser Aufgabe abhört." in text(german, VIEWS)

    @pytest.mark.parametrize(
        ("fields", "shown"),
        [
            ({"enabled": False}, "der Zeitplan ist deaktiviert"),
            ({"every": 3651, "period": "days"}, "Ein Intervall ist höchstens 3.650 Tage lang."),
            ({"phases": ["upsert"]}, "sample.Limited hat keine Phase upsert, sondern insert,"),
            ({"view__paused": True}, "die View ist pausiert"),
            ({"view__enabled": False}, "die View ist deaktiviert"),
            ({"view__label": "shop.Gone"}, "shop.Gone ist im Code nicht mehr definiert"),
        ],
    )
    def test_why_a_schedule_does_not_run_is_german(
        self, german: Client, fields: dict[str, Any], shown: str
    ) -> None:
        of_view = {name: value for name, value in fields.items() if name.startswith("view__")}
        made = schedule(**{name: fields[name] for name in fields.keys() - of_view.keys()})
        schedules.reconcile()
        changed = {name.removeprefix("view__"): value for name, value in of_view.items()}
        ViewControl.objects.filter(pk=made.view_id).update(**changed)

        assert f"deaktiviert: {shown}" in text(german, VIEWS)

    def test_so_is_why_its_crontab_its_class_or_its_periodic_task_stops_it(
        self, german: Client
    ) -> None:
        schedule(every=None, crontab=never())
        ready(make_view(name="Faulty"))
        schedule("sample.Faulty")
        unwritten = schedule("sample.Walked")
        schedules.reconcile()
        PeriodicTask.objects.filter(name__contains=f"schedule {unwritten.pk} of").delete()

        shown = text(german, VIEWS)

        assert "deaktiviert: seine Crontab passt auf keinen Zeitpunkt" in shown
        assert "deaktiviert: die View hat Fehler, siehe `manage.py check`" in shown
        assert "deaktiviert: seine periodische Aufgabe fehlt oder ist deaktiviert" in shown

    def test_why_a_refresh_is_refused_is_german(self, german: Client) -> None:
        ready(make_view(name="Faulty"))
        ViewControl.objects.create(label="shop.Gone")
        ViewControl.objects.filter(label="sample.Walked").update(enabled=False)
        ViewShard.objects.filter(view__label="sample.Whole").delete()

        def refused(label: str, *phases: str) -> str:
            address = f"{VIEWS}{control(label).pk}/refresh/"
            answer = german.post(address, {"phases": phases})
            return [str(message) for message in get_messages(answer.wsgi_request)][-1]

        assert {
            label: refused(label, *phases).removeprefix(f"Keine Aktualisierung von {label}: ")
            for label, phases in {
                "sample.Walked": ["insert"],
                "sample.Whole": ["insert"],
                "sample.Limited": [],
                "sample.Ledger": ["delete"],
                "shop.Gone": ["insert"],
            }.items()
        } == {
            "sample.Walked": (
                "Sie ist deaktiviert: Aktivieren Sie sie zuerst in ihren Einstellungen."
            ),
            "sample.Whole": (
                "Sie hat noch keine Verwaltungsdaten: Führen Sie manage.py migrate aus."
            ),
            "sample.Limited": "Wählen Sie mindestens eine Phase.",
            "sample.Ledger": "Sie hat nur diese Phasen: insert.",
            "shop.Gone": "Im Code ist sie nicht mehr definiert.",
        }
        assert "Ihre Definition hat Fehler: siehe manage.py check." in refused("sample.Faulty")

    @pytest.mark.parametrize(
        ("field", "value", "shown"),
        [
            ("batch_size", "0", "eine ganze Zahl von 1 bis 2.147.483.647 an (Zeilen)"),
            ("batch_target", "0", "eine Zahl von 0,001 bis 2.147.483 an (Sekunden)"),
            ("freshness_target", "-1", "eine positive Dauer von höchstens 3.650 Tagen"),
        ],
    )
    def test_the_range_of_a_setting_is_told_in_german(
        self, german: Client, field: str, value: str, shown: str
    ) -> None:
        form = {"schedules-TOTAL_FORMS": "0", "schedules-INITIAL_FORMS": "0", field: value}

        answer = german.post(page_of(Limited), {"shard_count": "1", **form})

        (error,) = answer.context["adminform"].form.errors[field]
        assert shown in error
        assert error.endswith("oder lassen Sie das Feld leer.")

    @pytest.mark.parametrize(
        ("language", "crumbs"),
        [
            ("en", "Home &rsaquo; Matviews &rsaquo; Materialized views &rsaquo; sample.Limited"),
            (
                "de",
                "Start &rsaquo; Matviews &rsaquo; Materialisierte Views &rsaquo; sample.Limited",
            ),
        ],
    )
    def test_the_way_to_a_view_names_nothing_twice(
        self, german: Client, language: str, crumbs: str
    ) -> None:
        german.defaults["HTTP_ACCEPT_LANGUAGE"] = language

        assert crumbs in text(german, page_of(Limited))

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

    @pytest.mark.parametrize("arguments", [[], ["--format=json"]])
    def test_what_the_command_prints_of_schedules_is_english(self, arguments: list[str]) -> None:
        schedule(enabled=False)
        schedule(every=3651, period="days")
        keep_silent(3600)

        def printed(language: str) -> str:
            out = StringIO()
            with translation.override(language):
                call_command("update_materialized_views", "--schedules", *arguments, stdout=out)
            return out.getvalue()

        assert printed("de") == printed("en")
        for each in ("the schedule is disabled", "at most 3,650 days", "has not run for 1 h"):
            assert each in printed("de")

    def test_what_the_system_checks_print_is_english(self) -> None:
        keep_silent(3600)

        with translation.override("de"):
            found = {
                each.id: each.msg
                for each in run_checks(tags=[Tags.database], databases=["default"])
            }

        assert found["matviews.W003"].startswith("The maintenance task has not run for 1 h, so")


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
        RefreshSchedule.objects.create(view=limited, every=1, enabled=False)

    english = texts("en")

    assert any("Requested refresh N: insert." in each for each in english)
    assert any("has no phase upsert" in each for each in english)
    assert any("Disabled: the schedule is disabled." in each for each in english)
    assert any("Batch size" in each for each in english)
    assert any("do_insert was told to fail" in each for each in english)
    forget()
    assert texts("de") == english
