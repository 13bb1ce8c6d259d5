"""MariaDB and MySQL: the bodies of triggers, one for each row."""

import json
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property

from ..base.sums import WEIGHT
from ..base.triggers import MAX_LINK_BYTES, TOO_LONG, Triggers, digest, json_of
from ..trigger_spec import TriggerSpec

__all__ = [
    "INTRODUCER",
    "MODE_BACK",
    "NO_SUCH_COLUMN",
    "NO_SUCH_TABLE",
    "OWN_NUMBER",
    "PLAIN_MODE",
    "UTC_NOW",
    "MySQLTriggerSQL",
]

PLAIN_MODE = "SET @matviews_sql_mode = @@sql_mode, sql_mode = ''"
NO_SUCH_COLUMN, NO_SUCH_TABLE = 1054, 1146
# A session may set the time of its statements, but not that of SYSDATE, which no function returns
# in UTC.
UTC_NOW = "UTC_TIMESTAMP(6) + INTERVAL TIMESTAMPDIFF(MICROSECOND, NOW(6), SYSDATE(6)) MICROSECOND"
# A session may also set the next auto-increment value, which the first insert into any table would
# take.
OWN_NUMBER = "IF @@insert_id <> 0 THEN SET insert_id = 0; END IF;"
INTRODUCER = "_utf8mb4"  # the server may omit it when it shows a trigger
MODE_BACK = "SET sql_mode = @matviews_sql_mode"
# JSON escapes a byte as at most six. An array larger than a packet is NULL on MariaDB, an error on
# MySQL.
MAX_PACKET_BYTES = "@@max_allowed_packet DIV 8"
# Types whose text form is exact whatever the session's settings; for texts, in character sets that
# survive a conversion to UTF-8 and back.
WRITABLE = {
    *("tinyint", "smallint", "mediumint", "int", "bigint", "year", "decimal", "date", "datetime"),
    *("time", "uuid", "inet4", "inet6"),
}
TEXTS = {"char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set"}
CHARSETS = {"utf8mb4", "utf8mb3", "utf8", "latin1", "ascii"}
# The columns that may make UPDATE fail for a row: table, column, whether of the primary key.
KEYS = """
SELECT table_name, column_name, index_name = 'PRIMARY' FROM information_schema.statistics
WHERE table_schema = DATABASE() AND non_unique = 0
UNION SELECT table_name, column_name, 0 FROM information_schema.key_column_usage
WHERE table_schema = DATABASE() AND referenced_table_name IS NOT NULL
UNION SELECT referenced_table_name, referenced_column_name, 0
FROM information_schema.key_column_usage
WHERE table_schema = DATABASE() AND referenced_table_schema = DATABASE()
"""
MEANWHILE = "matviews_meanwhile"  # the row that has the key, after the change


