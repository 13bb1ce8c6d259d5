"""Random histories of an additive view: others write, end and kill between its statements."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from matviews import engine
from matviews.engine.batches import sums as engine_sums
from tests.helpers.current import differences_now
from tests.helpers.state_machines import refreshed_despite
from tests.helpers.sums import kept_of, sums_differ
from tests.helpers.writers import WRITERS, Write, Writer, ending, execute_row_by_row

__all__ = ["forget_values", "run_histories", "trim_all"]


def run_histories(
    view: type[Any],
    tables: Sequence[type[Any]],
    writes: st.SearchStrategy[Write],
    besides: Mapping[str, Callable[[], object]],
    examples: int,
    fill: Callable[[], object] = lambda: None,
    **options: Any,
) -> None:
    """So many histories, each from the same rows.

    Args:
        view: the view.
        tables: the models of the tables that it reads.
        writes: the statements of writers.
        besides: what else may happen, by name.
        examples: how many histories.
        fill: fills the empty tables.
        options: more of Hypothesis's `settings`.
    """

    @settings(
        max_examples=examples, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), **options,
    )  # fmt: skip
    @given(rounds=_rounds(writes, sorted(besides)))
    def history(rounds: list[Any]) -> None:
        for each in tables:
            each._base_manager.all().delete()
        fill()
        with ExitStack() as stack:
            others: list[Any] = [
                stack.enter_context(closing(connection.copy())) for _ in range(WRITERS)
            ]
            writers = [Writer(owner, each) for owner, each in enumerate(others, 1)]
            for turns, beside, kill in rounds:
                _round(view, writers, turns, besides.get(beside), kill)
            for writer in writers:
                writer.end("COMMIT")
        refreshed_despite(None, view)
        assert engine.verify(view).equal
        assert sums_differ(view) == 0

    refreshed_despite(None, view)
    history()


def _rounds(writes: st.SearchStrategy[Write], besides: Sequence[str]) -> st.SearchStrategy[Any]:
    # What a writer writes, how its transaction ends, and before which statement of the refresh on
    # the sums or a log; or in a later round.
    turns = st.tuples(
        st.lists(writes, min_size=1, max_size=3),
        st.sampled_from(["COMMIT", "COMMIT", "ROLLBACK"]),
        st.integers(1, 8) | st.none(),
    )
    beside = st.sampled_from(["", "", "", "", *besides])
    each = st.tuples(
        st.lists(turns, min_size=3, max_size=3), beside, st.none() | st.integers(1, 60)
    )
    return st.lists(each, min_size=1, max_size=6)


def _round(
    view: type[Any],
    writers: list[Writer],
    turns: list[Any],
    beside: Callable[[], object] | None,
    kill: int | None,
) -> None:
    [(own, _end, _when), *others] = turns
    with connection.cursor() as cursor:
        for sql, params in own:
            note(f"{sql} {params}")
            execute_row_by_row(cursor, sql.format(owner=0), params)
    ends: dict[int, list[tuple[Writer, str]]] = {}
    for writer, (writes, how, when) in zip(writers, others, strict=False):
        writer.write(writes)
        if when is not None:
            ends.setdefault(when, []).append((writer, how))
    if beside:
        beside()
    _read(view)
    with ending(ends):
        refreshed_despite(kill, view, killed=lambda: _read(view))
    for writer, how in (each for left in ends.values() for each in left):
        writer.end(how)
    if kept_of(view).drain_number >= 0:
        assert sums_differ(view) == 0


def _read(view: type[Any]) -> None:
    assert differences_now(view) == []


def trim_all() -> None:
    """As for views that nobody refreshes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_sums, "MAX_ENTRIES", 0)
        engine.trim_value_logs()


def forget_values(log: str) -> None:
    """An entry says that changes are missing in a value log."""
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {log} (matviews_weight) VALUES (NULL)")
