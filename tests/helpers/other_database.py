"""A project on another database than the default one; its read replica of our tables is gone.

`test_other_database.py` runs it in a process of its own. Whatever goes to the alias "default"
raises `ImproperlyConfigured`.
"""

from typing import Any

import django
from django.conf import settings
from django.db import connections, transaction

from tests import settings as usual

ALIAS = "views"


class Router:
    """All tables are in one database, which is neither "default" nor read by default."""

    def db_for_read(self, model: Any, **_hints: Any) -> str:
        return "default" if model._meta.app_label == "matviews" else ALIAS

    def db_for_write(self, _model: Any, **_hints: Any) -> str:
        return ALIAS

    def allow_relation(self, *_objects: Any, **_hints: Any) -> bool:
        return True

    def allow_migrate(self, db: str, _app_label: str, **_hints: Any) -> bool:
        return db == ALIAS


def _configure() -> None:
    values = {name: getattr(usual, name) for name in dir(usual) if name.isupper()}
    database = values["DATABASES"]["default"]
    name = f"{database['TEST']['NAME']}_elsewhere"
    if database["ENGINE"].endswith("sqlite3"):
        database = {**database, "NAME": name}
    values["DATABASES"] = {
        "default": {},
        ALIAS: {**database, "TEST": {**database["TEST"], "NAME": name}},
    }
    values["DATABASE_ROUTERS"] = [f"{__name__}.Router"]
    settings.configure(**values)
    django.setup()


def merges_requests_of_transactions() -> None:
    from matviews import engine
    from matviews.models import Refresh
    from matviews.states import RefreshState
    from tests.sample.models import Item, Limited

    Item.objects.create(value=1)
    refreshes = []
    for _ in range(3):
        with transaction.atomic(using=ALIAS):
            refreshes.append(engine.request(Limited))
    _run(refreshes[0])
    for each in refreshes:
        each.refresh_from_db()
    states = {(each.state, each.merged_into_id) for each in refreshes}
    assert states == {
        (RefreshState.SUCCEEDED, None), (RefreshState.SUCCEEDED, refreshes[0].pk),
    }, states  # fmt: skip
    merged = Refresh.objects.get(pk=refreshes[1].pk)
    assert (merged.merged_into, str(merged.view)) == (refreshes[0], "sample.Limited")


def follows_changes() -> None:
    from matviews import engine
    from tests.shapes.models import Customer, CustomerTotal, Order

    Order.objects.create(customer=Customer.objects.create(name="Ann"), price=1, paid=False)
    _run(engine.request(CustomerTotal))
    Order.objects.update(quantity=7)
    reasons = {run.full_refresh_reason for run in _run(engine.request(CustomerTotal)).runs.all()}
    assert reasons == {""}, reasons
    assert CustomerTotal.verify().equal


def _run(refresh: Any) -> Any:
    from matviews.tasks import inline

    ended = inline.run_to_end(refresh)
    assert ended.state == "succeeded", ended.error
    return ended


def main() -> None:
    _configure()
    creation = connections[ALIAS].creation
    creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        merges_requests_of_transactions()
        follows_changes()
    finally:
        creation.destroy_test_db("none", verbosity=0)


if __name__ == "__main__":
    main()
