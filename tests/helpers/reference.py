"""Reads the sections, tables and fields of docs/reference.md."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from tests import ROOT

__all__ = [
    "JSON", "TABLES", "Field", "document_fields", "documented", "headings", "json_fields",
    "model_fields", "rows", "section",
]  # fmt: skip

REFERENCE = (ROOT / "docs" / "reference.md").read_text()
JSON, TABLES = "Output as JSON", "Tables"
OF_DOCUMENT = "field of the document"


class Field(NamedTuple):
    """What the page says of a field."""

    #: The cell with its type; "" if another table has it.
    type: str
    #: The cell with its meaning.
    meaning: str


def section(title: str) -> str:
    """The part of the reference under a heading, with its smaller headings."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", REFERENCE, re.M | re.S)
    assert found, f"docs/reference.md has no section {title!r}"
    return found[1]


def rows(title: str) -> dict[str, list[str]]:
    """The tables of a section: first cell, without backticks, to the others."""
    found = (cells for _heading, table in _tables(section(title)) for cells in table)
    return {first.replace("`", ""): rest for first, *rest in found}


def documented(title: str) -> set[str]:
    """What the tables of a section tell of, without their headings."""
    return set(rows(title))


def headings(title: str) -> list[str]:
    """The smaller headings of a section."""
    return re.findall(r"^### (.+)$", section(title), re.M)


def model_fields(model: str) -> dict[str, Field]:
    """The fields of a model."""
    return _fields(_under(TABLES, model))


def document_fields(output: str) -> dict[str, Field]:
    """What the JSON document of an output has, beside what is in its list of objects."""
    common = _fields(section(JSON).partition("\n### ")[0], of_document=True)
    own = _fields(_under(JSON, output), of_document=True)
    if any(field.type == "list of objects" for field in own.values()):
        del common["views"]
    return common | own


def json_fields(output: str) -> dict[str, Field]:
    """The fields of an object in the JSON document of an output, as `a.b` where they are nested."""
    found: dict[str, Field] = {}
    for name, field in _fields(_under(JSON, output)).items():
        if field.type:
            found[name] = field
            continue
        [elsewhere] = re.findall(r"^As in \[`?([^`\]]+)`?\]", field.meaning)
        there = json_fields(elsewhere)
        assert name in there, f"{output}: {name} is not in {elsewhere}"
        found |= {each: there[each] for each in there if f"{each}.".startswith(f"{name}.")}
    return found


def _under(title: str, heading: str) -> str:
    """The part of a section under a smaller heading."""
    pattern = rf"^### {re.escape(heading)}\n(.*?)(?=^### |\Z)"
    found = re.search(pattern, section(title), re.M | re.S)
    assert found, f"docs/reference.md has no heading {heading!r} in {title!r}"
    return found[1]


def _fields(text: str, *, of_document: bool = False) -> dict[str, Field]:
    """The fields in tables with the columns field, type and meaning; some rows have several."""
    found: dict[str, Field] = {}
    for heading, table in _tables(text):
        if not heading.startswith("field") or (heading == OF_DOCUMENT) != of_document:
            continue
        for names, kind, meaning in table:
            for name in re.findall(r"`([\w.]+)`", names):
                assert name not in found, f"{name} is described twice"
                found[name] = Field(kind, meaning)
    return found


def _tables(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """The tables of a text: the heading of the first column, and the cells of each row."""
    lines = text.splitlines()
    starts = [
        place
        for place, (line, below) in enumerate(pairwise(lines))
        if line.startswith("|") and re.fullmatch(r"\|[-:| ]+", below)
    ]
    for start in starts:
        table = list(_rows_from(lines, start + 2))
        yield _cells(lines[start])[0], table


def _rows_from(lines: list[str], start: int) -> Iterator[list[str]]:
    for line in lines[start:]:
        if not line.startswith("|"):
            return
        yield _cells(line)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
