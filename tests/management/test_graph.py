"""`--graph`: which views read which tables and views."""

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from matviews.engine import view_graph
from matviews.registry import registry
from tests.helpers.source_views import windowed
from tests.helpers.view_classes import make_view

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_views")]


def printed(**options: Any) -> str:
    out = StringIO()
    call_command("update_materialized_views", stdout=out, **options)
    return out.getvalue()


def test_mermaid_shows_tables_views_and_what_reads_what() -> None:
    lines = printed(graph="mermaid", models=["shapes.ViewOfView"]).splitlines()

    assert lines[0] == "flowchart LR"
    names = dict(line.strip().split("[", 1) for line in lines[1:] if "[" in line)
    named = {text.strip('[]()"'): name for name, text in names.items()}
    assert {"shapes.ViewOfView", "shapes.CustomerTotal"} <= named.keys()
    assert f"    {named['shapes.CustomerTotal']} --> {named['shapes.ViewOfView']}" in lines
    assert any(line.endswith(f"--> {named['shapes.CustomerTotal']}") for line in lines)


def test_dot_is_for_graphviz() -> None:
    text = printed(graph="dot", models=["shapes.ViewOfView"])

    assert text.startswith("digraph views {\n    rankdir=LR;\n")
    assert '[shape=box, label="shapes.ViewOfView"];' in text
    assert "[shape=cylinder, label=" in text
    assert " -> " in text
    assert text.rstrip().endswith("}")


def test_without_models_it_has_all_views() -> None:
    text = printed(graph="mermaid")

    assert all(f'"{definition.label}"' in text for definition in registry)


def test_json_has_an_object_per_view() -> None:
    document = json.loads(printed(graph="mermaid", models=["shapes.ViewOfView"], format="json"))

    assert document["error"] == ""
    [upper] = [each for each in document["views"] if each["view"] == "shapes.ViewOfView"]
    assert upper["reads_views"] == ["shapes.CustomerTotal"]


def test_names_are_quoted() -> None:
    registry.register(
        make_view(
            name='Qu"oted#',
            meta={"db_table": "quoted"},
            source=classmethod(lambda cls: windowed()),
        )
    )

    assert "sample.Qu#quot;oted#35;" in printed(graph="mermaid")
    assert '"sample.Qu\\"oted#"' in printed(graph="dot")


def test_names_in_other_alphabets_are_written_as_they_are() -> None:
    view = make_view(name="Größe", source=classmethod(lambda cls: windowed()))
    registry.register(view)

    assert '"sample.Größe"' in printed(graph="dot")


def test_phases_do_not_belong_to_it() -> None:
    with pytest.raises(CommandError, match="--graph shows whole views: leave out --phases"):
        printed(graph="mermaid", phases=["insert"])


def test_a_part_has_what_is_read_and_with_readers_what_reads() -> None:
    graph = view_graph()

    assert set(graph.part(["shapes.CustomerTotal"]).views_read) == {"shapes.CustomerTotal"}
    assert set(graph.part(["shapes.CustomerTotal"], readers=True).views_read) == {
        "shapes.CustomerTotal", "shapes.ViewOfView",
    }  # fmt: skip
    assert graph.part(["shapes.CustomerTotal"]).views_reading == {"shapes.CustomerTotal": ()}
