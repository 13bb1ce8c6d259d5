"""Template tags of matviews."""

__all__: list[str] = []
