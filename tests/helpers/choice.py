"""Which files of tests a run begins with, and which it repeats on one server, not on both.

The files of `ON_ONE_SERVER` are about bookkeeping in Python, through the ORM. With SQLite and
one server, the other one repeats what is known. What the servers do differently has files that run
on both: triggers, statements, locks, transactions, collations, errors, random histories. With
`--all-servers` or `--long`, each test marked `database` runs on both.
"""

# Begun first, so that none of them is what the others wait for at the end.
LONGEST_FILES = (
    "changes/test_tracking.py",
    "project/test_live.py",
    "scenarios/test_workers.py",
    "admin/test_browser.py",
    "project/test_docs.py",
    "queryset/strategy/test_choose.py",
    "engine/parking/test_splitting.py",
    "queryset/test_shapes.py",
    "management/test_command_process.py",
    "scenarios/test_kills.py",
    "tasks/test_beat.py",
    "scenarios/test_joining_processes.py",
    "histories/test_interleavings.py",
    "histories/test_tracking.py",
    "queryset/test_hostile_schemas.py",
    "admin/test_list_browser.py",
    "project/test_example_project.py",
    "queryset/sql/test_date_ranges.py",
)

ON_ONE_SERVER = {
    "postgres": (
        "admin/test_refresh_admin.py",
        "engine/dispatch/test_closing.py",
        "engine/work/test_costs.py",
        "engine/status/test_data_status.py",
        "engine/failures/test_backoff.py",
        "engine/batches/test_faults.py",
        "engine/requests/test_refresh_order.py",
        "engine/requests/test_pausing.py",
        "engine/dispatch/test_quiet_hours.py",
        "engine/requests/test_stopping.py",
        "engine/verification/test_runs.py",
        "project/test_reference.py",
        "scenarios/test_bad_input.py",
        "scenarios/test_faulty_views.py",
        "scenarios/test_original_readme.py",
        "scenarios/test_workers.py",
        "tasks/test_alarms.py",
        "tasks/test_heartbeat.py",
        "tasks/test_hints.py",
        "tasks/test_queues.py",
        "tasks/test_schedules.py",
        "tasks/test_crowded_queues.py",
        "test_health.py",
        "test_metrics.py",
        "test_testing.py",
    ),
    "mariadb": (
        "admin/test_list.py",
        "admin/test_neighbours_section.py",
        "admin/test_pages.py",
        "admin/test_source_section.py",
        "admin/test_verification_section.py",
        "engine/requests/test_after_commit.py",
        "engine/batches/test_batch.py",
        "engine/requests/test_controls.py",
        "engine/batches/test_derived.py",
        "engine/dispatch/test_governor.py",
        "engine/test_history.py",
        "engine/on_change/test_due_refreshes.py",
        "engine/batches/test_overhead.py",
        "engine/batches/test_pacing.py",
        "engine/status/test_recent_refreshes.py",
        "engine/status/test_statuses.py",
        "engine/on_change/test_unlogged_work.py",
        "engine/on_change/test_waves.py",
        "management/test_command_process.py",
        "management/test_verify.py",
        "management/test_waiting.py",
        "queryset/analysis/test_nulls.py",
        "queryset/analysis/test_unknown_queries.py",
        "queryset/test_checks.py",
        "queryset/test_explain.py",
        "scenarios/test_drill.py",
        "scenarios/test_turns.py",
        "scenarios/test_verify_workers.py",
        "tasks/test_following.py",
    ),
}


def place(file: str) -> int:
    """Where a file of `tests/` stands in the order; all that are not among the longest, last."""
    return LONGEST_FILES.index(file) if file in LONGEST_FILES else len(LONGEST_FILES)


def is_left_to_another_server(file: str, database: str) -> bool:
    """Whether an ordinary run on a database leaves out a file of `tests/`.

    Args:
        file: its path within `tests/`.
        database: `sqlite`, `postgres` or `mariadb`.
    """
    return database in ON_ONE_SERVER and any(
        file in files for server, files in ON_ONE_SERVER.items() if server != database
    )
