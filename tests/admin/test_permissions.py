"""Who may do what in the admin: each of our addresses in the urlconf, for each kind of user."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from matviews import engine
from matviews.models import Alarm, Refresh, RefreshSchedule, ViewControl
from tests.helpers.view_classes import run
from tests.sample.models import Limited

pytestmark = pytest.mark.django_db

LOGIN = "/admin/login/"


def routes(resolver: URLResolver, before: str = "") -> Iterator[str]:
    for each in resolver.url_patterns:
        route = before + str(each.pattern)
        if isinstance(each, URLPattern):
            yield route
        else:
            yield from routes(each, route)


OURS = sorted({route for route in routes(get_resolver()) if "/matviews/" in route})
# Django's last address of each model leads whoever is staff to the page of the row, which decides.
LEADS_ON = {route for route in OURS if route.endswith("/<path:object_id>/")}
STEERING = {
    route
    for route in OURS
    if route.endswith(
        (
            "/<int:pk>/refresh/",
            "/pause/",
            "/resume/",
            "/stop/",
            "/retry/",
            "/retry-parked/",
            "/verify/",
            "/repair/",
        )
    )
}
RESUMING = {route for route in OURS if route.endswith("/resume-suspended/")}


@pytest.fixture(autouse=True)
def _views() -> None:
    engine.sync_controls()
    run(Limited)
    engine.request(Limited)
    now = engine.now()
    Alarm.objects.create(kind="behind", view="sample.Limited", since=now, raised_at=now)


@pytest.fixture
def addresses() -> dict[str, str]:
    """The address of each route: of a view, or of its open refresh."""
    keys = {
        "admin/matviews/viewcontrol/": ViewControl.objects.get(label="sample.Limited").pk,
        "admin/matviews/refresh/": Refresh.objects.latest("pk").pk,
        "admin/matviews/alarm/": Alarm.objects.get().pk,
    }
    return {
        route: "/" + re.sub(r"<\w+:\w+>", str(key), route)
        for route in OURS
        for start, key in keys.items()
        if route.startswith(start)
    }


def user_with(*permissions: str, is_staff: bool = True) -> Client:
    user = User.objects.create_user("somebody", is_staff=is_staff)
    found = Permission.objects.filter(codename__in=permissions)
    assert len(found) == len(permissions)
    user.user_permissions.set(found)
    client = Client()
    client.force_login(user)
    return client


def bookkeeping() -> list[Any]:
    """All that an action in the admin might change."""
    return [
        list(model.objects.order_by("pk").values())
        for model in (ViewControl, RefreshSchedule, Refresh, Alarm, LogEntry)
    ]


def statuses(client: Client, addresses: dict[str, str], method: str) -> dict[str, int]:
    data = {"action": "refresh_now", "_selected_action": "1", "index": "0", "post": "yes"}
    return {
        route: (client.post(url, data) if method == "post" else client.get(url)).status_code
        for route, url in addresses.items()
    }


def test_our_addresses_are_found(addresses: dict[str, str]) -> None:
    assert addresses.keys() == set(OURS)
    assert {
        "admin/matviews/viewcontrol/",
        "admin/matviews/viewcontrol/<path:object_id>/change/",
        "admin/matviews/viewcontrol/<int:pk>/progress/",
        "admin/matviews/viewcontrol/<int:pk>/refresh/",
        "admin/matviews/refresh/<int:pk>/stop/",
    } < addresses.keys()


@pytest.mark.parametrize("method", ["get", "post"])
def test_anonymous_users_are_sent_to_the_login(addresses: dict[str, str], method: str) -> None:
    client = Client()
    for url in addresses.values():
        answer = getattr(client, method)(url)
        assert (answer.status_code, answer.url.partition("?")[0]) == (302, LOGIN)


@pytest.mark.parametrize("method", ["get", "post"])
def test_users_who_are_no_staff_are_sent_to_the_login(
    addresses: dict[str, str], method: str
) -> None:
    client = user_with("view_viewcontrol", "operate_viewcontrol", is_staff=False)
    for url in addresses.values():
        answer = getattr(client, method)(url)
        assert (answer.status_code, answer.url.partition("?")[0]) == (302, LOGIN)


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("permissions", [(), ("operate_viewcontrol",)])
def test_staff_without_permission_to_view_is_refused_everything(
    addresses: dict[str, str], method: str, permissions: tuple[str, ...]
) -> None:
    before = bookkeeping()

    found = statuses(user_with(*permissions), addresses, method)

    assert found == {route: 302 if route in LEADS_ON else 403 for route in OURS}
    assert bookkeeping() == before


def test_staff_who_may_view_sees_all_and_changes_nothing(addresses: dict[str, str]) -> None:
    client = user_with("view_viewcontrol", "view_refresh", "view_alarm")
    before = bookkeeping()

    seen = statuses(client, addresses, "get")
    done = statuses(client, addresses, "post")

    refused = (
        STEERING | RESUMING | {route for route in OURS if route.endswith(("/add/", "/delete/"))}
    )
    assert {route for route, status in seen.items() if status == 403} == refused
    assert {route for route, status in seen.items() if status == 200} == (
        addresses.keys() - refused - LEADS_ON
    )
    assert {done[route] for route in refused} == {403}
    assert bookkeeping() == before


def test_no_page_leads_where_its_reader_may_not_go(addresses: dict[str, str]) -> None:
    client = user_with("view_viewcontrol", "operate_viewcontrol")

    page = client.get(addresses["admin/matviews/viewcontrol/<path:object_id>/change/"])

    assert f"refresh {Refresh.objects.latest('pk').pk}" in page.content.decode()
    assert b"/admin/matviews/refresh/" not in page.content


def test_the_list_does_nothing_for_staff_who_may_only_view(addresses: dict[str, str]) -> None:
    client = user_with("view_viewcontrol")
    before = bookkeeping()

    for action in (
        "refresh_now", "pause", "resume", "resume_suspended", "delete_selected",
    ):  # fmt: skip
        key = ViewControl.objects.get(label="sample.Limited").pk
        client.post("/admin/matviews/viewcontrol/", {"action": action, "_selected_action": key})

    assert bookkeeping() == before


def test_staff_who_may_refresh_steers_but_sets_nothing(addresses: dict[str, str]) -> None:
    client = user_with("view_viewcontrol", "view_refresh", "operate_viewcontrol")

    seen = statuses(client, addresses, "get")
    done = statuses(client, addresses, "post")

    assert {seen[route] for route in STEERING} == {405}
    assert {done[route] for route in STEERING} == {302}
    assert {done[route] for route in RESUMING} == {403}
    assert done["admin/matviews/viewcontrol/<path:object_id>/change/"] == 403
    assert done["admin/matviews/viewcontrol/<path:object_id>/delete/"] == 403
    assert done["admin/matviews/viewcontrol/add/"] == 403


def test_staff_who_may_resume_what_is_suspended_does_only_that(addresses: dict[str, str]) -> None:
    client = user_with("view_viewcontrol", "resume_viewcontrol")

    done = statuses(client, addresses, "post")

    assert {done[route] for route in RESUMING} == {302}
    assert {done[route] for route in STEERING} == {403}


def test_a_superuser_is_refused_only_what_nobody_may(
    addresses: dict[str, str], admin_client: Client
) -> None:
    refused = {
        route for route, status in statuses(admin_client, addresses, "get").items() if status == 403
    }

    assert refused == {route for route in OURS if route.endswith(("/add/", "/delete/"))}
