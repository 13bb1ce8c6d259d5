"""What the environment of a process of chaos says; nothing is imported here."""

__all__ = ["BROKEN", "CLOCK", "IMPATIENT", "VERSION"]

#: The path of the file with how many seconds the wall clock is ahead.
CLOCK = "MATVIEWS_CHAOS_CLOCK"
#: How the engine is broken on purpose, a key of `broken.KINDS`; "" if it is not.
BROKEN = "MATVIEWS_CHAOS_BROKEN"
#: The version of the code: a deploy changes it.
VERSION = "MATVIEWS_CHAOS_VERSION"
#: Set where a process must not wait long for locks, as for those of a fault of its own.
IMPATIENT = "MATVIEWS_CHAOS_IMPATIENT"
