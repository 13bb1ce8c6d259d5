"""The benchmarks of the engine's own share of a batch and of queryset views: `python -m benchmarks`."""
