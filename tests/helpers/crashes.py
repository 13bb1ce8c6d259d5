"""A plugin of the test run: a process that dies makes it end as interrupted, not as failed.

For then some tests did not run, and nobody knows which.
"""

import pytest

DIED = pytest.StashKey[bool]()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    if error:
        config: pytest.Config = node.config  # type: ignore[attr-defined]
        config.stash[DIED] = True


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.stash.get(DIED, False):
        session.exitstatus = pytest.ExitCode.INTERRUPTED
