"""Several phases from one evaluation of the source, for some keys or for all.

Where one statement can write in several of its parts, all phases are one statement. Elsewhere, the
rows of the source go into a temporary table, which the statements of the phases read. No two phases
write the same row: a key has a row either in the source, or in the view, or in both.
"""

from collections.abc import Collection, Sequence

from ...databases import Dialect, staging_of
from ...databases.fields import WHOLE
from ...databases.keys import Keys, KeySelection
from ...databases.sql import SQL, Array, joined
from ...phases import Phase
from .stage_reader import StageReader
from .statements import EVERYTHING, Statements

__all__ = ["do_keys_together", "do_together"]

EVALUATED = "matviews_evaluated"  # the temporary table, or part of a statement, with the rows


def do_keys_together(
    statements: Statements, phases: Collection[Phase], keys: Keys, arrays: Sequence[Array]
) -> dict[Phase, int]:
    """Run phases for some keys, whose parts are `Dialect.arrays`; the rows that each wrote."""
    if not statements.dialect.has_writing_parts:
        return _through_temporary(statements, phases, keys)[1]
    [statement] = statements.compiled_once(
        phases, keys, arrays, lambda: [_in_parts(statements, phases, keys)]
    )
    _keys, *written = statements.row(statement) or ()
    return dict(zip(phases, written, strict=True))


def do_together(statements: Statements, phases: Collection[Phase]) -> tuple[int, dict[Phase, int]]:
    """Run phases for all keys; the number of the source's keys, and the rows that each wrote."""
    if not statements.dialect.has_writing_parts:
        return _through_temporary(statements, phases, EVERYTHING)
    keys, *written = statements.row(_in_parts(statements, phases, EVERYTHING)) or ()
    return keys, dict(zip(phases, written, strict=True))


def _in_parts(statements: Statements, phases: Collection[Phase], within: KeySelection) -> SQL:
    """A statement that runs each phase as a part, and counts keys and rows.

    All parts see the view as it was before.
    """
    rows, dialect = statements.reader.rows(within), statements.dialect
    evaluated = _reading(statements, dialect.name(EVALUATED))
    parts = list[SQL]()
    for phase in phases:
        [part] = evaluated.of(phase, _rows_of_view(phase, within))
        if phase is Phase.DELETE and isinstance(within, Keys) and _are_numbers(statements, within):
            part = _unless_all_found(part, dialect.arrays(within)[0])
        parts.append(SQL(f"matviews_{phase.value} AS ({part.text} RETURNING 1)", part.params))
    counts = ", ".join(f"(SELECT count(*) FROM matviews_{phase.value})" for phase in phases)
    written = joined(", ", parts)
    return SQL(
        f"WITH {EVALUATED} ({_columns(statements, dialect)}) AS MATERIALIZED ({rows.text}), "
        f"{written.text} SELECT (SELECT count(*) FROM {EVALUATED}), {counts}",
        (*rows.params, *written.params),
    )


def _are_numbers(statements: Statements, within: Keys) -> bool:
    """Whether keys are whole numbers: other values may be equal in the source and not in the view.

    If all are numbers, the source has a row for each key if it has as many rows as there are keys.
    """
    whole = all(kind == WHOLE for kind in statements.kinds)
    return whole and all(type(part) is int for key in within.keys for part in key)


def _unless_all_found(delete: SQL, keys: Array) -> SQL:
    """The same DELETE; it reads nothing of the view if the source has a row for each key."""
    some_missing = f"(SELECT count(*) FROM {EVALUATED}) < cardinality(%s::text[])"
    return SQL(f"{delete.text} AND {some_missing}", (*delete.params, keys))


def _through_temporary(
    statements: Statements, phases: Collection[Phase], within: KeySelection
) -> tuple[int, dict[Phase, int]]:
    dialect, source = statements.dialect, statements.source
    staging, table = staging_of(dialect.using), dialect.temporary(EVALUATED)
    create = staging.create(
        table,
        source.model._meta.db_table,
        [column.field for column in source.columns],
        statements.key_fields,
        dialect,
        temporary=True,
    )
    rows, columns = statements.reader.rows(within), _columns(statements, dialect)
    statements.run(*map(SQL, staging.replacing(table, create)))
    keys = statements.run(SQL(f"INSERT INTO {table} ({columns}) {rows.text}", rows.params))
    evaluated, written = _reading(statements, table), dict.fromkeys(phases, 0)
    all_found = (
        isinstance(within, Keys) and keys == len(within.keys) and _are_numbers(statements, within)
    )
    for phase in phases:
        if phase is not Phase.DELETE or not all_found:
            found = evaluated.of(phase, _rows_of_view(phase, within))
            written[phase] = evaluated.written(phase, found)
    statements.run(SQL(staging.drop_temporary(table)))
    return keys, written


def _reading(statements: Statements, table: str) -> Statements:
    """The statements of the phases, with the source's rows from a table."""
    reader = StageReader(statements.source, statements.dialect, table=table)
    return Statements(statements.source, reader, statements.dialect, statements.kinds, are_few=True)


def _rows_of_view(phase: Phase, within: KeySelection) -> KeySelection:
    """The keys that a phase looks at in the view: the rows of the source show the others."""
    return within if phase is Phase.DELETE else EVERYTHING


def _columns(statements: Statements, dialect: Dialect) -> str:
    return ", ".join(dialect.names([column.field for column in statements.source.columns]))
