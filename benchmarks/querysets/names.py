"""What works and ways are called."""

__all__ = [
    "ALONE", "BUILD", "CHANGED", "LOOP", "NATIVE", "REFRESH", "STATEMENT", "UNCHANGED", "called",
]  # fmt: skip

BUILD, UNCHANGED, CHANGED = "full build", "nothing changed", "10 % of the keys changed"
REFRESH, STATEMENT, LOOP = "refresh", "one statement", "ORM loop"
NATIVE = "REFRESH MATERIALIZED VIEW"
ALONE = "alone"  # nothing goes on meanwhile


def called(way: str, work: str) -> str:
    """What a way is called when it does this work."""
    if work == BUILD or way == REFRESH:
        return way
    return f"{way} CONCURRENTLY" if way == NATIVE else f"{way}, upsert"
