"""Hooks that do nothing, so that all the time and every statement is the engine's."""

import os
from typing import ClassVar

from matviews import Batch, MaterializedView

from .clock import tick

VARIABLE = "MATVIEWS_BENCH_BATCHES"


class NoHooksMixin(MaterializedView):
    """An insert phase of `batches` batches, each of them full; the other phases need nothing."""

    batches: ClassVar[int] = int(os.environ.get(VARIABLE, "0"))

    @classmethod
    def needs_insert(cls) -> bool:
        return cls.batches > 0

    @classmethod
    def do_insert(cls, limit: int, cursor: int | None) -> Batch:
        tick()
        done = (cursor or 0) + 1
        return Batch(limit, done if done < cls.batches else None)

    @classmethod
    def needs_update(cls) -> bool:
        return False

    @classmethod
    def do_update(cls, limit: int) -> int:
        return 0

    @classmethod
    def needs_delete(cls) -> bool:
        return False

    @classmethod
    def do_delete(cls, limit: int) -> int:
        return 0
