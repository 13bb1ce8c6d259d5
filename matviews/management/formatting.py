"""Verifications and explanations of views, as lines for people and as values for JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import date, datetime, time
from typing import Any

from matviews.conf import get_settings
from matviews.engine import KnownCosts, Verification
from matviews.presentation import format_duration, pluralize
from matviews.queryset import Difference, ExplainedIndex, Explanation, Kind
from matviews.states import RefreshStrategy

__all__ = [
    "costs_as_dict", "costs_in_lines", "explanation_as_dict", "explanation_in_lines",
    "tracking_in_lines", "verification_as_dict", "verification_in_lines",
]  # fmt: skip

MAX_VALUE_LENGTH = 60  # characters of a value in a line


def verification_in_lines(found: Verification) -> Iterator[str]:
    """The outcome in one line, then one line for each of the first differences of each kind."""
    sample = f", a sample of about {pluralize(found.sample, 'key')}" if found.sample else ""
    outcome = f"{pluralize(found.rows_compared, 'row')} compared{sample}"
    if found.null_keys:
        outcome += f"; {pluralize(found.null_keys, 'row')} left out, their key is NULL"
    if found.parked:
        outcome += f"; {pluralize(found.parked, 'key')} left out, parked"
    if found.pending:
        outcome += f"; {pluralize(found.pending, 'key')} left out, changes are pending"
    if found.failed:
        outcome += f"; {pluralize(found.failed, 'key')} could not be computed"
    if found.equal:
        but = ", apart from pending changes" if found.pending else ""
        yield f"{found.label}: equals its source{but} ({outcome})"
        return
    counts = f"{found.missing:,} missing, {found.differing:,} differing, {found.surplus:,} surplus"
    repaired = (
        "" if found.repaired is None else f"; repaired, {pluralize(found.repaired, 'row')} written"
    )
    yield f"{found.label}: {counts} ({outcome}){repaired}"
    yield from map(_difference_in_line, _examples(found))
    if found.sums:
        yield (
            f"  the sums of {pluralize(found.sums, 'group')} differ from the source: the next "
            f"refresh recomputes them"
        )
    if found.untracked:
        yield f"  These may be changes since its last refresh: {found.untracked}."


def _examples(found: Verification) -> tuple[Difference, ...]:
    """The first differences; none if the settings do not allow even keys to be shown."""
    return () if get_settings().VALUES_IN_ERRORS == "none" else found.examples


def _difference_in_line(difference: Difference) -> str:
    key, in_view, in_source = difference.key, difference.in_view, difference.in_source
    line = f"  {difference.kind.value} {_in_words(key)}"
    if in_view and in_source:
        unlike = [name for name in in_view if in_view[name] != in_source[name]]
        # Values that differ in the database may look the same in Python.
        names = unlike or [name for name in in_view if name not in key]
        both = (
            f"{name} is {_shown(in_view[name])}, in the source {_shown(in_source[name])}"
            for name in names
        )
        return f"{line}: {'; '.join(both)}"
    values = {n: v for n, v in (in_view or in_source or {}).items() if n not in key}
    side = "in the view" if difference.kind is Kind.SURPLUS else "in the source"
    return f"{line}: {side} {_in_words(values)}" if values else line


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in values.items())


def _shown(value: object) -> str:
    """A value as part of a line, without control characters that a terminal would obey."""
    text = repr(value) if isinstance(value, str) else repr(_plain(value))
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}..."


def verification_as_dict(found: Verification) -> dict[str, Any]:
    """The outcome, with every difference that the lines show, uncut."""
    return {
        "view": found.label,
        "equal": found.equal,
        "compared": found.rows_compared,
        "missing": found.missing,
        "differing": found.differing,
        "surplus": found.surplus,
        "repaired": found.repaired,
        "sample": found.sample,
        "null_keys": found.null_keys,
        "parked": found.parked,
        "pending": found.pending,
        "untracked": found.untracked,
        "sums": found.sums,
        "examples": [
            {
                "kind": each.kind.value,
                "key": _plain(each.key),
                "in_view": _plain(each.in_view),
                "in_source": _plain(each.in_source),
            }
            for each in _examples(found)
        ],
        "failed": found.failed,
        "error": found.error,
    }


def _plain(value: object) -> Any:
    """A field's value as JSON can hold it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # JSON has no infinity or NaN
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value)


