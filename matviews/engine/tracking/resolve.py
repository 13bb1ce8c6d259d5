"""Resolving logged links into keys of a view, through committed rows of the tables in between."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ...changes import QueuedChange
from ...databases.keys import Key, from_json
from ...queryset import Plan

__all__ = ["ResolvedKeys", "resolve"]


class ResolvedKeys(NamedTuple):
    """The keys that changes affect, or why a full refresh is required instead."""

    #: The keys; None if a full refresh is required.
    keys: set[Key] | None
    #: Why a full refresh is required, for a person.
    reason: str = ""
    #: Whether that is because there are too many keys.
    too_many: bool = False


def resolve(
    plan: Plan, queued: Iterable[QueuedChange], max_keys: int, stages: Collection[str] = ()
) -> ResolvedKeys:
    """The keys that changes affect, if they are at most `max_keys`.

    `stages` are staging tables from which a running full refresh fills the view.
    """
    by_table: dict[str, list[QueuedChange]] = {}
    for change in queued:
        if reason := _reason_of_full_refresh(plan, change):
            return ResolvedKeys(None, reason)
        by_table.setdefault(change.table, []).append(change)
    keys: set[Key] = set()
    for table, table_changes in by_table.items():
        resolved = (
            _keys(plan, table, table_changes, max_keys + 1, stages) if max_keys >= 0 else set()
        )
        if resolved is None:
            return ResolvedKeys(None, _unresolved(plan, table))
        keys |= resolved
        if len(keys) > max_keys:
            return ResolvedKeys(
                None, f"more than {max(max_keys, 0):,} keys are dirty", too_many=True
            )
    return ResolvedKeys(keys)


def _unresolved(plan: Plan, table: str) -> str:
    """Why the keys of some changed rows of a table could not be resolved."""
    if any(link.dependency for link in plan.links[table]):
        return f"rows of {table} were deleted, and depends_on cannot inspect them"
    return f"a changed row of {table} has a date that this session cannot read"


def _reason_of_full_refresh(plan: Plan, change: QueuedChange) -> str:
    """Why a change may affect any key, "" if its keys can be resolved."""
    table, links = change.table, change.links
    if isinstance(links, str):
        return links
    if plan.strategy.incremental_obstacle:
        event = f"{table} changed" if table else "keys were marked as dirty"
        way_out = plan.strategy.way_out
        return f"{event}, and {plan.strategy.incremental_obstacle}" + f". {way_out}" * bool(way_out)
    if not table:
        return ""
    if links is None:
        return f"all rows of {table} may have changed, as after TRUNCATE or untracked()"
    if table not in plan.links:
        return f"changes of {table} cannot be mapped to keys"
    if not all(set(change.columns) >= set(link.columns) for link in plan.links[table]):
        return f"changes of {table} were logged by the triggers of another version"
    return ""


def _keys(
    plan: Plan, table: str, queued: Iterable[QueuedChange], max_keys: int, stages: Collection[str]
) -> set[Key] | None:
    if not table:  # keys that were marked by hand
        return {from_json(key) for change in queued for key in change.links or ()}
    keys: set[Key] = set()
    for link in plan.links[table]:
        values = {value for change in queued for value in _values(change, link.columns)}
        linked = plan.linked_keys(link, list(values), max_keys, stages)
        if linked is None:
            return None
        keys |= linked
    return keys


def _values(change: QueuedChange, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The logged values of these columns."""
    if list(columns) == change.columns:
        return map(tuple, change.links or ())
    indexes = [change.columns.index(column) for column in columns]
    return (tuple(link[index] for index in indexes) for link in change.links or ())
