"""Waves in the admin: on the page of a refresh, and of selected views."""

from collections.abc import Iterator

import pytest
from django.test import Client
from django.urls import reverse

from matviews import tasks
from matviews.models import Origin
from tests.helpers.view_graphs import DIAMOND, Views, built, label

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("alone")]


@pytest.fixture
def views() -> Iterator[Views]:
    with built(DIAMOND) as found:
        yield found


def page_of(views: Views, name: str) -> str:
    return reverse("admin:matviews_refresh_change", args=[views.last(name).pk])


def test_the_page_shows_what_one_change_led_to(views: Views, admin_client: Client) -> None:
    alone = admin_client.get(page_of(views, "D")).content.decode()
    views.change()
    views.settle()
    page = admin_client.get(page_of(views, "B")).content.decode()

    assert "Its wave" not in alone
    assert "Its wave" in page
    for name in "ACD":
        assert f'<a href="{page_of(views, name)}">{views.last(name).pk}</a> {label(name)}' in page
    assert f"follows {views.last('B').pk}, {views.last('C').pk}" in " ".join(page.split())


def test_the_page_links_to_what_has_caused_it(views: Views, admin_client: Client) -> None:
    views.change()
    views.settle()
    first, last = (admin_client.get(page_of(views, name)).content.decode() for name in "AD")
    links = "".join(
        f'<a href="{page_of(views, name)}">{views.last(name).pk} {label(name)}</a> '
        for name in "BC"
    )

    assert f"<dt>Requested by</dt><dd>{Origin.DEPENDENCY.label}</dd>" in last
    assert f"<dt>Follows</dt><dd>{links}</dd>" in last
    assert "<dt>Follows</dt>" not in first


def test_selected_views_are_refreshed_in_order(
    views: Views, admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "send", lambda _messages: True)
    views.change()
    chosen = [views.control(name).pk for name in "DA"]
    data = {"action": "refresh_now", "_selected_action": chosen}
    admin_client.post(reverse("admin:matviews_viewcontrol_changelist"), data)

    first, last = views.last("A"), views.last("D")
    assert (first.waits_for_upstream, last.waits_for_upstream) == (False, True)
    assert last.upstream_refreshes == [first.pk]


def test_a_view_says_which_one_above_is_paused(views: Views, admin_client: Client) -> None:
    views.set("A", paused=True)
    page = reverse("admin:matviews_viewcontrol_change", args=[views.control("D").pk])
    listed = admin_client.get(reverse("admin:matviews_viewcontrol_changelist"))

    assert "upstream paused: shapes.A" in admin_client.get(page).content.decode()
    assert "upstream paused: shapes.A" in listed.content.decode()
