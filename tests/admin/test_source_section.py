"""What the admin says of views with a `source()`: path, new definition, progress, sums."""

import re
from typing import Any

import pytest
from django.db.models import F
from django.test import Client
from django.utils.html import escape

from matviews import changes, engine
from matviews.models import ViewControl
from matviews.states import ViewState
from tests.admin.test_pages import LIST, html, page
from tests.helpers.additive_views import Sales
from tests.helpers.engine import due
from tests.helpers.ledger import add_items
from tests.helpers.source_views import LABEL, sourced, staged
from tests.helpers.sums import kept_of
from tests.helpers.tables import execute
from tests.helpers.view_classes import run
from tests.sample.models import Item, Limited

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("own_views"),
]


def text(source: str) -> str:
    """What a person reads of some HTML."""
    return " ".join(re.sub(r"<[^>]*>", " ", source).split())


def section(client: Client, name: str, label: str = LABEL) -> str:
    """The HTML of a section of a view's page."""
    shown = html(client, page(label))
    found = re.search(
        rf'<section[^>]*aria-labelledby="matviews-{name}-heading".*?</section>', shown, re.S
    )
    assert found, f"the page has no section {name}"
    return found[0]


def built(source: Any = None) -> type[Any]:
    view = sourced(source) if source else sourced()
    add_items(10)
    run(view)
    return view


# The path


def test_a_page_tells_how_the_source_is_worked_through_and_why(admin_client: Client) -> None:
    sourced()
    sourced(staged, name="Sliced")

    assert text(section(admin_client, "source")).startswith(
        "Source windowed : the key is sample.Item (id), which an index serves"
    )
    assert text(section(admin_client, "source", "sample.Sliced")).startswith(
        "Source staged : a slice depends on all rows"
    )


def test_a_view_without_a_source_has_no_such_section(admin_client: Client) -> None:
    assert "matviews-source-heading" not in html(admin_client, page())


def test_a_source_that_cannot_be_derived_from_says_why(admin_client: Client) -> None:
    sourced(lambda: Item.objects.values("value", nobody=F("pk")))

    shown = section(admin_client, "source")

    assert "matviews-error" in shown
    assert "has the column 'nobody'" in shown.replace("&#x27;", "'")


def test_what_a_source_raises_is_text(admin_client: Client) -> None:
    def hostile() -> Any:
        raise RuntimeError("<script>alert(1)</script>")

    sourced(hostile)

    shown = section(admin_client, "source")

    assert "<script>" not in shown
    assert escape("<script>alert(1)</script>") in shown


# Definitions that changed


def changed(*phases: str) -> None:
    changes.install(engine.alias())  # or the state would be that changes are not logged
    control = ViewControl.objects.get(label=LABEL)
    control.fingerprints |= dict.fromkeys(phases, "an older one")
    control.save()


def test_the_list_shows_a_changed_definition_as_a_warning(admin_client: Client) -> None:
    built()
    changed("insert")

    shown = html(admin_client, f"{LIST}?state=definition+changed")

    assert "definition changed (1)" in shown
    assert LABEL in shown
    assert 'matviews-badge matviews-warning">definition changed<' in shown
    assert escape(ViewState.CHANGED.meaning) in shown


def test_the_page_shows_which_phases_are_of_the_old_definition(admin_client: Client) -> None:
    view = built()
    changed("insert", "delete")

    cards = section(admin_client, "phases").split("<article")[1:]

    assert ["definition changed" in text(card) for card in cards] == [True, False, True]
    assert ViewState.CHANGED.meaning in text(section(admin_client, "status"))
    # and no more after the refresh
    run(view)
    assert "definition changed" not in html(admin_client, page(LABEL))


# Progress


def test_a_derived_phase_tells_of_keys_and_rows(admin_client: Client) -> None:
    # given a view of 40 keys, a quarter of which a refresh has scanned
    view = sourced()
    add_items(40)
    run(view, batch_size=10)
    Limited.objects.order_by("pk")[0].delete()
    engine.request(view, phases=["insert"], batch_size=10)
    engine.run_batch(due(view))
    # when the page asks how far it is
    live = admin_client.get(page(LABEL, "progress")).json()
    # then
    words = r"10 of about \d+ keys, 1 row written, [\d,]+ keys/s"
    assert re.fullmatch(words, live["phases"]["insert"])
    assert 0 < live["done"] < 1


def test_a_page_tells_how_many_keys_the_last_run_looked_through(admin_client: Client) -> None:
    view = sourced()
    add_items(40)
    run(view, phases=["insert"], batch_size=10)

    shown = text(section(admin_client, "phases"))

    assert re.search(r"Rows written 40 rows in \d batches, \d\d keys checked", shown)


# Additive views


@pytest.mark.usefixtures("alone")
def test_a_page_tells_how_many_changes_of_an_additive_view_are_to_be_added(
    admin_client: Client,
) -> None:
    label = "shapes.ShopTotal"
    with Sales().tracked() as sales:
        assert "Additive; its sums are not used until" in section(admin_client, "source", label)
        sales.add((1, 1, None))
        run(sales.View)
        assert "Additive: 0 entries pending" in section(admin_client, "source", label)

        [sale] = sales.add((1, 1, None))
        assert "Additive: 1 entry pending in its value logs." in section(
            admin_client, "source", label
        )
        sales.Sale._base_manager.filter(pk=sale.pk).update(shop=2)
        assert "Additive: 3 entries pending" in section(admin_client, "source", label)

        execute(f"DROP TABLE {kept_of(sales.View).log}")
        assert "Additive; its sums are not used until" in section(admin_client, "source", label)
        changes.remove(engine.alias())


@pytest.mark.usefixtures("alone")
def test_a_page_of_another_view_says_nothing_of_sums(admin_client: Client) -> None:
    with Sales(options={"additive": None}).tracked():
        assert "dditive" not in section(admin_client, "source", "shapes.ShopTotal")
