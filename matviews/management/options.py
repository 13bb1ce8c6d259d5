"""The command's options: one table with what each is for, and what it cannot be combined with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from django.core.management.base import CommandError, CommandParser

from matviews.exceptions import UnknownView
from matviews.limits import BATCH_SIZE, SAMPLE_SIZE, Range
from matviews.phases import Phase
from matviews.registry import registry

__all__ = ["REFUSED", "Options", "add_arguments", "parse_options", "refusal"]

REFUSED = 2  # exit status if the options are invalid and nothing was done
TRIGGER_ACTIONS = ("install", "remove", "sql")
GRAPH_FORMATS = ("mermaid", "dot")


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """An option of the command."""

    #: Its name without the dashes.
    name: str
    help: str
    #: How argparse reads it; by default, as a flag.
    settings: Mapping[str, Any] = field(default_factory=lambda: {"action": "store_true"})
    #: Whether the command does this instead of a refresh.
    is_action: bool = False
    #: The action that it belongs to, "" if it can stand alone.
    action: str = ""
    #: The action that it is an option of, if both are given.
    modifies: str = ""
    #: The actions that it cannot be combined with, each with the reason.
    conflicts: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in `call_command`."""
        return self.name.replace("-", "_")

    def is_given(self, options: Mapping[str, Any]) -> bool:
        """Whether the caller set it."""
        return options[self.key] is not None and options[self.key] is not False


