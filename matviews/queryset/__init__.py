"""Views of one queryset: the hooks derived from `source()`, as SQL. It knows no bookkeeping."""

from .checks import check_source, check_table
from .differences import Difference, Differences, Kind, compare, ranges
from .estimates import estimated_rows
from .explain import ExplainedIndex, Explanation, explain
from .fields import is_exact
from .plans import Plan, fingerprint_of, plan_of, tables_read
from .query import model_of_table
from .staging import drop_stage, fill_stage, stage_name, stages
from .statements import Range
from .walk import Walk

__all__ = [
    "Difference",
    "Differences",
    "ExplainedIndex",
    "Explanation",
    "Kind",
    "Plan",
    "Range",
    "Walk",
    "check_source",
    "check_table",
    "compare",
    "drop_stage",
    "estimated_rows",
    "explain",
    "fill_stage",
    "fingerprint_of",
    "is_exact",
    "model_of_table",
    "plan_of",
    "ranges",
    "stage_name",
    "stages",
    "tables_read",
]
