"""PostgreSQL: how a trigger writes to the value logs of additive views."""

from ..base.sums import WEIGHT
from ..base.triggers import MAX_VALUES
from ..trigger_spec import TriggerSpec
from .trigger_sessions import TriggerSessions

__all__ = ["AFTER", "BEFORE", "TriggerValues"]

BEFORE, AFTER = "matviews_before", "matviews_after"


class TriggerValues(TriggerSessions):
    """A row for each changed row, with a weight."""

    def _values(self, event: str, table: str, spec: TriggerSpec, whole: str) -> str:
        """Statements that write to the value logs; unchanged rows of an UPDATE cancel out.

        Values of a type that is not built in are not compared: somebody else could define how.

        Args:
            event: the event that fires the trigger.
            table: its name.
            spec: what is logged.
            whole: a statement that logs that any row may have changed, for a log that is gone.
        """
        if event == "truncate":
            return ""
        statements = ""
        for log in sorted(spec.value_logs):
            into, names = self._of_ours(log.name), ", ".join(map(self.name, log.columns))
            gone = f" IF to_regclass({self.literal(into)}) IS NULL THEN {whole}"
            missing = f"INSERT INTO {into} ({WEIGHT}) VALUES (NULL);"
            if not all(self._kind(table, column) for column in log.columns):
                statements += f"{gone} ELSE {missing} END IF;"
                continue
            sides = {"insert": {AFTER: 1}, "delete": {BEFORE: -1}}.get(
                event, {BEFORE: -1, AFTER: 1}
            )
            rows = " UNION ALL ".join(
                f"SELECT {weight} AS {WEIGHT}, {names} FROM {side}"
                for side, weight in sides.items()
            )
            logged = f"SELECT {WEIGHT}, {names} FROM ({rows}) matviews_rows"
            if event == "update":
                total = f"sum({WEIGHT})"
                logged = (
                    f"SELECT {total}, {names} FROM ({rows}) matviews_rows "
                    f"GROUP BY {names} HAVING {total} <> 0"
                )
            few = f"SELECT 1 FROM {next(iter(sides))} LIMIT {MAX_VALUES + 1}"
            statements += (
                f"{gone} ELSIF (SELECT count(*) FROM ({few}) matviews_few) > {MAX_VALUES} "
                f"THEN {missing} ELSE INSERT INTO {into} ({WEIGHT}, {names}) {logged}; END IF;"
            )
        return statements
