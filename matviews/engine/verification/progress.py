"""How far a background verification is and what it has found, as its row stores it."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ...conf import get_settings
from ...databases.keys import to_json
from ...queryset import Difference, Kind
from .comparison import PartResult

__all__ = ["VerifyProgress"]

MAX_EXAMPLES = 5  # keys of each kind that are stored
MAX_AGAIN = 10_000  # keys that are compared a second time

_KINDS = tuple(kind.value for kind in Kind)


@dataclass(kw_only=True)
class VerifyProgress:
    """What is stored between two slices; all of it is JSON."""

    #: Where `parts` continues; None at the beginning.
    cursor: Any = None
    #: Rows of the source that were compared.
    rows_compared: int = 0
    #: How many keys differ, by kind.
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0))
    #: The first of these, as `{"kind": ..., "key": {name: value}}`.
    examples: list[dict[str, Any]] = field(default_factory=list)
    #: How many keys differed that had, or may have had, a pending change to the end.
    pending: int = 0
    #: Keys that had one in the first pass, and are compared again at the end.
    again: list[list[Any]] = field(default_factory=list)
    #: Whether the first pass is over.
    is_second_pass: bool = False
    #: How many keys are left out because they are parked.
    parked: int = 0
    #: How many rows the repair has written.
    repaired: int = 0
    #: Why a difference may be a change since the last refresh; "" if it cannot.
    untracked: str = ""
    #: Of an additive view, in how many groups its sums differ; None if they were not compared.
    sums: int | None = None
    has_compared_sums: bool = False
    #: How many keys could not be compared, and the first of them with its error.
    failed: int = 0
    error: str = ""

    @classmethod
    def of(cls, stored: dict[str, Any]) -> "VerifyProgress":
        """The progress that was stored, perhaps by another version."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in stored.items() if name in known})

    @classmethod
    def begun_again(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """What stays of it for a run that begins again: wrong sums that are being recomputed."""
        found = cls.of(stored)
        return cls(sums=found.sums, has_compared_sums=True).as_json() if found.sums else {}

    def as_json(self) -> dict[str, Any]:
        """What `of` reads."""
        return asdict(self)

    def begin_second_pass(self) -> None:
        """Compare the keys again that had a pending change."""
        self.is_second_pass, self.cursor = True, None
        self.again = list({repr(key): key for key in self.again}.values())

    def add(self, result: PartResult) -> None:
        """Count what a part has shown."""
        later = [] if self.is_second_pass else list(result.pending)
        later = later[: MAX_AGAIN - len(self.again)]
        self.again += map(to_json, later)
        self.untracked = self.untracked or result.untracked
        self.failed += result.failed
        self.error = self.error or result.error
        self.pending += result.pending_count - len(later)
        self.rows_compared += 0 if self.is_second_pass else result.rows_compared
        for kind, count in result.counts.items():
            self.counts[kind.value] += count
        for each in result.found:
            self._show(each)

    def _show(self, difference: Difference) -> None:
        kind = difference.kind.value
        shown = sum(example["kind"] == kind for example in self.examples)
        if shown < MAX_EXAMPLES and get_settings().VALUES_IN_ERRORS != "none":
            key = {name: _plain(value) for name, value in difference.key.items()}
            self.examples.append({"kind": kind, "key": key})


def _plain(value: object) -> Any:
    return value if isinstance(value, bool | int | None) else str(value)
