"""A view's page: the views that it reads and that read it."""

import re
from typing import Any

import pytest
from django.db import connection, models
from django.db.models import F
from django.test import Client
from django.test.utils import CaptureQueriesContext

from matviews.models import ViewControl
from tests.admin.test_pages import control, html
from tests.helpers.view_classes import make_view, ready
from tests.shapes.models import CustomerTotal

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_views")]


def page(label: str) -> str:
    return f"/admin/matviews/viewcontrol/{control(label).pk}/change/"


def section(shown: str) -> str:
    found = re.search(r'<section[^>]*matviews-neighbours-heading".*?</section>', shown, re.DOTALL)
    return found[0] if found else ""


def reader(number: int = 0) -> type[Any]:
    totals = CustomerTotal.objects.all()
    made = make_view(
        name=f"Reader{number}",
        key=models.BigIntegerField(unique=True),
        value=models.IntegerField(),
        source=classmethod(lambda cls: totals.values(key=F("pk"), value=F("orders"))),
    )
    ready(made)
    return made


def test_it_names_the_views_around_it_with_their_states(admin_client: Client) -> None:
    ViewControl.objects.filter(label="shapes.ViewOfView").update(paused=True)

    shown = section(html(admin_client, page("shapes.CustomerTotal")))

    reads, readers = shown.split('id="matviews-readers"')
    assert "no other view" in reads
    assert f'href="{page("shapes.ViewOfView")}">shapes.ViewOfView</a>' in readers
    assert "paused" in readers
    assert "graph/?view=shapes.CustomerTotal" in shown
    assert "shapes.CustomerTotal</a>" in section(html(admin_client, page("shapes.ViewOfView")))


def test_a_view_without_any_has_no_such_section(admin_client: Client) -> None:
    assert section(html(admin_client, page("sample.Limited"))) == ""


@pytest.mark.database
def test_it_takes_as_many_statements_for_many_views_and_lists_some(admin_client: Client) -> None:
    def statements() -> int:
        with CaptureQueriesContext(connection) as captured:
            html(admin_client, page("shapes.CustomerTotal"))
        return len(captured)

    statements()
    few = statements()
    for number in range(25):
        reader(number)

    assert statements() == few
    assert "and 6 more" in section(html(admin_client, page("shapes.CustomerTotal")))
