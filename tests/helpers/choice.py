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
    "engine/test_splitting.py",
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
        "engine/test_closing.py",
        "engine/test_costs.py",
        "engine/test_data_status.py",
        "engine/test_failures.py",
        "engine/test_faults.py",
        "engine/test_order.py",
        "engine/test_pausing.py",
        "engine/test_quiet_hours.py",
        "engine/test_stopping.py",
        "engine/test_verify_runs.py",
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
        "tasks/test_turns.py",
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
        "engine/test_after_commit.py",
        "engine/test_batch.py",
        "engine/test_controls.py",
        "engine/test_derived.py",
        "engine/test_governor.py",
        "engine/test_history.py",
        "engine/test_on_change.py",
        "engine/test_overhead.py",
        "engine/test_pacing.py",
        "engine/test_recent_refreshes.py",
        "engine/test_status.py",
        "engine/test_unlogged_work.py",
        "engine/test_waves.py",
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
