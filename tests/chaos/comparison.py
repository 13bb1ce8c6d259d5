"""Comparing what there is with what there should be; nothing is read here."""

import math
from collections import Counter
from typing import Any

__all__ = ["Rows", "compare", "ledger_faults"]

#: By key, the other values of a row.
Rows = dict[Any, tuple[Any, ...]]
MAX_SHOWN = 5  # examples of a difference


def ledger_faults(items: set[int], keys: list[int]) -> list[str]:
    """How a ledger differs from having each item once."""
    counts = Counter(keys)
    found = {
        "twice: a batch was done again": sorted(key for key in counts if counts[key] > 1),
        "missing": sorted(items - counts.keys()),
        "of no item": sorted(counts.keys() - items),
    }
    return [f"{len(keys)} rows {how}: {keys[:MAX_SHOWN]}" for how, keys in found.items() if keys]


def compare(expected: Rows, held: Rows) -> list[str]:
    """How the rows that a view holds differ from those that it should, a line per kind."""
    wrong = [key for key in expected.keys() & held.keys() if not _equal(expected[key], held[key])]
    found = {
        "missing": sorted(expected.keys() - held.keys()),
        "surplus": sorted(held.keys() - expected.keys()),
        "wrong": sorted(wrong),
    }
    return [
        f"{len(keys)} rows {kind}, as in (key, held, expected): {_shown(keys, held, expected)}"
        for kind, keys in found.items()
        if keys
    ]


def _shown(keys: list[Any], *rows: Rows) -> list[tuple[Any, ...]]:
    return [(key, *(each.get(key) for each in rows)) for key in keys[:MAX_SHOWN]]


def _equal(expected: tuple[Any, ...], held: tuple[Any, ...]) -> bool:
    return all(map(_same, expected, held))


def _same(expected: Any, held: Any) -> bool:
    if isinstance(expected, float):
        return math.isclose(expected, held, rel_tol=1e-6, abs_tol=1e-9)
    return bool(expected == held)
