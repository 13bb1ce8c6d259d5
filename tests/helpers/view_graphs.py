"""Views that read each other, each of whose rows is a sum over those that it reads."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from django.db import models
from django.db.models import F, OuterRef, Subquery
from django.db.models.functions import Coalesce

from matviews import MaterializedView, changes, engine
from matviews.models import Refresh, RefreshSchedule, ViewControl
from matviews.states import RefreshState
from matviews.tasks import inline, polling
from tests.helpers import tables
from tests.helpers.view_classes import run

__all__ = ["CHAIN", "DIAMOND", "Views", "built", "label"]

#: By view, the views that it reads; without any, it reads the table of the source.
CHAIN = {"A": "", "B": "A", "C": "B", "D": "C", "E": "D"}
DIAMOND = {"A": "", "B": "A", "C": "A", "D": "BC"}


def label(name: str) -> str:
    """The label of a view."""
    return f"shapes.{name}"


def label_names(labels: Sequence[str]) -> str:
    """The names of views, one after the other."""
    return "".join(each.removeprefix("shapes.") for each in labels)


class Views:
    """Views on change, and the table that they are computed from."""

    def __init__(self, reads: Mapping[str, str], base: type[Any], models: dict[str, Any]) -> None:
        self.reads, self.base, self.models = reads, base, models
        self.poller = engine.ChangePoller()

    def control(self, name: str) -> ViewControl:
        return ViewControl.objects.get(label=label(name))

    def set(self, name: str, **values: Any) -> None:
        """Change the control of a view."""
        ViewControl.objects.filter(label=label(name)).update(**values)

    def change(self, key: int = 1, by: int = 1) -> None:
        """Change a row of the source."""
        self.base.objects.filter(pk=key).update(n=F("n") + by)

    def look(self) -> str:
        """The names of the views that are due."""
        return label_names([each.label for each in self.poller.poll()])

    def look_and_run(self) -> str:
        """Refresh what is due at one look; the names of the views."""
        views = polling.request_due(self.poller)
        return "".join(map(self._run, views))

    def settle(self, looks: int = 30) -> str:
        """Refresh until nothing is due; the names of the views, in the order of refreshes."""
        ran = ""
        for _look in range(looks):
            found = self.look_and_run()
            if not found:
                return ran
            ran += found
        raise AssertionError(f"no rest after {ran}")

    def request(self, name: str, *, around: bool = False) -> None:
        """Request a refresh, and of views around it if wanted, without running it."""
        engine.request_with_neighbours(label(name), upstream=around, downstream=around)

    def finish(self) -> None:
        """Run what is open, and refresh until nothing is due."""
        while left := Refresh.objects.filter(state=RefreshState.OPEN).order_by("pk"):
            inline.run_until_idle(left[0].view.shards.values_list("pk", flat=True))
        self.settle()

    def _run(self, view_id: int) -> str:
        refresh = Refresh.objects.filter(view=view_id, state=RefreshState.OPEN).order_by("pk")[0]
        ended = inline.run_to_end(refresh)
        return label_names([ended.view.label])

    def last(self, name: str) -> Refresh:
        """The last refresh of a view."""
        return Refresh.objects.filter(view__label=label(name)).order_by("-pk")[0]

    def rows(self, name: str) -> dict[int, int]:
        """The rows of a view, by key."""
        return dict(self.models[name].objects.values_list("ref", f"n_{name.lower()}"))

    def expected(self, name: str) -> dict[int, int]:
        """The rows that it should have."""
        base = dict(self.base.objects.values_list("pk", "n"))
        return {key: n * self._ways(name) for key, n in base.items()}

    def _ways(self, name: str) -> int:
        return sum(map(self._ways, self.reads[name])) if self.reads[name] else 1

    def is_right(self) -> bool:
        """Whether all rows of all views are as they should be."""
        return all(self.rows(name) == self.expected(name) for name in self.reads)


@contextmanager
def built(
    reads: Mapping[str, str], delay: int | None = 0, *, hooks: Collection[str] = ()
) -> Iterator[Views]:
    """Views that are tracked and up to date. Within `tables.alone`.

    Args:
        reads: the names of views, each after those that it reads.
        delay: of their schedules on change, in seconds; None for no schedules.
        hooks: the names of those that have hooks. They read one view at most, and fail while
            their `broken` is true. Nobody sees their changes.
    """
    base = tables.model("Base", n=models.IntegerField())
    made: dict[str, Any] = {}
    for name, read in reads.items():
        above = [made[each] for each in read]
        made[name] = (
            _of_hooks(name, *above, base) if name in hooks else _view(name, above, read, base)
        )
    with tables.made(base, *made.values()):
        base.objects.bulk_create(base(n=10 * number) for number in range(1, 4))
        changes.install(engine.alias())
        for name in reads:
            run(label(name))
        RefreshSchedule.objects.all().delete()
        for control in ViewControl.objects.all() if delay is not None else ():
            RefreshSchedule.objects.create(
                view=control, on_change=True, every=delay, period="seconds"
            )
        try:
            yield Views(reads, base, made)
        finally:
            changes.remove(engine.alias())


def _view(name: str, above: list[Any], names: str, base: type[Any]) -> Any:
    column = f"n_{name.lower()}"

    def source(_cls: Any) -> Any:
        if not above:
            return base.objects.values(ref=F("pk"), **{column: F("n")})
        total: Any = F(f"n_{names[0].lower()}")
        for other, letter in zip(above[1:], names[1:], strict=True):
            same = other.objects.filter(ref=OuterRef("ref"))
            total += Coalesce(Subquery(same.values(f"n_{letter.lower()}")[:1]), 0)
        return above[0].objects.values("ref", **{column: total})

    members: dict[str, Any] = {column: models.IntegerField()}
    return tables.derived_view(source, name=name, ref=tables.key(), **members)


def _of_hooks(name: str, read: type[Any], *_base: type[Any]) -> Any:
    """A view with hooks that makes its rows those of a view, or of the base."""
    column = f"n_{name.lower()}"
    above = f"n_{read.__name__.lower()}"
    key, value = ("pk", "n") if read.__name__ == "Base" else ("ref", above)

    def rows(of: Any, *columns: str) -> dict[int, int]:
        return dict(of.objects.values_list(*columns))

    def needs_insert(cls: Any) -> bool:
        return rows(cls, "ref", column) != rows(read, key, value)

    def do_insert(cls: Any) -> int:
        if cls.broken:
            raise RuntimeError("told to fail")
        have, wanted = rows(cls, "ref", column), rows(read, key, value)
        stale = [ref for ref in have if have[ref] != wanted.get(ref)]
        new = [ref for ref in wanted if have.get(ref) != wanted[ref]]
        cls.objects.filter(ref__in=stale).delete()
        cls.objects.bulk_create(cls(**{"ref": ref, column: wanted[ref]}) for ref in new)
        return len(set(stale) | set(new))

    fields_of_view: dict[str, Any] = {"ref": tables.key(), column: models.IntegerField()}
    options = {"phases": ["insert"], "depends_on": {read._meta.label: None}}
    return tables.model(
        name,
        bases=(MaterializedView, models.Model),
        MatviewMeta=type("MatviewMeta", (), options),
        broken=False,
        needs_insert=classmethod(needs_insert),
        do_insert=classmethod(do_insert),
        **fields_of_view,
    )
