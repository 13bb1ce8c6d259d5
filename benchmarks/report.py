"""The figures of one database as tables for a person, and as JSON for a machine."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .measure import Idle, Long, Synchronous, Times
from .scheduled import Cost, Scheduled
from .through_redis import Hops

AIMED_AT = "postgres"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All that was measured on one database, and where."""

    environment: dict[str, str]
    database: str
    synchronous: Synchronous
    idle: Idle
    through_redis: tuple[Hops, ...]
    long: Long
    scheduled: Scheduled


@dataclass(frozen=True)
class Aim:
    """The most that something may cost on PostgreSQL."""

    name: str
    most: float
    unit: str

    def verdict(self, value: float) -> str:
        over = value - self.most
        outcome = "reached" if over <= 0 else f"[red]missed by {over:.3g}[/red]"
        return f"at most {self.most:g}{self.unit}: {outcome}"


STATEMENTS = Aim("statements per batch", 6, "")
BATCH = Aim("synchronous batch", 5, " ms")
HOP = Aim("batch through Redis", 12, " ms")
IDLE = Aim("statements of an idle refresh", 10, "")


def values(figures: Figures) -> list[tuple[Aim, float]]:
    """What the aims are about, as measured; nothing where they are no aims."""
    if figures.database != AIMED_AT:
        return []
    return [
        (STATEMENTS, figures.synchronous.statements),
        (BATCH, figures.synchronous.batch.median),
        *((HOP, hops.batch.median) for hops in figures.through_redis if not hops.reuse),
        (IDLE, figures.idle.statements),
    ]


def save(figures: Figures, path: Path) -> None:
    """Put the figures into a JSON file under the name of their database; keep those of others."""
    aims = [
        {"name": aim.name, "most": aim.most, "value": value, "reached": value <= aim.most}
        for aim, value in values(figures)
    ]
    add(path, figures.database, {**asdict(figures), "aims": aims})


def read(path: Path, database: str) -> dict[str, Any]:
    """The values of a database in a JSON file; none if there is no file."""
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found: dict[str, Any] = kept.get(database, {})
    return found


def add(path: Path, database: str, more: dict[str, Any]) -> None:
    """Put values of a database into a JSON file; keep the others that it has."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[database] = {**kept.get(database, {}), **more}
    path.write_text(json.dumps(kept, indent=2) + "\n")


def show(figures: Figures, console: Console) -> None:
    console.print(", ".join(f"{name} {value}" for name, value in figures.environment.items()))
    verdicts = {aim.name: aim.verdict(value) for aim, value in values(figures)}
    console.print(_statements(figures, verdicts))
    console.print(_times(figures, verdicts))
    console.print(_long(figures.long))
    console.print(_scheduled(figures))


def _statements(figures: Figures, verdicts: dict[str, str]) -> Table:
    table = Table(title=f"{figures.database}: statements", title_justify="left")
    for column in ("", "statements", "aim"):
        table.add_column(column, justify="right" if column == "statements" else "left")
    table.add_row("a batch", f"{figures.synchronous.statements}", verdicts.get(STATEMENTS.name))
    table.add_row("an idle refresh", f"{figures.idle.statements}", verdicts.get(IDLE.name))
    return table


def _times(figures: Figures, verdicts: dict[str, str]) -> Table:
    table = Table(title=f"{figures.database}: milliseconds", title_justify="left")
    for column in ("", "median", "p90", "runs", "ratio", "aim"):
        table.add_column(column, justify="left" if column in ("", "aim") else "right")
    for name, times, peer, aim in _rows(figures):
        ratio = f"{times.median / peer.median:.1f}" if peer else ""
        table.add_row(
            name, f"{times.median:.2f}", f"{times.p90:.2f}", f"{times.low:.2f}-{times.high:.2f}",
            ratio, verdicts.get(aim.name) if aim else "",
        )  # fmt: skip
    table.add_row("synchronous batch, CPU time", f"{figures.synchronous.cpu:.2f}")
    return table


def _rows(figures: Figures) -> Iterator[tuple[str, Times, Times | None, Aim | None]]:
    """Each line with the peer that its ratio is against; a peer's own line comes after it."""
    here = figures.synchronous
    yield "synchronous batch", here.batch, here.update, BATCH
    yield "  peer: one UPDATE, committed", here.update, None, None
    yield "  peer: the hooks alone, in a transaction", here.hooks, None, None
    for hops in figures.through_redis:
        kept, aim = (", connection kept", None) if hops.reuse else ("", HOP)
        yield f"batch through Redis{kept}", hops.batch, hops.bare, aim
        yield f"  peer: bare task{kept}", hops.bare, None, None
    yield "idle refresh of three phases", figures.idle.refresh, None, None


def _long(long: Long) -> str:
    return (
        f"{long.batches} batches in one refresh: {long.first:.2f} ms in the first thousand, "
        f"{long.last:.2f} ms in the last, ratio {long.ratio:.2f}; of it CPU time "
        f"{long.cpu_first:.2f} and {long.cpu_last:.2f} ms; resident memory "
        f"{long.rss_growth:+d} KiB after the first thousand\n"
    )


def _scheduled(figures: Figures) -> Table:
    here = figures.scheduled
    title = f"{figures.database}: {here.views} views on schedules, none due"
    table = Table(title=title, title_justify="left")
    for column in ("", "statements", "processor ms", "ratio"):
        table.add_column(column, justify="right" if column else "left")

    def add(name: str, cost: Cost, peer: Cost | None = None) -> None:
        ratio = f"{cost.cpu / peer.cpu:.1f}" if peer else ""
        table.add_row(name, f"{cost.statements}", f"{cost.cpu:.2f}", ratio)

    add("a minute of beat and maintain", here.minute, here.peer_minute)
    add("  peer: a minute of beat with tasks made by hand", here.peer_minute)
    add("beat looks", here.look, here.peer_look)
    add("  peer", here.peer_look)
    add("beat reads all tasks", here.read, here.peer_read)
    add("  peer", here.peer_read)
    add("maintain", here.maintain)
    add("  of it the schedules: reconcile", here.reconcile, here.peer_read)
    return table
