"""The figures of queryset views as tables for a person."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..report import add
from .figures import Bar, Figures, bars
from .names import called
from .through_worker import Share
from .works import Work

__all__ = ["save", "show"]


def show(figures: Figures, database: str, console: Console) -> None:
    """Print all; `database` goes into the titles."""
    console.print(_works(figures, database))
    if not figures.sizes:
        return
    for table in (_sizes, _waits, _workers, _memory, _bars):
        console.print(table(figures))


def save(figures: Figures, database: str, path: Path) -> None:
    """Put the figures into a JSON file, beside what else it has of the database."""
    found = [{**asdict(bar), "reached": bar.reached} for bar in bars(figures)]
    add(path, database, {"querysets": {**asdict(figures), "bars": found}})


def _table(title: str, *columns: str, last: str = "right") -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns[:-1]:
        table.add_column(column, justify="right" if column else "left")
    table.add_column(columns[-1], justify=last)  # type: ignore[arg-type]
    return table


def _works(figures: Figures, database: str) -> Table:
    title = f"{database}: queryset views, {figures.rows:,} orders, seconds"
    table = _table(title, "", "median", "runs", "ratio", "batches", "rows")
    for work in figures.works:
        table.add_section()
        refresh, *peers = work.ways
        table.add_row(
            f"{work.view}: {work.name}", *_took(work, refresh), "", f"{work.batches}",
            f"{work.rows:,}",
        )  # fmt: skip
        for peer in peers:
            table.add_row(
                f"  peer: {called(peer, work.name)}", *_took(work, peer), f"{work.ratio(peer):.2f}"
            )
    return table


def _took(work: Work, way: str) -> tuple[str, str]:
    took = work.ways[way]
    return f"{took.median:.2f}", f"{took.low:.2f}-{took.high:.2f}"


def _sizes(figures: Figures) -> Table:
    table = _table(
        "as the source grows: seconds, and microseconds per source row", "orders", "full build", "",
        "one statement", " ", "nothing changed", "  ", "longest batch",
    )  # fmt: skip
    for size in figures.sizes:
        cells: list[str] = []
        for took in (size.build, size.statement, size.unchanged):
            cells += [f"{took.median:.2f}", f"{took.median / size.rows * 1e6:.2f}"]
        longest = ", ".join(
            f"{max(each.build, each.unchanged):.2f} of {each.target:g}" for each in size.longest
        )
        table.add_row(f"{size.rows:,}", *cells, longest)
    return table


def _waits(figures: Figures) -> Table:
    table = _table("a writer to the source, milliseconds", "", "p50", "p99", "longest", "changes")
    for name, wait in figures.waits.items():
        table.add_row(
            f"meanwhile: {name}", f"{wait.p50:.2f}", f"{wait.p99:.2f}", f"{wait.longest:.1f}",
            f"{wait.changes:,}",
        )  # fmt: skip
    return table


def _workers(figures: Figures) -> Table:
    table = _table(
        "full builds through workers, seconds", "", "until the end", "hooks", "statements",
        "batches", "not in statements",
    )  # fmt: skip
    for share in figures.shares:
        table.add_row(f"one view, 1 worker{_kept(share)}", *_share(share))
    for each in figures.side_by_side:
        workers = f"{each.workers} worker{'s' * (each.workers > 1)}"
        table.add_row(f"one view, {workers}", f"{each.one:.2f}")
        table.add_row(f"two views, {workers}", f"{each.two:.2f}")
    return table


def _kept(share: Share) -> str:
    return ", connection kept" if share.reuse else ""


def _share(share: Share) -> Iterator[str]:
    for seconds in (share.wall, share.hooks, share.statements):
        yield f"{seconds:.2f}"
    yield f"{share.batches}"
    yield f"{share.overhead:.1%}"


def _memory(figures: Figures) -> str:
    found = ", ".join(f"{mb:+.1f} MB with {rows:,} orders" for rows, mb in figures.memory.items())
    return f"peak memory of a worker in a full build, over an idle one: {found}\n"


def _bars(figures: Figures) -> Table:
    return _verdicts(bars(figures))


def _verdicts(found: Iterable[Bar]) -> Table:
    table = _table("bars", "", "measured", "at most", " ", last="left")
    for bar in found:
        verdict = "reached" if bar.reached else "[red]missed[/red]"
        table.add_row(bar.name, f"{bar.value:.3g}{bar.unit}", f"{bar.most:g}{bar.unit}", verdict)
    return table
