"""Names of time zones, which databases read in different ways."""

import re

__all__ = ["FIXED", "opposite"]

FIXED = re.compile(r"[+-]\d\d:\d\d$")  # a fixed offset at the end of a time zone


def opposite(zone: str) -> str:
    """A fixed offset with the opposite sign; a zone's name unchanged."""
    return FIXED.sub(lambda found: found[0].translate(str.maketrans("+-", "-+")), zone)
