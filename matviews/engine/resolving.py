"""From logged links to keys of a view, by committed rows of the tables between."""

from collections.abc import Iterable
from typing import Any

from ..changes import Taken
from ..queryset import Key, Plan, from_json

__all__ = ["resolve"]


def resolve(plan: Plan, taken: Iterable[Taken], most: int) -> set[Key] | None:
    """The keys that changes concern; None if any key may be concerned, or more than `most` are."""
    if most < 0:
        return None
    by_table: dict[str, list[Any]] = {}
    for each in taken:
        by_table.setdefault(each.table, []).append(each.links)
    keys: set[Key] = set()
    for table, links in by_table.items():
        found = _keys(plan, table, links, most + 1)
        if found is None:
            return None
        keys |= found
        if len(keys) > most:
            return None
    return keys


def _keys(plan: Plan, table: str, logged: list[Any], most: int) -> set[Key] | None:
    if None in logged or (table and table not in plan.links) or plan.path.staged:
        return None
    if not table:  # keys that somebody has marked
        return {from_json(plan.key_fields, key) for keys in logged for key in keys}
    keys: set[Key] = set()
    for link in plan.links[table]:
        if not all(each.keys() >= set(link.columns) for each in logged):
            return None  # logged by triggers of another version
        values = {tuple(each[column] for column in link.columns) for each in logged}
        keys |= plan.linked_keys(link, list(values), most)
    return keys
