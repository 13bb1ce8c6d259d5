import re
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from matviews import checks, definition, early_checks, hooks, options, signals
from matviews.conf import Settings, get_settings
from matviews.definition import ViewOptions
from matviews.exceptions import InvalidSetting
from matviews.management.commands import update_materialized_views
from matviews.phases import Phase
from matviews.states import RefreshState, RunState, ViewState
from matviews.tasks import checks as celery_checks
from tests import ROOT
from tests.helpers.reference import documented, rows, section

DEFAULTS = {
    "BATCH_TARGET": 1.0,
    "BATCH_SIZE_INITIAL": 1_000,
    "BATCH_SIZE_MIN": 10,
    "BATCH_SIZE_MAX": 20_000,
    "STATEMENT_TIMEOUT": 60.0,
    "LEASE": 60.0,
    "MAX_RESEND_INTERVAL": 3600.0,
    "MAX_RETRY_DELAY": 3600.0,
    "SUSPEND_AFTER_FAILURES": 20,
    "SUSPEND_AFTER": timedelta(hours=6),
    "MAX_PARKED_KEYS": 1_000,
    "PULSE_SECONDS": 1,
    "KEEP_SUCCEEDED": timedelta(days=7),
    "KEEP_FAILED": timedelta(days=30),
    "CELERY_QUEUE": None,
    "MAX_LONG_BATCHES": None,
    "MAX_REFRESHES": None,
    "GOVERNOR_REPLICATION_LAG": None,
    "GOVERNOR_ACTIVE_SESSIONS": None,
    "GOVERNOR_TRANSACTION_AGE": None,
    "GOVERNOR_VACUUM": False,
    "HINT_ON_COMMIT": False,
    "GOVERNOR_MAX_WAIT": timedelta(minutes=30),
    "STAGING_SCHEMA": None,
    "VALUES_IN_ERRORS": "keys",
    "HEALTH_TOKEN": None,
    "ALARM_AFTER": timedelta(minutes=5),
    "ALARM_REPEAT": timedelta(hours=4),
    "ALARM_MAIL": False,
    "ALARM_HOOK": None,
    "CHECK_IN_URL": None,
}
OTHERS = {
    "BATCH_TARGET": 5,
    "BATCH_SIZE_INITIAL": 20,
    "BATCH_SIZE_MIN": 1_000,
    "BATCH_SIZE_MAX": 1_000,
    "STATEMENT_TIMEOUT": 0.5,
    "LEASE": 2.5,
    "MAX_RESEND_INTERVAL": 60,
    "MAX_RETRY_DELAY": 60,
    "SUSPEND_AFTER_FAILURES": 1,
    "SUSPEND_AFTER": timedelta(minutes=1),
    "MAX_PARKED_KEYS": 0,
    "PULSE_SECONDS": 0,
    "KEEP_SUCCEEDED": timedelta(microseconds=1),
    "KEEP_FAILED": timedelta(days=36_500),
    "CELERY_QUEUE": "slow",
    "MAX_LONG_BATCHES": 4,
    "MAX_REFRESHES": {"reports": 2, "": 8},
    "GOVERNOR_REPLICATION_LAG": 5,
    "GOVERNOR_ACTIVE_SESSIONS": 50,
    "GOVERNOR_TRANSACTION_AGE": 600.0,
    "GOVERNOR_VACUUM": True,
    "HINT_ON_COMMIT": True,
    "GOVERNOR_MAX_WAIT": timedelta(hours=1),
    "STAGING_SCHEMA": "staging",
    "VALUES_IN_ERRORS": "none",
    "HEALTH_TOKEN": "sesame",
    "ALARM_AFTER": timedelta(seconds=1),
    "ALARM_REPEAT": timedelta(days=1),
    "ALARM_MAIL": True,
    "ALARM_HOOK": "proj.alarms.tell",
    "CHECK_IN_URL": "https://hc.example.org:8443/ping/3f?status=ok",
}
WRONG: dict[str, list[Any]] = {
    "BATCH_TARGET": [0, -1, None, "1", True, float("nan"), float("inf")],
    "BATCH_SIZE_INITIAL": [0, -1, None, 1.5, "10", True, 2**31, 9, 20_001],
    "BATCH_SIZE_MIN": [0, -1, None, 1.5, "10", True, 1_001],
    "BATCH_SIZE_MAX": [0, -1, None, 1.5, "10", True, 2**31, 999],
    "STATEMENT_TIMEOUT": [0, -1, None, "60", True, 0.0001, float("inf"), 1e10],
    "LEASE": [0, -1, None, "60", True, float("inf")],
    "MAX_RESEND_INTERVAL": [0, -1, None, "60", True, float("inf")],
    "MAX_RETRY_DELAY": [0, -1, None, "60", True, float("inf")],
    "SUSPEND_AFTER_FAILURES": [0, -1, None, 1.5, "10", True, 2**31],
    "SUSPEND_AFTER": [6, None, "6", True, timedelta(), timedelta(-1), timedelta.max],
    "MAX_PARKED_KEYS": [-1, None, 1.5, "10", True, 100_001],
    "PULSE_SECONDS": [-1, None, 0.5, "1", True, 3601],
    "KEEP_SUCCEEDED": [7, None, "7", True, timedelta(), timedelta(-1), timedelta.max],
    "KEEP_FAILED": [30, None, "30", True, timedelta(), timedelta(-1), timedelta.max],
    "CELERY_QUEUE": ["", 5, [], True],
    "MAX_LONG_BATCHES": [0, -1, 1.5, True, "4"],
    "MAX_REFRESHES": [
        0,
        -1,
        1.5,
        True,
        "4",
        [4],
        {"reports": 0},
        {"reports": None},
        {5: 5},
        {" ": 1},
    ],
    "GOVERNOR_REPLICATION_LAG": [0, -1, True, "5"],
    "GOVERNOR_ACTIVE_SESSIONS": [0, -1, 1.5, True, "5"],
    "GOVERNOR_TRANSACTION_AGE": [0, -1, True, "5"],
    "GOVERNOR_VACUUM": [None, 1, "yes"],
    "HINT_ON_COMMIT": [None, 1, "yes"],
    "GOVERNOR_MAX_WAIT": [0, None, timedelta(), timedelta(-1)],
    "STAGING_SCHEMA": ["", 5, "a b", 'a"b', "a`b", "a.b", "1a", "s" * 64, "a\n", []],
    "HEALTH_TOKEN": ["", 5, [], True, b"sesame", "a b", " ", "sésame", "sesame\n", "\0"],
    "ALARM_AFTER": [5, None, "5", True, timedelta(), timedelta(-1), timedelta.max],
    "ALARM_REPEAT": [5, None, "5", True, timedelta(), timedelta(-1), timedelta.max],
    "ALARM_MAIL": [None, 1, "yes", []],
    "ALARM_HOOK": ["", "tell", "proj.", ".tell", "proj.al arms", 5, print, True],
    "CHECK_IN_URL": [
        "",
        "hc.example.org/ping",
        "ftp://hc.example.org/",
        "file:///etc/passwd",
        "https://",
        "https:///ping",
        "https://hc example.org/",
        "https://hc.example.org:port/",
        "http://[::1/",
        "https://hc.example.org/\r\nHost: x",
        "javascript:alert(1)",
        5,
        b"https://x/",
        True,
    ],
    "VALUES_IN_ERRORS": ["", None, "some", "ALL", 0, [], True],
}


