"""Whether the keys of a view can be split into shards that batches refresh in parallel."""

from django.db.models import CheckConstraint, UniqueConstraint

from ...databases import dialect_of
from ...databases.fields import TEXT, family
from ..analysis.source import Source
from ..analysis.unique import other_unique
from .choose import inexact_key_obstacles
from .inspection import Inspection

__all__ = ["sharding_obstacle"]


def sharding_obstacle(source: Source, inspection: Inspection) -> str:
    """Why a view derived from `source()` has one shard, for a person; "" if it may have several."""
    if inspection.unknown:
        return f"source() cannot be analysed ({inspection.unknown})"
    if inspection.strategy.staged:
        return f"a full refresh evaluates its source as a whole: {inspection.strategy.reason}"
    if source.definition.options.additive:
        return "an additive view has one table of sums for all keys"
    if obstacle := next(inexact_key_obstacles(source), None):
        return obstacle.reason
    dialect = dialect_of(source.query.using)
    for column in source.key:
        if dialect.session_collation and family(column.field) == TEXT:
            return (
                f"key field {column.name} is text, and on this database the collation of a session "
                f"may decide which of two texts comes first"
            )
    return _constraint_obstacle(source)


def _constraint_obstacle(source: Source) -> str:
    """Which constraint compares rows of two shards, which no batch can change together."""
    if fields := next(other_unique(source, with_deferrable=True), None):
        names = ", ".join(field.name for field in fields)
        return f"{names} must be unique, so two rows in different shards may violate the constraint"
    for constraint in source.model._meta.constraints:
        if not isinstance(constraint, CheckConstraint | UniqueConstraint):  # as one that excludes
            return f"two rows in different shards may violate the constraint {constraint.name}"
    return ""
