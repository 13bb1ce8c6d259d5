"""From logged links to keys of a view, by committed rows of the tables between."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..changes import QueuedChange
from ..databases.keys import Key, from_json
from ..queryset import Plan

__all__ = ["ResolvedKeys", "resolve"]


class ResolvedKeys(NamedTuple):
    """The keys that changes concern; None if that may be any, and why.

    Attributes:
        keys: the keys.
        reason: for a person.
        many: whether the reason is that they are too many.
    """

    keys: set[Key] | None
    reason: str = ""
    many: bool = False


def resolve(
    plan: Plan, taken: Iterable[QueuedChange], most: int, stages: Collection[str] = ()
) -> ResolvedKeys:
    """The keys that changes concern, if they are at most `most`.

    `stages` are staging tables from which a full pass under way fills the view.
    """
    by_table: dict[str, list[QueuedChange]] = {}
    for each in taken:
        if reason := _whole(plan, each):
            return ResolvedKeys(None, reason)
        by_table.setdefault(each.table, []).append(each)
    keys: set[Key] = set()
    for table, entries in by_table.items():
        found = _keys(plan, table, entries, most + 1, stages) if most >= 0 else set()
        if found is None:
            return ResolvedKeys(None, _untold(plan, table))
        keys |= found
        if len(keys) > most:
            return ResolvedKeys(None, f"more than {max(most, 0):,} keys were dirty", many=True)
    return ResolvedKeys(keys)


def _untold(plan: Plan, table: str) -> str:
    """Why it cannot be told which keys some rows of a table lead to."""
    if any(link.dependency for link in plan.links[table]):
        return f"rows of {table} are gone that depends_on would have to look at"
    return f"a changed row of {table} has a date that this session cannot read"


def _whole(plan: Plan, taken: QueuedChange) -> str:
    """Why an entry may concern any key, "" if it does not."""
    table, links = taken.table, taken.links
    if isinstance(links, str):
        return links
    if plan.strategy.incremental_obstacle:
        return f"something has changed in {table or 'the view'}, and {plan.strategy.incremental_obstacle}"
    if not table:
        return ""
    if links is None:
        return f"all rows of {table} may have changed, as after TRUNCATE or untracked()"
    if table not in plan.links:
        return f"rows of {table} have changed, which lead to no key in particular"
    if not all(set(taken.columns) >= set(link.columns) for link in plan.links[table]):
        return f"changes of {table} were logged by the triggers of another version"
    return ""


def _keys(
    plan: Plan, table: str, taken: Iterable[QueuedChange], most: int, stages: Collection[str]
) -> set[Key] | None:
    if not table:  # keys that somebody has marked
        return {from_json(key) for each in taken for key in each.links or ()}
    keys: set[Key] = set()
    for link in plan.links[table]:
        values = {value for each in taken for value in _values(each, link.columns)}
        found = plan.linked_keys(link, list(values), most, stages)
        if found is None:
            return None
        keys |= found
    return keys


def _values(taken: QueuedChange, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of some of an entry's columns."""
    if list(columns) == taken.columns:
        return map(tuple, taken.links or ())
    places = [taken.columns.index(column) for column in columns]
    return (tuple(link[place] for place in places) for link in taken.links or ())
