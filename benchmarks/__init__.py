"""Benchmarks of the engine's share of a batch and of queryset views: `python -m benchmarks`."""