class TestSettings:
    @override_settings(MATVIEWS={})
    def test_defaults(self) -> None:
        found = {field.name: getattr(get_settings(), field.name) for field in fields(Settings)}

        assert found == DEFAULTS

    @pytest.mark.parametrize(("name", "value"), OTHERS.items())
    def test_each_can_be_set_and_leaves_the_others_alone(self, name: str, value: Any) -> None:
        with override_settings(MATVIEWS={name: value}):
            found = {field.name: getattr(get_settings(), field.name) for field in fields(Settings)}

        assert found == {**DEFAULTS, name: value}
        assert getattr(get_settings(), name) != value

    def test_every_one_is_tried(self) -> None:
        assert DEFAULTS.keys() == OTHERS.keys() == WRONG.keys()

    @pytest.mark.parametrize(
        ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
    )
    def test_a_value_that_cannot_work_is_refused(self, name: str, value: Any) -> None:
        with override_settings(MATVIEWS={name: value}), pytest.raises(InvalidSetting) as error:
            get_settings()

        assert "MATVIEWS" in str(error.value)
        assert name in str(error.value)

    def test_the_value_is_shown_where_it_alone_is_wrong(self) -> None:
        with override_settings(MATVIEWS={"LEASE": "long"}), pytest.raises(InvalidSetting) as error:
            get_settings()

        assert str(error.value) == (
            "MATVIEWS['LEASE'] must be a number of seconds from 0.001 to 2,147,483, not 'long'."
        )

    @pytest.mark.parametrize("name", ["BATCH_TARGETS", "batch_target", 5, None])
    def test_an_unknown_one_is_refused_and_the_known_ones_are_named(self, name: Any) -> None:
        with override_settings(MATVIEWS={name: 1}), pytest.raises(InvalidSetting) as error:
            get_settings()

        assert str(error.value).startswith(f"MATVIEWS has no setting {name}; the settings are ")
        assert all(known in str(error.value) for known in DEFAULTS)

    @pytest.mark.parametrize("value", [None, [], "LEASE", 5])
    def test_anything_but_a_dict_is_refused(self, value: Any) -> None:
        with (
            override_settings(MATVIEWS=value),
            pytest.raises(InvalidSetting, match="MATVIEWS must be a dict, not"),
        ):
            get_settings()

    def test_nobody_else_reads_djangos_settings(self) -> None:
        folders = [ROOT / "matviews", ROOT / "tasks"]
        readers = {
            path.name
            for folder in folders
            for path in folder.rglob("*.py")
            if re.search(r"django\.conf\b", path.read_text())
        }

        # tasks/checks.py names it in a hint; LANGUAGE_CODE is Django's own.
        assert readers == {"conf.py", "checks.py", "project_locale.py"}


