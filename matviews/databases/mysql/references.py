"""MariaDB and MySQL: through which foreign keys changes of one table reach another."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..base.triggers import digest

__all__ = ["CASCADE", "Cascade", "Reference", "cascades_to", "read_references"]

CASCADE = "CASCADE"
ACTS = {CASCADE, "SET NULL", "SET DEFAULT"}
EVENTS = {"delete", "update"}


class Reference(NamedTuple):
    """A foreign key with an action: `ON DELETE` or `ON UPDATE` changes the referring rows."""

    table: str
    columns: tuple[str, ...]
    on_table: str
    on_columns: tuple[str, ...]
    on_delete: str
    on_update: str

    def acts_on(self, event: str) -> bool:
        return (self.on_delete if event == "delete" else self.on_update) in ACTS


class Cascade(NamedTuple):
    """How an event of one table reaches rows of another."""

    #: "delete" or "update".
    event: str
    #: Foreign keys, from the table whose rows are reached up to the one with the event.
    path: tuple[Reference, ...]
    #: Whether `path` reaches exactly the rows that change, and what happens to them is known. If
    #: not, `path` is only the first foreign key, from which the cascade may go on.
    exact: bool

    @property
    def on_table(self) -> str:
        """The table with the event."""
        return self.path[-1].on_table

    @property
    def trigger(self) -> str:
        """What stands for the event in the name of the trigger that logs it."""
        return f"{self.event}_{digest(self.on_table)}"

    @property
    def removes(self) -> bool:
        """Whether the rows that are reached are deleted."""
        return self.event == "delete" and self.path[0].on_delete == CASCADE

    @property
    def copies(self) -> bool:
        """Whether their foreign key gets the new values, and not NULL."""
        return self.event == "update" and self.path[0].on_update == CASCADE


def read_references(connection: Any) -> list[Reference]:
    """The foreign keys of this database that act."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT constraint_name, table_name, referenced_table_name, delete_rule, update_rule "
            "FROM information_schema.referential_constraints "
            "WHERE constraint_schema = DATABASE() AND unique_constraint_schema = DATABASE()"
        )
        acting = [row for row in cursor.fetchall() if not ACTS.isdisjoint(row[3:])]
        if not acting:
            return []
        cursor.execute(
            "SELECT table_name, constraint_name, column_name, referenced_column_name "
            "FROM information_schema.key_column_usage WHERE table_schema = DATABASE() "
            "AND referenced_table_name IS NOT NULL ORDER BY ordinal_position"
        )
        columns: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for table, name, *pair in cursor.fetchall():
            columns.setdefault((table, name), []).append(tuple(pair))
    return [
        Reference(
            table,
            tuple(own for own, _other in columns[table, name]),
            on_table,
            tuple(other for _own, other in columns[table, name]),
            on_delete,
            on_update,
        )
        for name, table, on_table, on_delete, on_update in sorted(acting)
    ]


def cascades_to(table: str, references: Sequence[Reference]) -> list[Cascade]:
    """How events of other tables, or other rows, may change rows of a table.

    If foreign keys lead in a circle, rows may be reached over any number of them.
    """
    paths: list[tuple[Reference, ...]] = [(each,) for each in references if each.table == table]
    found, rest, circle = list[Cascade](), set[tuple[str, Reference]](), False
    for path in paths:  # which grows
        exact = [Cascade(event, path, exact=True) for event in EVENTS if _is_exact(event, path)]
        found += exact
        known = {each.event for each in exact}
        rest |= {(event, path[-1]) for event in EVENTS - known if path[-1].acts_on(event)}
        above = [each for each in references if _continues(each, path[-1])]
        circle = circle or not set(path).isdisjoint(above)
        paths += [(*path, each) for each in above if each not in path]
    if circle:
        edges = {path[-1] for path in paths}
        found, rest = [], {(event, e) for e in edges for event in EVENTS if e.acts_on(event)}
    return [*found, *(Cascade(event, (each,), exact=False) for event, each in sorted(rest))]


def _is_exact(event: str, path: tuple[Reference, ...]) -> bool:
    last, *others = path
    if event == "update":
        return last.acts_on(event) and not others
    return last.acts_on(event) and all(each.on_delete == CASCADE for each in others)


def _continues(above: Reference, below: Reference) -> bool:
    """Whether the rows that one foreign key changes make another one act."""
    if above.table != below.on_table:
        return False
    deleted = above.on_delete == CASCADE and below.acts_on("delete")
    changed = not set(above.columns).isdisjoint(below.on_columns)
    return deleted or (changed and below.acts_on("update"))
