"""Where the command prints: lines or one JSON document on stdout, errors on stderr."""

import json
import os
from functools import partial
from typing import IO, Any, cast

from django.core.management.base import BaseCommand, OutputWrapper
from rich.console import Console

from .bars import Bars
from .reporters import Lines, Reporter, Silence

__all__ = ["Output"]


class Output:
    """The command's output, in the format and colours that were asked for.

    Attributes:
        entries: what is told of each view in JSON, or of what `subject` says.
        subject: what the entries are called there.
        maintenance: what is told of the maintenance task in JSON, if anything.
    """

    def __init__(
        self, command: BaseCommand, *, as_json: bool, verbosity: int, no_color: bool
    ) -> None:
        self._stdout, self._stderr = command.stdout, command.stderr
        self._verbosity = verbosity
        self._no_color = no_color or bool(os.environ.get("NO_COLOR"))
        if self._no_color:
            self._stderr.style_func = None
        self.as_json = as_json
        self.entries: list[dict[str, Any]] = []
        self.subject = "views"
        self.maintenance: dict[str, Any] | None = None

    def say(self, line: str) -> None:
        """A line for a person who has not asked for silence."""
        if self._verbosity and not self.as_json:
            self._stdout.write(line)

    def warn(self, line: str) -> None:
        """A line on stderr."""
        self._stderr.write(line)

    def finish(self, *, error: str) -> None:
        """Print the JSON document, if that is the format."""
        if self.as_json:
            document: dict[str, Any] = {self.subject: self.entries}
            if self.maintenance is not None:
                document["maintenance"] = self.maintenance
            document["error"] = error
            self._stdout.write(json.dumps(document, indent=2))

    def console(self) -> Console:
        """Stdout for rich: a terminal only if it is one, whatever the environment forces."""
        return Console(
            file=cast("IO[str]", _Unended(self._stdout)),
            force_terminal=self._stdout.isatty(),
            no_color=self._no_color,
        )

    def reporter(self) -> Reporter:
        """Who tells of a refresh while it works."""
        if self.as_json or not self._verbosity:
            return Silence(self.warn)
        console, batches = self.console(), self._verbosity > 1
        if console.is_terminal and not console.is_dumb_terminal:
            return Bars(console, batches=batches)
        return Lines(self._stdout.write, self.warn, batches=batches)


class _Unended:
    """Django's output as a plain file: it would end each piece that rich writes with a newline."""

    def __init__(self, output: OutputWrapper) -> None:
        self.write = partial(output.write, ending="")
        self.flush = output.flush
        self.isatty = output.isatty
        self.encoding = getattr(output, "encoding", None) or "utf-8"
