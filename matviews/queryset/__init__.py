"""Views of one queryset: the hooks derived from `source()`, as SQL. It knows no bookkeeping."""

from .checks import check_source, check_table
from .declared import declared
from .dialects import dialect_of
from .differences import Difference, Differences, Kind, compare, ranges
from .estimates import estimated_rows
from .explain import ExplainedIndex, Explanation, explain
from .fields import is_exact
from .keys import Key, Keys, Range, all_from_json, as_key, from_json, to_json
from .links import Link
from .plans import Plan, fingerprint_of, plan_of, tables_read
from .query import field_of_column
from .staging import drop_stage, fill_stage, stage_name, stages
from .walk import Walk, Walker

__all__ = [
    "Difference",
    "Differences",
    "ExplainedIndex",
    "Explanation",
    "Key",
    "Keys",
    "Kind",
    "Link",
    "Plan",
    "Range",
    "Walk",
    "Walker",
    "all_from_json",
    "as_key",
    "check_source",
    "check_table",
    "compare",
    "declared",
    "dialect_of",
    "drop_stage",
    "estimated_rows",
    "explain",
    "field_of_column",
    "fill_stage",
    "fingerprint_of",
    "from_json",
    "is_exact",
    "plan_of",
    "ranges",
    "stage_name",
    "stages",
    "tables_read",
    "to_json",
]