def explanation_in_lines(explanation: Explanation) -> Iterator[str]:
    """The strategy and its reason, the indexes, and the SQL of each phase."""
    rows = explanation.estimated_rows
    yield f"{explanation.label}: {explanation.strategy} ({explanation.reason})"
    yield f"  key: {', '.join(explanation.key)}"
    if rows is not None:
        yield f"  rows: about {rows:,}, by the database's estimate"
    if explanation.null_keys:
        yield f"  left out: {pluralize(explanation.null_keys, 'row')} of source() whose key is NULL"
    for index in explanation.indexes:
        yield f"  index of {index.model} ({', '.join(index.fields)}): {_index_in_words(index)}"
    if explanation.staging:
        yield (
            f"  staging table, filled at the start of a full refresh:\n"
            f"{_visible(explanation.staging)};"
        )
    for phase, statement in explanation.statements.items():
        yield f"  {phase}, for one window of keys:\n{_visible(statement)};"


def _visible(sql: str) -> str:
    """SQL without control characters that a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in sql)


def _index_in_words(index: ExplainedIndex) -> str:
    if index.declared:
        return "exists" if index.in_database else "declared but missing: run manage.py migrate"
    if index.in_database:
        return "exists but is not declared, so it is not relied on: add it to Meta.indexes"
    return "missing: add it to Meta.indexes"


def explanation_as_dict(explanation: Explanation) -> dict[str, Any]:
    """The explanation, as values."""
    return {
        "view": explanation.label,
        "strategy": explanation.strategy,
        "reason": explanation.reason,
        "key": list(explanation.key),
        "estimated_rows": explanation.estimated_rows,
        "null_keys": explanation.null_keys,
        "indexes": [asdict(index) for index in explanation.indexes],
        "staging": explanation.staging,
        "statements": dict(explanation.statements),
        "error": "",
    }


def tracking_in_lines(tracking: Mapping[str, Any]) -> Iterator[str]:
    """Which changes matter, which keys they lead to, and whether they are logged."""
    if tracking["reason"]:
        yield f"  changes are not tracked: {tracking['reason']}"
    elif tracking["incremental_obstacle"]:
        way_out = f". {tracking['way_out']}" if tracking["way_out"] else ""
        yield f"  every change causes a full refresh: {tracking['incremental_obstacle']}{way_out}"
    for table, spec in tracking["tables"].items():
        columns = "any column" if spec["columns"] is None else ", ".join(spec["columns"])
        links = map(_link_in_words, spec["links"])
        leads = " and ".join(dict.fromkeys(links)) or "a full refresh"
        logged = "logged" if spec["logged"] else "not logged, so every refresh is full"
        yield _visible(
            f"  changes of {table} ({columns or 'rows added or removed'}): {leads}; {logged}"
        )


def costs_in_lines(costs: Mapping[str, Any], obstacle: str) -> Iterator[str]:
    """What refreshes took, and which strategy follows from it.

    Args:
        costs: as `costs_as_dict` returns them.
        obstacle: why every change causes a full refresh; "" if it does not.
    """
    taken = [
        f"{each['keys'][0]:,} to {each['keys'][1]:,} keys {format_duration(each['seconds'])}"
        for each in costs["by_keys"]
    ]
    if costs["full"] is not None:
        taken.insert(0, f"a full one {format_duration(costs['full'])}")
    if taken:
        yield f"  last refreshes: {', '.join(taken)}"
    if costs["pinned"]:
        is_full = obstacle and costs["pinned"] == RefreshStrategy.BY_KEYS
        full = ", but every refresh is full (see above)" if is_full else ""
        yield f"  strategy of refreshes: pinned to {costs['pinned']}{full}"
    elif costs["max_keys"] is not None:
        keys = pluralize(costs["max_keys"], "dirty key")
        yield f"  strategy of refreshes: by keys up to {keys}, in full beyond"


def costs_as_dict(costs: KnownCosts | None) -> dict[str, Any]:
    """The same as values, in seconds."""
    known = costs or KnownCosts(None, None, {}, None)
    return {
        "pinned": known.pinned,
        "full": known.full,
        "by_keys": [{"keys": keys, "seconds": seconds} for keys, seconds in known.by_keys.items()],
        "max_keys": known.max_keys,
    }


def _link_in_words(link: Mapping[str, Any]) -> str:
    kind = f"keys by {link['key_part']}" if link["key_part"] else "keys"
    kind = "keys given by depends_on" if link["declared"] else kind
    through = f" through {', '.join(link['through'])}" if link["through"] else ""
    return f"{kind}, from {', '.join(link['columns'])}{through}"
