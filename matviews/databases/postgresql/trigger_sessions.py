"""PostgreSQL: how a trigger finds out whether the session need not be logged."""

from ..base.triggers import LOG_SECRET, digest
from ..trigger_spec import TriggerSpec
from .trigger_columns import TriggerColumns

__all__ = ["BATCH", "SUPPRESSED", "TriggerSessions"]

SUPPRESSED, BATCH = "matviews.suppressed", "matviews.batch"


class TriggerSessions(TriggerColumns):
    """Settings of the session, which prove that it knows the secret."""

    def _leave_early(self, table: str, spec: TriggerSpec) -> str:
        """Log nothing that is suppressed, and no batch that nobody needs to know of.

        The secret is read only if the session claims to know it.
        """
        return "".join(
            f"IF {names} THEN IF {knows} THEN RETURN NULL; END IF; END IF; "
            for setting in ([SUPPRESSED, BATCH] if spec.skips_batches else [SUPPRESSED])
            for names, knows in [self._claims(setting, table)]
        )

    def is_batch(self, table: str) -> str:
        names, knows = self._claims(BATCH, table)
        return f"(CASE WHEN {names} THEN {knows} ELSE false END)"

    def _claims(self, setting: str, table: str) -> tuple[str, str]:
        """Whether a setting of the session names the table, and whether it has the secret."""
        session = f"current_setting({self.literal(setting)}, true)"
        names = f"strpos(coalesce({session}, ''), {self.literal(digest(table))}) > 0"
        knows = (
            f"EXISTS (SELECT 1 FROM {self._of_ours(LOG_SECRET)} "
            f"WHERE value = split_part({session}, ' ', 1))"
        )
        return names, knows