SEVERAL: Mapping[str, Any] = {"nargs": "+", "action": "extend"}
WITHOUT_BATCHES = (
    "list", "schedules", "check", "verify", "parked", "explain", "graph", "triggers", "health",
    "wave",
)  # fmt: skip
ONLY_REFRESHES = {
    **{action: f"--{action} refreshes no views" for action in WITHOUT_BATCHES},
    "follow": "--follow refreshes the views whose schedules are on change",
}
OPTIONS = (
    Option(
        name="models",
        settings={**SEVERAL, "metavar": "VIEW"},
        help="views to use, as app_label.ModelName, or ModelName if that is unique; separated by "
        "commas",
        conflicts={
            "triggers": "--triggers is for the tables of all views",
            "health": "--health is about all views",
            "wave": "--wave is about one refresh",
        },
    ),
    Option(
        name="phases",
        settings={**SEVERAL, "metavar": "PHASE"},
        help=f"phases to run: {', '.join(Phase)}; separated by commas; all by default",
        conflicts={
            "list": "--list shows the state of views, whatever their phases",
            "schedules": "--schedules shows every schedule of a view",
            "verify": "--verify compares whole rows",
            "parked": "--parked shows the keys of every phase",
            "explain": "--explain shows every phase",
            "graph": "--graph shows whole views",
            "health": "--health is about all views",
            "triggers": "--triggers is about tables",
            "wave": "--wave shows whole refreshes",
            "follow": "--follow requests the phases that the schedules name",
        },
    ),
    Option(
        name="batch-size",
        settings={"metavar": "N"},
        help="rows per batch; by default, each view adjusts its own",
        conflicts={
            **{action: f"--{action} runs no batches" for action in WITHOUT_BATCHES},
            "follow": "--follow leaves the size of batches to the views",
        },
    ),
    Option(
        name="format",
        settings={"choices": ("text", "json"), "default": "text"},
        help="json: one document on stdout; errors are in it and on stderr",
    ),
    Option(
        name="with-upstream",
        help="first refresh the views that the named ones read, directly or through others",
        conflicts=ONLY_REFRESHES,
    ),
    Option(
        name="with-downstream",
        help="afterwards refresh the views that read the named ones, directly or through others",
        conflicts=ONLY_REFRESHES,
    ),
    Option(name="list", is_action=True, help="show the state of every view"),
    Option(name="schedules", is_action=True, help="show which refreshes beat requests, and when"),
    Option(
        name="check",
        is_action=True,
        help="change nothing; exit status 1 if a view is not on time: it failed, or is older than "
        "its target",
    ),
    Option(
        name="pending",
        action="check",
        help="with --check: exit status 1 if the source of a view has changed since its last "
        "refresh",
    ),
    Option(
        name="verify",
        is_action=True,
        help="compare views with what their source() returns now; exit status 1 if one differs",
    ),
    Option(name="repair", action="verify", help="with --verify: write only the rows that differ"),
    Option(
        name="sample",
        settings={"metavar": "N"},
        action="verify",
        help="with --verify: compare about N keys, chosen at random",
    ),
    Option(
        name="parked",
        is_action=True,
        help="show the keys that refreshes leave out, because their rows cannot be computed or "
        "written; exit status 1 if there are any",
    ),
    Option(
        name="retry",
        action="parked",
        help="with --parked: have the next refresh try these keys again",
    ),
    Option(
        name="explain",
        is_action=True,
        help="show how views are derived from their source(): strategy, indexes, SQL",
    ),
    Option(name="no-sql", action="explain", help="with --explain: omit the SQL"),
    Option(
        name="graph",
        settings={"nargs": "?", "const": GRAPH_FORMATS[0], "choices": GRAPH_FORMATS},
        is_action=True,
        help="show which views read which tables and views, as a Mermaid flowchart or, with dot, "
        "for Graphviz; with --models, these views and whatever they read",
    ),
    Option(
        name="triggers",
        settings={"choices": TRIGGER_ACTIONS},
        is_action=True,
        help="install or remove the triggers that log changes; sql: show the SQL that creates them",
    ),
    Option(
        name="health",
        is_action=True,
        help="for monitoring: exit status 0 fine; 3 some views have a problem; 1 all views are "
        "affected: the database, the maintenance task or the workers do not answer, or every view "
        "fails",
    ),
    Option(
        name="wave",
        is_action=True,
        settings={"metavar": "REFRESH"},
        help="show which refreshes REFRESH, a number, followed and led to, and when",
    ),
    Option(
        name="follow",
        is_action=True,
        help="poll for changes and refresh the views whose schedules are on change, until Ctrl-C "
        "or SIGTERM; with --enqueue, leave the work to Celery workers",
    ),
    Option(
        name="enqueue", is_action=True, modifies="follow", help="leave the work to Celery workers"
    ),
    Option(
        name="wait",
        action="enqueue",
        help="with --enqueue: show the progress until the refreshes have ended; exit status 1 if "
        "one failed. Ctrl-C ends the waiting, not the refreshes",
    ),
)
ACTIONS = tuple(option for option in OPTIONS if option.is_action)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the command is asked to do."""

    #: The name of one of `ACTIONS`, or "refresh".
    action: str
    #: The views that were named, () if none were.
    labels: tuple[str, ...]
    #: The phases that were named, in their order; None for all.
    phases: tuple[Phase, ...] | None
    #: Rows per batch; None leaves it to the views.
    batch_size: int | None
    #: Whether the views that the named ones read are refreshed, too; and those that read them.
    upstream: bool
    downstream: bool
    #: Whether `--check` asks for pending changes instead of targets.
    pending: bool
    #: Whether `--verify` writes what differs.
    repair: bool
    #: How many keys `--verify` compares; None for all.
    sample: int | None
    #: Whether `--parked` has the keys tried again.
    retry: bool
    #: Whether `--explain` shows the SQL.
    sql: bool
    #: One of `GRAPH_FORMATS`; None for the other actions.
    graph: str | None
    #: One of `TRIGGER_ACTIONS`; None for the other actions.
    triggers: str | None
    #: The primary key of the refresh whose wave is shown; None for the other actions.
    wave: int | None
    #: Whether `--enqueue` waits until the refreshes have ended.
    wait: bool
    #: Whether workers do the work of `--follow`.
    enqueue: bool


def add_arguments(parser: CommandParser) -> None:
    """Declare the options."""
    for option in OPTIONS:
        parser.add_argument(f"--{option.name}", help=option.help, **option.settings)


def parse_options(given: Mapping[str, Any]) -> Options:
    """Read the options as they come from the command line or `call_command`.

    Raises:
        CommandError: a view or phase does not exist, a value is invalid, or options conflict.
    """
    action = _action(given)
    for option in OPTIONS:
        if option.is_given(given):
            _check_combination(option, action, given)
    return Options(
        action=action,
        labels=_labels(given["models"]),
        phases=_phases(given["phases"]),
        batch_size=_number(given["batch_size"], "batch-size", BATCH_SIZE),
        upstream=given["with_upstream"],
        downstream=given["with_downstream"],
        pending=given["pending"],
        repair=given["repair"],
        sample=_number(given["sample"], "sample", SAMPLE_SIZE),
        retry=given["retry"],
        sql=not given["no_sql"],
        graph=given["graph"],
        triggers=given["triggers"],
        wave=_key(given["wave"]),
        wait=given["wait"],
        enqueue=given["enqueue"],
    )


def _action(given: Mapping[str, Any]) -> str:
    chosen = [option for option in ACTIONS if option.is_given(given)]
    names = {option.name for option in chosen}
    actions = [option.name for option in chosen if option.modifies not in names]
    if len(actions) > 1:
        raise refusal(f"Choose one of {' and '.join(f'--{action}' for action in actions)}.")
    return actions[0] if actions else "refresh"


def _check_combination(option: Option, action: str, given: Mapping[str, Any]) -> None:
    if reason := option.conflicts.get(action):
        raise refusal(f"{reason}: leave out --{option.name}.")
    if option.action not in ("", action):
        raise refusal(f"--{option.name} is for --{option.action}: add that, or leave it out.")
    if option.name in ("with-upstream", "with-downstream") and not given["models"]:
        raise refusal(f"--{option.name} is for named views: add --models.")
    if (option.name, action) == ("phases", "check") and not given["pending"]:
        raise refusal("--check is about whole views: leave out --phases, or add --pending.")


def _labels(given: str | Iterable[str] | None) -> tuple[str, ...]:
    labels, faults = [], []
    for name in _names(given, "models") or ():
        try:
            labels.append(registry.find(name).label)
        except UnknownView as error:
            faults.append(str(error))
    if faults:
        raise refusal(" ".join(faults))
    return tuple(dict.fromkeys(labels))


def _phases(given: str | Iterable[str] | None) -> tuple[Phase, ...] | None:
    names = _names(given, "phases")
    if names is None:
        return None
    requested = {name.lower() for name in names}
    for name in sorted(requested - set(Phase)):
        near = get_close_matches(name, list(Phase), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Phases are {', '.join(Phase)}."
        raise refusal(f"There is no phase {name!r}. {hint}")
    return tuple(phase for phase in Phase if phase in requested)


def _names(given: str | Iterable[str] | None, option: str) -> list[str] | None:
    if given is None:
        return None
    pieces = [given] if isinstance(given, str) else given
    names = [name.strip() for piece in pieces for name in piece.split(",") if name.strip()]
    if not names:
        raise refusal(f"--{option} names nothing: name at least one, or leave it out.")
    return names


def _number(given: str | int | None, option: str, limits: Range) -> int | None:
    if given is None:
        return None
    text = str(given).strip()
    number = int(text) if text.isascii() and text.isdecimal() else None
    if number is None or number not in limits:
        raise refusal(f"--{option} must be {limits}, not {text!r}.")
    return number


def _key(given: str | int | None) -> int | None:
    """The primary key of a refresh."""
    text = "" if given is None else str(given)
    if given is not None and not (text.isascii() and text.isdecimal()):
        raise refusal(f"--wave needs the number of a refresh, not {text!r}.")
    return int(text) if text else None


def refusal(sentence: str) -> CommandError:
    """The error that ends the command before it has done anything."""
    return CommandError(sentence, returncode=REFUSED)
