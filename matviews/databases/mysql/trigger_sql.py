"""MariaDB and MySQL: the bodies of triggers, one for each row."""

import json
from collections.abc import Collection, Iterator, Mapping

from ..base.sums import WEIGHT
from ..base.triggers import MAX_LINK_BYTES, TOO_LONG, Triggers, digest, json_of
from ..trigger_spec import FOREIGN, TriggerSpec

__all__ = [
    "BATCH",
    "INTRODUCER",
    "MODE_BACK",
    "NO_SUCH_COLUMN",
    "NO_SUCH_TABLE",
    "OWN_NUMBER",
    "PLAIN_MODE",
    "SUPPRESSED",
    "UTC_NOW",
    "MySQLTriggerSQL",
]

PLAIN_MODE = "SET @matviews_sql_mode = @@sql_mode, sql_mode = ''"
NO_SUCH_COLUMN, NO_SUCH_TABLE = 1054, 1146
SUPPRESSED, BATCH = "@matviews_suppressed", "@matviews_batch"
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
        changed = self._changed(event, table, spec)
        before, after = (
            self._log(table, self._links(table, row, spec), changed) for row in ("OLD", "NEW")
        )
        body = {"insert": after, "delete": before}.get(event, before)
        if event == "update" and spec.links:
            body += f" IF NOT ({self._same(table, spec.links)}) THEN {after} END IF;"
        body += self._values(
            {"insert": ["NEW"], "delete": ["OLD"]}.get(event, ["OLD", "NEW"]), spec
        )
        if event == "update" and spec.watched is not None:
            body = f"IF NOT ({self._same(table, spec.watched)}) THEN {body} END IF;"
        errors = f"{NO_SUCH_COLUMN}, {NO_SUCH_TABLE}" if spec.value_logs else NO_SUCH_COLUMN
        gone = (
            f"DECLARE EXIT HANDLER FOR {errors} {self._log(table, 'NULL', {})} "
            if "OLD." in body or "NEW." in body
            else ""
        )
        return f"matviews: BEGIN {gone}{self._leave_early(table, spec)} {OWN_NUMBER} {body} END"

    def _values(self, rows: Collection[str], spec: TriggerSpec) -> str:
        """Statements that write the values of `OLD` and `NEW` to the value logs."""
        statements = ""
        for log in sorted(spec.value_logs):
            names = list(map(self.name, log.columns))
            for row in rows:
                values = ["-1" if row == "OLD" else "1", *(f"{row}.{name}" for name in names)]
                statements += (
                    f" INSERT INTO {self.name(log.name)} ({', '.join([WEIGHT, *names])}) "
                    f"VALUES ({', '.join(values)});"
                )
        return statements

    def _bodies(self, table: str, spec: TriggerSpec) -> dict[str, str]:
        """The body of each trigger of a table, by what stands for the event in its name."""
        return {event: self._action(event, table, spec) for event in self.events_of(spec)}

    def _leave_early(self, table: str, spec: TriggerSpec) -> str:
        """Log nothing that is suppressed, and no batch that nobody needs to know of.

        The secret is read only if the session claims to know it.
        """
        return " ".join(
            f"IF {names} THEN IF {knows} THEN LEAVE matviews; END IF; END IF;"
            for variable in ([SUPPRESSED, BATCH] if spec.skips_batches else [SUPPRESSED])
            for names, knows in [self._claims(variable, table)]
        )

    def is_batch(self, table: str) -> str:
        names, knows = self._claims(BATCH, table)
        return f"IF({names}, {knows}, 0)"

    def _claims(self, variable: str, table: str) -> tuple[str, str]:
        """Whether a variable of the session names the table, and whether it has the secret."""
        session = f"CAST(COALESCE({variable}, '') AS BINARY)"
        value = f"{self.secrets}.{self.name('value')}"
        names = f"INSTR({session}, '{digest(table)}') > 0"
        knows = (
            f"EXISTS (SELECT 1 FROM {self.secrets} "
            f"WHERE CAST({value} AS BINARY) = SUBSTRING_INDEX({session}, ' ', 1))"
        )
        return names, knows

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

    def _changed(self, event: str, table: str, spec: TriggerSpec) -> dict[str, str]:
        """The recorded columns that an UPDATE changed, as JSON; escaped as Django does it.

        A batch that adds or removes rows names all, except `FOREIGN`.
        """
        if event != "update":
            all_names = self.literal(json.dumps(sorted(spec.named)))
            marked = {"changed": f"IF({self.is_batch(table)}, {all_names}, NULL)"}
            return marked if spec.marks_batches else {}
        same = {column: self._same_value(table, column) for column in sorted(spec.named)}
        if spec.marks_batches:
            same[FOREIGN] = f"{self.is_batch(table)} OR ({self._same(table, spec.guarded)})"
        if not same:
            return {}
        names = ", ".join(
            f"IF({condition}, NULL, {self.literal(json.dumps(column))})"
            for column, condition in same.items()
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

    def _same_value(self, table: str, column: str) -> str:
        before, after = (f"{row}.{self.name(column)}" for row in ("OLD", "NEW"))
        same, kind = f"{before} <=> {after}", self._type(table, column)[0]
        if kind == "timestamp":  # the session's time zone has one hour of the year twice
            return f"{same} AND UNIX_TIMESTAMP({before}) <=> UNIX_TIMESTAMP({after})"
        if kind in WRITABLE:
            return same
        # As bytes too, because in most collations "a" equals "A"; as values, because FLOAT shows
        # six digits.
        return f"{same} AND CAST({before} AS BINARY) <=> CAST({after} AS BINARY)"