class TestReference:
    """docs/reference.md tells of everything that the code has, and of nothing else.

    tests/project/test_reference.py has its tables and the output as JSON.
    """

    def test_settings_and_their_defaults(self) -> None:
        assert documented("Settings") == DEFAULTS.keys()
        for name, default in DEFAULTS.items():
            shown = repr(default).removeprefix("datetime.")
            assert rows("Settings")[name][0] == f"`{shown}`"

    def test_options_and_their_defaults(self) -> None:
        options = {field.name: field.default for field in fields(ViewOptions)}

        assert documented("Options of a view") == options.keys()
        for name, default in options.items():
            shown = "all three" if name == "phases" else f"`{default!r}`"
            assert rows("Options of a view")[name][0] == shown

    def test_hooks(self) -> None:
        text = section("Hooks")

        assert all(f"`{name}`" in text for p in Phase for name in (p.needs_hook, p.do_hook))
        declared = hooks.DO_MAY_DECLARE | hooks.NEEDS_MAY_DECLARE
        assert documented("Hooks") >= declared

    def test_checks(self) -> None:
        modules = [
            Path(module.__file__ or "")
            for module in (checks, early_checks, celery_checks, definition, hooks, options)
        ]
        modules += (ROOT / "matviews" / "queryset").rglob("*.py")
        sources = "".join(path.read_text() for path in modules)

        assert documented("Checks") == {
            f"matviews.{n}" for n in re.findall(r"\b[EIW]\d{3}\b", sources)
        }

    def test_signals_and_their_arguments(self) -> None:
        assert documented("Signals") == set(signals.__all__)
        for name, (sender, *arguments) in {
            "refresh_requested": ("class", "refresh"),
            "batch_finished": ("class", "report"),
            "refresh_finished": ("class", "refresh"),
            "view_suspended": ("class", "refresh"),
            "view_alarm": ("class", "alarm"),
            "view_alarm_ended": ("as above", "alarm"),
            "view_recovered": ("class", "refresh", "failures"),
            "message_refused": ("None", "message", "outcome"),
        }.items():
            text = " ".join(rows("Signals")[name])
            assert sender in text
            assert all(f"`{argument}`" in text for argument in arguments)

    def test_options_of_the_command(self) -> None:
        parser = update_materialized_views.Command().create_parser("manage.py", "x")
        ours = {
            option
            for action in parser._actions
            for option in action.option_strings
            if option.startswith("--") and option not in DJANGOS_OPTIONS
        }

        assert {name.split()[0] for name in documented("Command")} == ours

    def test_states(self) -> None:
        states = (*RefreshState, *RunState, *ViewState)

        assert documented("States") == {state.value for state in states}
        assert all(rows("States")[state][0] == state.meaning for state in ViewState)


DJANGOS_OPTIONS = {
    "--help", "--version", "--verbosity", "--settings", "--pythonpath", "--traceback",
    "--no-color", "--force-color", "--skip-checks",
}  # fmt: skip
