"""The benchmark of the engine's own share of a batch: `python -m tests.bench`."""
