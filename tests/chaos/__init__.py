"""Chaos: everything that can fail does, on a schedule, and at the end every row must be right.

`python -m tests.chaos` starts a database server, a broker, workers, beats and writers of its own,
and does to them what its plan says. `make chaos` calls it; CONTRIBUTING.md tells how.
"""
