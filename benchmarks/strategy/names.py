"""Names of ways, changes and views, for figures and pictures: no models are needed for them."""

from collections.abc import Mapping

__all__ = [
    "AFTER_OTHERS", "AFTER_SAME", "CHANGES", "CHOSEN", "COLD", "FORCED", "NOISE", "VIEWS",
    "worst_ratio",
]  # fmt: skip

COLD, AFTER_OTHERS, AFTER_SAME = "cold", "after others", "after same"
CHOSEN = (COLD, AFTER_OTHERS, AFTER_SAME)
FORCED = ("by_keys", "full", "full_staged")
NOISE = 0.02  # seconds that say nothing about the choice
CHANGES = ("1 row", "0.1 %", "1 %", "10 %", "1 group", "1 store", "new rows")
VIEWS = {
    "ByKind": "5 kinds, no index",
    "ByMonth": "60 months",
    "ByMonthAndStatus": "180 months and statuses",
    "ByKindAndDay": "150 kinds and days",
    "BySku": "many articles, indexed",
    "BySkuWithoutIndex": "many articles, no index",
    "ByStore": "200 stores and their sales",
    "ByRegion": "10 regions of the dimension",
    "ByRegionAndMonth": "600 regions and months",
    "Ranking": "a ranking of 200 shops",
}


def worst_ratio(seconds: Mapping[str, float]) -> float:
    """The worst choice of a cell, beyond `NOISE`, relative to the best strategy."""
    best = min(seconds[way] for way in FORCED if way in seconds)
    return max(0.0, max(seconds[way] for way in CHOSEN) - NOISE) / best
