"""The errors of MariaDB and MySQL, by number."""

import re
from typing import Any, ClassVar

from django.db import DatabaseError, Error

from ..base.errors import ConstraintKind, Errors, Failure, Violation

__all__ = ["MySQLErrors", "number_of"]

STATEMENT_TIMEOUTS = {1969, 3024}  # max_statement_time, max_execution_time
# Lock wait timeout, and more changes in one transaction than the binary log may cache.
LIMITS = {1205, 1197, 1705, *STATEMENT_TIMEOUTS}
# Deadlock, record changed since last read, and foreign keys: the row that others just deleted, or
# have not committed yet, may exist at the next attempt.
TRANSIENT = {1213, 1020, 1216, 1217, 1451, 1452}
LOST = {1040, 1053, 1203, 1927, 2006, 2013, 2055, 4031}  # lost, or refused as one too many
LOCKED = 1205  # also raised at once by a statement that must not wait
MISSING = {1146, 1054}
DENIED_IN_DATABASE = 1044
DENIED = {DENIED_IN_DATABASE, 1142, 1143, 1227, 1370}
# A full disk or table space, a damaged file, and a server that may only read.
OUT_OF_ORDER = {
    3, 5, 9, 14, 28, 1016, 1021, 1023, 1024, 1026, 1030, 1034, 1114, 1194, 1290, 1792, 1836,
}  # fmt: skip
# Or a limit of the account or of the server is reached.
UNREACHABLE = {1045, 1049, 1226, 1637, 2002, 2003}
# Values out of range, too long, NULL, or impossible to cast, compute, uncompress or convert to
# another character set; malformed JSON and geometry; violated constraints; a subquery or an INTO
# with more than one row, a result that GROUP_CONCAT cuts, SIGNAL and CASE in a routine.
OF_DATA = {
    1048, 1062, 1172, 1216, 1217, 1242, 1256, 1257, 1258, 1259, 1260, 1264, 1265, 1292, 1300, 1301,
    1339, 1365, 1366, 1406, 1411, 1416, 1441, 1451, 1452, 1525, 1586, 1644, 1690, 1977, 3140, 3141,
    3156, 3819, 4025, 4035, 4036, 4037, 4038, 4039, 4040,
}  # fmt: skip
# Out of memory, locks, stack or temporary space, a sort that was aborted, killed, a routine or its
# definer that is missing.
NEVER_OF_DATA = {
    1028, 1037, 1038, 1041, 1135, 1206, 1305, 1317, 1356, 1436, 1449, 1615, 1878, *MISSING,
}  # fmt: skip
# NULL, out of range, cut off, not to be converted, and too long.
UNFIT = {"1048", "1264", "1265", "1292", "1366", "1406"}
# Where an error's text has names. The text may be in any language; the value of a violated key
# precedes the key's name.
_KEY = re.compile(r".*'(?:[^'.]*\.)?(?P<name>[^'.]+)'", re.DOTALL)
_FOREIGN_KEY = re.compile(r"`(?P<table>[^`]*)`, CONSTRAINT `(?P<name>[^`]*)`")
_COLUMN = re.compile(r"'(?P<column>[^']*)'")
_COLUMN_AFTER_VALUE = re.compile(r".*[`'](?P<column>[^`']+)[`']", re.DOTALL)


def number_of(error: BaseException) -> object:
    """The number of an error, None if it has none."""
    cause = error.__cause__ or error
    return cause.args[0] if cause.args else None


class MySQLErrors(Errors):
    """MariaDB and MySQL agree on the numbers that matter here."""

    kinds: ClassVar[dict[Any, Any]] = {
        1048: (ConstraintKind.NOT_NULL, _COLUMN),
        1062: (ConstraintKind.UNIQUE, _KEY),
        1264: (ConstraintKind.UNFIT, _COLUMN),
        1265: (ConstraintKind.UNFIT, _COLUMN),
        1364: (ConstraintKind.NOT_NULL, _COLUMN),
        1366: (ConstraintKind.UNFIT, _COLUMN_AFTER_VALUE),
        1406: (ConstraintKind.TOO_LONG, _COLUMN),
        1451: (ConstraintKind.FOREIGN_KEY, _FOREIGN_KEY),
        1452: (ConstraintKind.FOREIGN_KEY, _FOREIGN_KEY),
        1586: (ConstraintKind.UNIQUE, _KEY),
        3819: (ConstraintKind.OTHER, re.compile(r"'(?P<name>[^']*)'")),
        4025: (ConstraintKind.OTHER, re.compile(r"`(?P<name>[^`]*)`")),
    }

    def _failure(self, error: Error) -> Failure:
        number = number_of(error)
        if number in LIMITS:
            return Failure.RETRY_SMALLER
        return Failure.RETRY if number in TRANSIENT | LOST else Failure.FINAL

    def _is_external(self, error: DatabaseError) -> bool:
        locks = {LOCKED, 1020, 1213}
        return number_of(error) in LOST | DENIED | OUT_OF_ORDER | UNREACHABLE | locks

    def is_statement_timeout(self, error: BaseException) -> bool:
        return number_of(error) in STATEMENT_TIMEOUTS

    def is_missing(self, error: DatabaseError) -> bool:
        return number_of(error) in MISSING

    def is_denied(self, error: BaseException) -> bool:
        return number_of(error) in DENIED

    def is_denied_in_database(self, error: BaseException) -> bool:
        return number_of(error) == DENIED_IN_DATABASE

    def is_locked(self, error: DatabaseError) -> bool:
        return number_of(error) == LOCKED

    def code(self, error: BaseException) -> str:
        number = number_of(error)
        return str(number) if isinstance(number, int) else ""

    def is_data_error(self, error: Exception) -> bool:
        return isinstance(error, Error) and number_of(error) in OF_DATA

    def _is_unspecific(self, error: Exception) -> bool:
        return isinstance(number_of(error), int) and number_of(error) not in NEVER_OF_DATA

    def does_not_fit(self, code: str) -> bool:
        return code in UNFIT

    def violation(self, error: DatabaseError) -> Violation | None:
        number, text = error.args if len(error.args) == 2 else (None, "")
        if number not in self.kinds:
            return None
        kind, pattern = self.kinds[number]
        found = pattern.search(str(text))
        names: dict[str, Any] = found.groupdict() if found else {}
        if "column" in pattern.groupindex:
            return Violation(kind, columns=(names["column"],)) if names else None
        return Violation(kind, **names)
