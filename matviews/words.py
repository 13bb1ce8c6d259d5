"""Numbers and lengths of time as a person would say them, and what is said in several places."""

__all__ = ["NOT_MIGRATED", "counted", "duration"]

NOT_MIGRATED = "Tables of matviews are missing, or older than its code: run `manage.py migrate`."


def counted(number: int, noun: str) -> str:
    """A number of things, as in "1 batch" and "2,000 batches"."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


def duration(seconds: float) -> str:
    """A length of time in words."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
