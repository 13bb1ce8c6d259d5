"""The workflows of GitHub: what they run is pinned, and they may do no more than they need."""

import re
import tomllib
from pathlib import Path

import pytest

from tests import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
OWN = re.compile(r"\$/\.github/workflows/([\w-]+\.yml)")

each_workflow = pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)


def uses_in(workflow: Path) -> list[str]:
    """What follows each `uses:`, with its comment."""
    return re.findall(r"^[ -]*uses: *(.*)$", workflow.read_text(), re.MULTILINE)


def jobs_in(workflow: Path) -> dict[str, str]:
    """The text of each job."""
    _, name, jobs = workflow.read_text().partition("\njobs:\n")
    assert name, f"{workflow.name} has no jobs"
    parts = re.split(r"^  ([\w-]+):\n", jobs, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@each_workflow
def test_every_action_is_pinned_by_its_commit_with_its_version(workflow: Path) -> None:
    used = uses_in(workflow)

    assert used
    for action in used:
        if own := OWN.fullmatch(action):
            assert workflow.with_name(own[1]).exists()
        else:
            assert PINNED.fullmatch(action), f"{workflow.name}: {action}"


def test_all_workflows_use_the_same_commit_of_an_action() -> None:
    used = {action for workflow in WORKFLOWS for action in uses_in(workflow)}
    names = [action.partition("@")[0] for action in used]

    assert sorted(names) == sorted(set(names))


@each_workflow
def test_a_workflow_may_do_nothing_and_each_job_says_what_it_needs(workflow: Path) -> None:
    text = workflow.read_text()

    assert re.findall(r"^permissions:.*$", text, re.MULTILINE) == ["permissions: {}"]
    for name, job in jobs_in(workflow).items():
        assert re.search(r"^    permissions:$", job, re.MULTILINE), f"{workflow.name}: {name}"


@each_workflow
def test_no_checkout_keeps_its_token(workflow: Path) -> None:
    checkouts = re.findall(r"uses: actions/checkout@.*\n(.*\n.*)\n", workflow.read_text())

    assert checkouts
    for options in checkouts:
        assert options.split() == ["with:", "persist-credentials:", "false"]


def test_only_the_job_that_publishes_has_an_identity() -> None:
    jobs = [job for workflow in WORKFLOWS for job in jobs_in(workflow).items()]
    writing = [(name, job) for name, job in jobs if re.search(r": write\b", job)]

    assert [name for name, _ in writing] == ["publish"]
    assert "id-token: write" in writing[0][1]
    assert not re.search(r"\brun:|actions/checkout", writing[0][1])


@pytest.mark.parametrize(
    ("key", "classifier"),
    [("python", "Programming Language :: Python :: 3."), ("django", "Framework :: Django :: ")],
)
def test_the_matrix_tests_what_the_classifiers_promise(key: str, classifier: str) -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    tested = set(re.findall(rf'\b{key}: "([\d.]+)"', text))
    promised = {each.rpartition(" ")[2] for each in CLASSIFIERS if each.startswith(classifier)}

    assert tested == promised
