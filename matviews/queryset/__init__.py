"""Views of one queryset: hooks derived from `source()`, as SQL. It knows nothing of refreshes."""

from .analysis.dependencies import declared_dependencies, declared_tables
from .analysis.given_keys import as_key
from .analysis.reading import key_columns
from .analysis.table_query import RowsQuery, RowsTable
from .checks import check_source, check_table
from .current import PARKED, PENDING, CurrentRows, StoredColumns, stored_columns
from .current_sums import CurrentSums
from .differences import Difference, Differences, Kind, compare, ranges
from .explain import ExplainedIndex, Explanation, additive_obstacles, explain, source_sql
from .plan import Plan, fault_of, find_mismatches, fingerprint_of, plan_of, tables_read
from .sharding import Ranges, cut_ranges, key_order, keys_within, known_rows, one_shard_reason
from .sql.adding import (
    Cut,
    add,
    build,
    count_differing,
    count_groups,
    count_moved,
    count_rows,
    lacks_values,
)
from .sql.key_lookups import equal_keys, may_differ_in_spelling, spellings
from .sql.staging import drop_stage, fill_stage, prepare_staging, stage_name, stages, staging_schema
from .sql.statements import Statements
from .sql.sums import GroupSums
from .sql.violations import refused
from .sql.windows import BatchRunner, WindowProgress
from .strategy.assumptions import Compared
from .strategy.links import Link
from .unmigrated import apps_to_migrate, is_missing, names_own_table, unmigrated

__all__ = [
    "PARKED",
    "PENDING",
    "BatchRunner",
    "Compared",
    "CurrentRows",
    "CurrentSums",
    "Cut",
    "Difference",
    "Differences",
    "ExplainedIndex",
    "Explanation",
    "GroupSums",
    "Kind",
    "Link",
    "Plan",
    "Ranges",
    "RowsQuery",
    "RowsTable",
    "Statements",
    "StoredColumns",
    "WindowProgress",
    "add",
    "additive_obstacles",
    "apps_to_migrate",
    "as_key",
    "build",
    "check_source",
    "check_table",
    "compare",
    "count_differing",
    "count_groups",
    "count_moved",
    "count_rows",
    "cut_ranges",
    "declared_dependencies",
    "declared_tables",
    "drop_stage",
    "equal_keys",
    "explain",
    "fault_of",
    "fill_stage",
    "find_mismatches",
    "fingerprint_of",
    "is_missing",
    "key_columns",
    "key_order",
    "keys_within",
    "known_rows",
    "lacks_values",
    "may_differ_in_spelling",
    "names_own_table",
    "one_shard_reason",
    "plan_of",
    "prepare_staging",
    "ranges",
    "refused",
    "source_sql",
    "spellings",
    "stage_name",
    "stages",
    "staging_schema",
    "stored_columns",
    "tables_read",
    "unmigrated",
]
