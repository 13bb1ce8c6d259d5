"""What the command prints: lines or one JSON document on stdout, errors on stderr."""

import json
import os
from functools import partial
from typing import IO, Any, cast

from django.core.management.base import BaseCommand, OutputWrapper
from rich.console import Console

from .bars import Bars
from .reporting import Lines, Reporter, Silence

__all__ = ["Output"]


class Output:
    """The command's output, in the format and colours that were asked for."""

    def __init__(
        self, command: BaseCommand, *, as_json: bool, verbosity: int, no_color: bool
    ) -> None:
        self._stdout, self._stderr = command.stdout, command.stderr
        self._verbosity = verbosity
        self._no_color = no_color or bool(os.environ.get("NO_COLOR"))
        if self._no_color:
            self._stderr.style_func = None
        self.as_json = as_json
        #: The objects of the JSON document, usually one per view.
        self.entries: list[dict[str, Any]] = []
        #: Their key in the document.
        self.subject = "views"
        #: What else the document has.
        self.facts: dict[str, Any] = {}

    def say(self, line: str) -> None:
        """Print a line for people, unless verbosity is 0."""
        if self._verbosity and not self.as_json:
            self._stdout.write(line)

    def warn(self, line: str) -> None:
        """Print a line on stderr."""
        self._stderr.write(line)

    def finish(self, *, error: str) -> None:
        """Print the JSON document, if that is the format."""
        if self.as_json:
            document = {self.subject: self.entries, **self.facts, "error": error}
            self._stdout.write(json.dumps(document, indent=2))

    def console(self) -> Console:
        """Stdout for rich: a terminal only if it is one, whatever environment variables say."""
        return Console(
            file=cast("IO[str]", _Unterminated(self._stdout)),
            force_terminal=self._stdout.isatty(),
            no_color=self._no_color,
        )

    def reporter(self) -> Reporter:
        """What shows a refresh while it runs."""
        if self.as_json or not self._verbosity:
            return Silence(self.warn)
        console, batches = self.console(), self._verbosity > 1
        if console.is_terminal and not console.is_dumb_terminal:
            return Bars(console, batches=batches)
        return Lines(self._stdout.write, self.warn, batches=batches)


class _Unterminated:
    """Django's output as a plain file: it does not add a newline to each write."""

    def __init__(self, output: OutputWrapper) -> None:
        self.write = partial(output.write, ending="")
        self.flush = output.flush
        self.isatty = output.isatty
        self.encoding = getattr(output, "encoding", None) or "utf-8"
