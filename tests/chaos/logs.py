"""What the programs have logged: errors by cause, and batches that were done twice."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

__all__ = ["batches_done_twice", "tracebacks"]

HEADER = re.compile(r"\[[\d\- :,]+: (\w+)/[^\]]*\] (.*)")
BATCH = re.compile(r"batch finished view=.*? shard=(\d+) token=(\d+) outcome=DONE ")
UNHANDLED = re.compile(r"Task (\S+)\[[^\]]*\] raised unexpected")
ERROR = re.compile(r"([A-Za-z_][\w.]*(?:Error|Exception|Refused|Locked|Interrupt|Exit\w*))(?::|$)")
#: Where the message of a log line ends, and its details begin.
DETAILS = re.compile(r"[ :(]+(\w+=|[\[\(<'\"{]|\d).*")


def batches_done_twice(logs: Iterable[Path]) -> list[str]:
    """The shards and tokens for which two workers have logged that they committed a batch."""
    done = Counter(
        batch for log in logs for batch in BATCH.findall(log.read_text(errors="replace"))
    )
    return [f"shard {shard}, token {token}" for (shard, token), times in done.items() if times > 1]


def tracebacks(logs: Iterable[Path]) -> Counter[tuple[str, str]]:
    """How often each class of error was logged with a traceback, by what was logged with it."""
    found: Counter[tuple[str, str]] = Counter()
    for log in logs:
        found.update(_tracebacks(log.read_text(errors="replace").splitlines()))
    return found


def _tracebacks(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    subject, error, within = "(none)", "", False
    for line in [*lines, "[0: END/] "]:
        if header := HEADER.match(line):
            if within:
                yield subject, error
            subject, error, within = _subject(header[2]), "", False
        elif line.startswith("Traceback (most recent call last)"):
            within = True
        elif within and (named := ERROR.match(line)):
            error = named[1].rpartition(".")[2]


def _subject(message: str) -> str:
    if unhandled := UNHANDLED.match(message):
        return f"UNHANDLED in {unhandled[1]}"
    return DETAILS.sub("", message)[:60]
