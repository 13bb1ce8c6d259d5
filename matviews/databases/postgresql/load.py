"""How busy PostgreSQL is."""

from ..base.load import Load, LoadReader

__all__ = ["PostgreSQLLoad"]

OTHERS = "backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()"
READ = f"""
SELECT
  (SELECT extract(epoch FROM max(replay_lag)) FROM pg_catalog.pg_stat_replication),
  (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE state = 'active' AND {OTHERS}),
  (SELECT extract(epoch FROM pg_catalog.clock_timestamp() - min(xact_start))
   FROM pg_catalog.pg_stat_activity
   WHERE datname = pg_catalog.current_database() AND {OTHERS}),
  (SELECT array_agg(c.relname::text) FROM pg_catalog.pg_stat_progress_vacuum p
   JOIN pg_catalog.pg_class c ON c.oid = p.relid
   WHERE p.datname = pg_catalog.current_database())
"""


class PostgreSQLLoad(LoadReader):
    """Without `pg_monitor`, the sessions of other roles show neither state nor times."""

    known = frozenset({"replication_lag", "active_sessions", "transaction_age", "vacuumed"})
    right = "pg_monitor"

    def read(self) -> Load:
        lag, sessions, age, vacuumed = self.row(READ)
        return Load(
            replication_lag=float(lag or 0),
            active_sessions=sessions,
            transaction_age=float(age or 0),
            vacuumed=frozenset(vacuumed or ()),
        )

    def may_see(self) -> bool:
        (may,) = self.row("SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')")
        return bool(may)
