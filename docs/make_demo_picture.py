# ruff: noqa: INP001
"""Draws docs/demo.svg, the picture in the README, by running the demo.

Run it where the demo runs: .venv/bin/python docs/make_demo_picture.py
"""

import os
import re
import sys
from functools import partial
from io import StringIO
from pathlib import Path

import django
from django.core.management import call_command
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 90


class Screen(StringIO):
    """A terminal that remembers its last picture: progress bars draw over themselves."""

    CODES = re.compile(r"(\n|\r|\x1b\[\d*A|\x1b\[2K|\x1b\[\?25[lh])")

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.row = [""], 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for piece in self.CODES.split(text):
            self._take(piece)
        return len(text)

    def _take(self, piece: str) -> None:
        if piece == "\n":
            self.row += 1
            self.lines += [""] * (self.row == len(self.lines))
        elif piece.endswith("A") and piece.startswith("\x1b"):
            self.row -= int(piece[2:-1] or 1)
        elif piece == "\x1b[2K":
            self.lines[self.row] = ""
        elif not self.CODES.fullmatch(piece):
            self.lines[self.row] += piece


def main() -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "example_project")]
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "COLUMNS": str(WIDTH),
        "TERM": "xterm-256color",
    }
    django.setup()

    from flights.demo import run
    from flights.management.commands.demo import DATABASE
    from flights.management.databases import use_file

    use_file(DATABASE, empty=True)
    screen = Screen()
    screen.write("$ make demo\n")
    command = partial(call_command, "update_materialized_views", stdout=screen)
    if not run(Console(file=screen), command):
        sys.exit("A view differs from its recomputation.")
    picture = Console(record=True, file=StringIO(), width=WIDTH)
    picture.print(Text.from_ansi("\n".join(screen.lines)), soft_wrap=True)
    picture.save_svg(str(ROOT / "docs" / "demo.svg"), title="make demo")


if __name__ == "__main__":
    main()