class MySQLTriggerSQL(Triggers):
    """The SQL of triggers."""

    def literal(self, text: str) -> str:
        """What a backslash means depends on `sql_mode`."""
        return f"{INTRODUCER} X'{text.encode().hex()}'" if "\\" in text else super().literal(text)

    def __init__(self, using: str) -> None:
        super().__init__(using)
        self._types: dict[str, dict[str, tuple[str, str]]] = {}

    def statements(self, name: str, event: str, table: str, spec: TriggerSpec) -> Iterator[str]:
        """A trigger always runs with the `sql_mode` that it was created with."""
        yield PLAIN_MODE
        yield (
            f"CREATE TRIGGER {self.name(name)} AFTER {event.upper()} ON {self.name(table)} "
            f"FOR EACH ROW {self._action(event, table, spec)}"
        )
        yield MODE_BACK

    def _action(self, event: str, table: str, spec: TriggerSpec) -> str:
        """The body of a trigger.

        If a column that it names is gone, or a value log, only that error is handled: any row may
        have changed. It is raised before the statement does anything, so it leaves no lock and no
        rollback behind.
        """
        changed = self._changed(table, spec) if event == "update" else {}
        before, after = (
            self._log(table, self._links(table, row, spec), changed) for row in ("OLD", "NEW")
        )
        body = {"insert": after, "delete": before}.get(event, before)
        if event == "update" and spec.links:
            body += f" IF NOT ({self._same(table, spec.links)}) THEN {after} END IF;"
        body += self._values(event, table, spec)
        if event == "update" and spec.columns is not None:
            body = f"IF NOT ({self._same(table, spec.columns)}) THEN {body} END IF;"
        errors = f"{NO_SUCH_COLUMN}, {NO_SUCH_TABLE}" if spec.value_logs else NO_SUCH_COLUMN
        gone = (
            f"DECLARE EXIT HANDLER FOR {errors} {self._log(table, 'NULL', {})} "
            if "OLD." in body or "NEW." in body
            else ""
        )
        return f"matviews: BEGIN {gone}{self._leave_if_suppressed(table)} {OWN_NUMBER} {body} END"

    def _values(self, event: str, table: str, spec: TriggerSpec) -> str:
        """Statements that write the values of `OLD` and `NEW` to the value logs.

        `UPDATE IGNORE` also fires the trigger for rows whose new values a unique index or a foreign
        key refused; these rows have not changed.
        """
        statements, missing = "", ""
        for log in sorted(spec.value_logs):
            names = list(map(self.name, log.columns))
            missing += f" INSERT INTO {self.name(log.name)} ({WEIGHT}) VALUES (NULL);"
            for row in {"insert": ["NEW"], "delete": ["OLD"]}.get(event, ["OLD", "NEW"]):
                values = ["-1" if row == "OLD" else "1", *(f"{row}.{name}" for name in names)]
                statements += (
                    f" INSERT INTO {self.name(log.name)} ({', '.join([WEIGHT, *names])}) "
                    f"VALUES ({', '.join(values)});"
                )
        return self._if_done(table, spec, statements, missing) if event == "update" else statements

    def _if_done(self, table: str, spec: TriggerSpec, statements: str, missing: str) -> str:
        """The statements, for a row that has changed; `missing` where that cannot be known."""
        refusable, key = self._keys.get(table, ({}, set()))
        if not (statements and refusable):
            return statements
        # A unique index may also be of expressions, which have no column.
        same = "FALSE" if None in refusable else self._same(table, [*filter(None, refusable)])
        if not key:
            return f" IF {same} THEN{statements} ELSE{missing} END IF;"
        left = [f"{MEANWHILE}.{name} = OLD.{name}" for name in map(self.name, sorted(key))]
        left += [self._same_value(table, each, after=MEANWHILE) for each in sorted(spec.valued)]
        found = f"SELECT 1 FROM {self.name(table)} {MEANWHILE} WHERE {' AND '.join(left)}"
        return f" IF {same} OR NOT EXISTS ({found} LOCK IN SHARE MODE) THEN{statements} END IF;"

    @cached_property
    def _keys(self) -> dict[str, tuple[set[str | None], set[str]]]:
        """By table: columns of unique indexes and foreign keys, and those of the primary key."""
        found: dict[str, tuple[set[str | None], set[str]]] = {}
        with self.connection.cursor() as cursor:
            cursor.execute(KEYS)
            for table, column, is_primary in cursor.fetchall():
                refusable, primary = found.setdefault(table, (set(), set()))
                refusable.add(column)
                if is_primary:
                    primary.add(column)
        return found

    def _bodies(self, table: str, spec: TriggerSpec) -> dict[str, str]:
        """The body of each trigger of a table, by what stands for the event in its name."""
        return {event: self._action(event, table, spec) for event in self.events_of(spec)}

    def _leave_if_suppressed(self, table: str) -> str:
        """The secret is read only if the session claims to know it."""
        session = "CAST(COALESCE(@matviews_suppressed, '') AS BINARY)"
        value = f"{self.secrets}.{self.name('value')}"
        return (
            f"IF INSTR({session}, '{digest(table)}') > 0 "
            f"THEN IF EXISTS (SELECT 1 FROM {self.secrets} "
            f"WHERE CAST({value} AS BINARY) = SUBSTRING_INDEX({session}, ' ', 1)) "
            f"THEN LEAVE matviews; END IF; END IF;"
        )

    def _links(
        self, table: str, row: str, spec: TriggerSpec, values: Mapping[str, str] | None = None
    ) -> str:
        """The links of a row as a log entry has them, as JSON; `values` in place of the row's."""
        of = {link: f"{row}.{self.name(link)}" for link in spec.links} | dict(values or {})
        links = sorted(spec.links)
        if not links:
            return self._json([[]])
        if not all(self._is_writable(table, link) for link in links):
            return "NULL"
        texts = [f"CONVERT({of[link]} USING utf8mb4)" for link in links]
        # CONCAT of a NULL is NULL; in a JSON_ARRAY it would be null, which no refresh can read.
        entry = (
            f"CONCAT({self.literal(f'[{json_of(links)}, ')}, JSON_ARRAY({', '.join(texts)}), ']')"
        )
        sizes = [
            f"COALESCE(LENGTH({of[link]}), 0)"
            for link in links
            if self._type(table, link)[0] in TEXTS
        ]
        if not sizes:
            return entry
        size = " + ".join(sizes)
        return (
            f"IF({size} > {MAX_LINK_BYTES}, {self._json(TOO_LONG)}, "
            f"IF({size} > {MAX_PACKET_BYTES}, NULL, {entry}))"
        )

    def _log(self, table: str, links: str, changed: Mapping[str, str]) -> str:
        """A statement that writes a log entry."""
        values = {"table": self.literal(table), "links": links, "logged_at": UTC_NOW, **changed}
        return f"{self.insert(values)} VALUES ({', '.join(values.values())});"

    def _changed(self, table: str, spec: TriggerSpec) -> dict[str, str]:
        """The recorded columns that an UPDATE changed, as JSON; escaped as Django does it."""
        if not spec.recorded:
            return {}
        names = ", ".join(
            f"IF({self._same_value(table, column)}, NULL, {self.literal(json.dumps(column))})"
            for column in sorted(spec.recorded)
        )
        return {"changed": f"CONCAT('[', CONCAT_WS(',', {names}), ']')"}

    def _json(self, value: object) -> str:
        return self.literal(json_of(value))

    def _is_writable(self, table: str, column: str) -> bool:
        kind, charset = self._type(table, column)
        return kind in WRITABLE or (kind in TEXTS and charset in CHARSETS)

    def _type(self, table: str, column: str) -> tuple[str, str]:
        """The type and character set of a column."""
        if table not in self._types:
            with self.connection.cursor() as cursor:
                cursor.execute(
                    "SELECT table_name, column_name, data_type, character_set_name "
                    "FROM information_schema.columns "
                    "WHERE table_schema = DATABASE() AND table_name = %s",
                    [table],
                )
                found = [row for name, *row in cursor.fetchall() if name == table]
            self._types[table] = {column: (kind, charset or "") for column, kind, charset in found}
        return self._types[table].get(column, ("", ""))

    def _same(self, table: str, columns: Collection[str]) -> str:
        """Whether columns of `OLD` and `NEW`, the row before and after a change, are the same."""
        return " AND ".join(self._same_value(table, column) for column in sorted(columns))

    def _same_value(self, table: str, column: str, after: str = "NEW") -> str:
        before, after = (f"{row}.{self.name(column)}" for row in ("OLD", after))
        same, kind = f"{before} <=> {after}", self._type(table, column)[0]
        if kind == "timestamp":  # the session's time zone has one hour of the year twice
            return f"{same} AND UNIX_TIMESTAMP({before}) <=> UNIX_TIMESTAMP({after})"
        if kind in WRITABLE:
            return same
        # As bytes too, because in most collations "a" equals "A"; as values, because FLOAT shows
        # six digits.
        return f"{same} AND CAST({before} AS BINARY) <=> CAST({after} AS BINARY)"
