"""Views with a `source()` over the table of `Limited`, for tests of what tells of them."""

from typing import Any

from django.db import models
from django.db.models import F, QuerySet

from matviews import changes, engine
from matviews.models import RefreshSchedule, ViewChange
from tests.helpers.ledger import add_items
from tests.helpers.view_classes import make_view, ready, run
from tests.sample.models import Item, Limited

LABEL = "sample.Sourced"


def windowed() -> QuerySet[Any, Any]:
    return Item.objects.values("value", key=F("pk"))


def staged() -> QuerySet[Any, Any]:
    return Item.objects.order_by("pk").values("value", key=F("pk"))[:1000]


def sourced(source: Any = windowed, *, name: str = "Sourced", **others: Any) -> type[Any]:
    """A view that is ready to be refreshed. Within `registry.preserved`."""
    return ready(
        make_view(
            name,
            meta={"db_table": Limited._meta.db_table},
            key=models.BigIntegerField(unique=True),
            value=models.IntegerField(),
            source=classmethod(lambda cls: source()),
            **others,
        )
    )


def sourced_up_to_date() -> type[Any]:
    """A tracked `sourced` view of three rows, refreshed, without schedules."""
    RefreshSchedule.objects.all().delete()
    view = sourced()
    changes.install(engine.alias())
    add_items(3)
    run(view)
    engine.move_log()
    ViewChange.objects.all().delete()  # of other views
    return view
