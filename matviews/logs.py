"""Log lines: one line each, `key=value`, with the same keys as `extra` of the record."""

import json
import logging
import re
from enum import Enum
from typing import Any

from .phases import Phase
from .redact import cause, in_one_line

__all__ = ["log"]

NEEDS_QUOTES = re.compile(r'[\s"=]|\A\Z')
# How the error of a refresh begins: with the phases that failed.
PHASES = re.compile(rf"\A(?:(?:{'|'.join(Phase)})(?:, |: ))+")


def log(
    logger: logging.Logger,
    level: int,
    event: str,
    /,
    *,
    exception: BaseException | None = None,
    **fields: Any,
) -> None:
    """Log an event with its fields.

    The message is a template that does not depend on values, so tools can group by it. The record
    has each field as an attribute and, from a warning on, the list `grouping`, which tells causes
    apart. An attribute that the project's `LogRecordFactory` sets stays as it is: `logging` lets
    nobody replace it.

    Args:
        logger: the logger of the caller's module.
        level: as in `logging`.
        event: what happened, in words.
        exception: what to attach to the record; its values must be as `redact` allows.
        fields: by name.
    """
    if not logger.isEnabledFor(level):
        return
    values = {name: _plain(value) for name, value in fields.items()}
    extra = dict(values)
    if level >= logging.WARNING:
        extra["grouping"] = [
            event, *(str(values.get(name, "")) for name in ("view", "phase")), cause(_error(values))
        ]  # fmt: skip
    taken = vars(logger.makeRecord(logger.name, level, "", 0, "", (), None))
    extra = {name: value for name, value in extra.items() if name not in taken}
    template = " ".join([event, *(f"{name}=%s" for name in values)])
    logger.log(
        level, template, *map(_quoted, values.values()), extra=extra, exc_info=exception,
        stacklevel=2,
    )  # fmt: skip


def _error(values: dict[str, Any]) -> str:
    return PHASES.sub("", str(values.get("error", "")))


def _plain(value: object) -> Any:
    """A value that JSON can hold."""
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, bool | int | float | None) else str(value)


def _quoted(value: object) -> str:
    text = in_one_line(str(value))
    return json.dumps(text, ensure_ascii=False) if NEEDS_QUOTES.search(text) else text
