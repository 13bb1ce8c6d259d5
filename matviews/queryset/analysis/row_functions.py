"""Which expressions of one row give, for its logged values, exactly what the source computes.

A key that is computed from a row is looked up by evaluating its expression, in the database, for
the values that a trigger logged. So an expression qualifies if it gives the same for equal values
in any session, and never fails: it may be evaluated for rows that the source's filter leaves out.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.core.exceptions import FieldError
from django.db.models import Case, ExpressionWrapper, Func, Value, When
from django.db.models.expressions import Col, CombinedExpression
from django.db.models.functions import (
    Cast,
    Coalesce,
    Collate,
    Concat,
    ConcatPair,
    Extract,
    Left,
    Length,
    Lower,
    LPad,
    LTrim,
    NullIf,
    Repeat,
    Replace,
    Reverse,
    Right,
    RPad,
    RTrim,
    StrIndex,
    Substr,
    Trim,
    Upper,
)
from django.db.models.functions.datetime import TruncBase
from django.db.models.lookups import Lookup
from django.db.models.sql.where import WhereNode

from ...databases import Dialect
from ...databases.fields import NUMBER, TEXT, WHOLE, AnyField, family
from .expressions import parts_of, walk

__all__ = [
    "SESSION",
    "collation_of",
    "inexact_part",
    "is_collated",
    "text_collations",
]

#: The collation of a text that comes from no column: on MariaDB and MySQL, the session's.
SESSION = "@@session"

# Texts from texts; each has the collation of its arguments.
OF_TEXT = (
    Left, Lower, LPad, LTrim, Repeat, Replace, Reverse, Right, RPad, RTrim, Substr, Trim, Upper,
)  # fmt: skip
SIZED = (LPad, Repeat, RPad)
BOUNDED = (Extract, Length, StrIndex)  # whole numbers far from the limits of their type
LOOKUPS = {
    "contains", "endswith", "exact", "gt", "gte", "icontains", "iendswith", "iexact", "in",
    "isnull", "istartswith", "lt", "lte", "range", "startswith",
}  # fmt: skip
LOOKUP_MODULES = ("django.db.models.lookups", "django.db.models.fields.related_lookups")
# What `Func(..., function="...")` may call.
FUNCTIONS = {
    "btrim", "coalesce", "initcap", "lcase", "lower", "ltrim", "nullif", "replace", "reverse",
    "rtrim", "translate", "trim", "ucase", "upper",
}  # fmt: skip


def inexact_part(expression: Any, dialect: Dialect, *, may_fail: bool = False) -> str:
    """The part of an expression that does not qualify, and why, for a person; "" if it does.

    `may_fail` accepts arithmetic that may exceed the range of its type.
    """
    for part in (expression, *walk(expression)):
        if may_fail and _is_arithmetic(part):
            continue
        if reason := _reason(part, expression, dialect):
            return reason
    return ""


def _reason(part: Any, whole: Any, dialect: Dialect) -> str:
    if isinstance(part, (Extract, TruncBase, WhereNode)):
        return ""
    if isinstance(part, Lookup):
        return _of_lookup(part)
    if isinstance(part, Col):
        return _of_column(part, dialect)
    rule = _RULES.get(type(part))
    if rule is None:
        name = type(part).__name__
        return f"{name}, which may depend on more than the row, or fail for some rows"
    if isinstance(part, Collate) and part is not whole:
        return "Collate inside another function"
    if getattr(part, "extra", None) and type(part) is not Func:
        return f"{type(part).__name__} with custom SQL"
    return rule(part)


def _family(expression: Any) -> str:
    """The kind of an expression's values; "" of NULL."""
    if isinstance(expression, Value) and expression.value is None:
        return ""
    try:
        return family(expression.output_field)
    except FieldError:
        return "unknown"


def _arguments(part: Any) -> list[Any]:
    return [each for each in part.get_source_expressions() if each is not None]


def _of_column(column: Any, dialect: Dialect) -> str:
    field = column.target
    if family(field) != TEXT:
        return ""
    if dialect.kind_of(field) != TEXT:
        return f"{field.name}, which is {dialect.kind_of(field)}"
    own = collation_of(field, dialect)
    if not (dialect.logged_texts_have_collation or dialect.same_collation("", own)):
        return f"{field.name}, which has a collation of its own"
    return ""


def _of_text(part: Any) -> str:
    first, *others = _arguments(part)
    if _family(first) != TEXT or any(_family(each) not in (TEXT, WHOLE, "") for each in others):
        return _mixed(part)
    # PostgreSQL refuses a negative length, and any database a result that is too long.
    constant = others[1:] if isinstance(part, Substr) else others if type(part) in SIZED else []
    if any(_family(each) == WHOLE and not isinstance(each, Value) for each in constant):
        return f"{type(part).__name__} with a length that is not constant"
    if not all(_is_bounded(each) for each in others if _family(each) == WHOLE):
        return f"{type(part).__name__} with a position from a column"
    return ""


def _of_texts(part: Any) -> str:
    """Concatenates them; whole numbers are converted."""
    known = {TEXT, WHOLE, ""}
    return _mixed(part) if any(_family(each) not in known for each in _arguments(part)) else ""


def _alike(part: Any) -> str:
    """Returns one of its arguments."""
    other = {_family(each) for each in _results(part)} - {_family(part), ""}
    return _mixed(part) if other else ""


def _mixed(part: Any) -> str:
    return f"{type(part).__name__} of values of mixed or unsupported types"


def _of_cast(part: Any) -> str:
    [value] = _arguments(part)
    before, after = _family(value), _family(part)
    if after == TEXT and before in (TEXT, WHOLE, "UUID"):
        return ""
    if after == TEXT:
        return f"Cast of a {before} to text, whose form depends on settings"
    return f"Cast to a {after}, which fails for some values"


def _of_arithmetic(part: Any) -> str:
    left, right = _arguments(part)
    if part.connector == part.MOD and _family(left) == WHOLE:
        constant = isinstance(right, Value) and right.value
        return "" if constant else "a remainder of a division by a non-constant"
    if part.connector not in (part.ADD, part.SUB, part.MUL):
        return f"the operator {part.connector}"
    return "" if _is_bounded(part) else "arithmetic, which may exceed the range of its type"


def _is_arithmetic(part: Any) -> bool:
    """Whether it adds, subtracts or multiplies numbers."""
    return (
        isinstance(part, CombinedExpression)
        and part.connector in (part.ADD, part.SUB, part.MUL)
        and all(_family(each) in (WHOLE, NUMBER) for each in _arguments(part))
    )


def _is_bounded(part: Any) -> bool:
    if isinstance(part, CombinedExpression):
        return part.connector == part.MOD or all(map(_is_bounded, _arguments(part)))
    if isinstance(part, Value):
        return _family(part) == WHOLE
    return isinstance(part, BOUNDED) and _family(part) == WHOLE


def _of_lookup(lookup: Any) -> str:
    name = lookup.lookup_name
    if type(lookup).__module__ not in LOOKUP_MODULES or name not in LOOKUPS:
        return f"the lookup {name}"
    compared = [lookup.lhs, *(part for part in parts_of(lookup) if part is not lookup.lhs)]
    if name != "isnull" and len({_family(each) for each in compared} - {""}) > 1:
        return f"the lookup {name} of values of mixed types"
    return ""


def _of_function(part: Any) -> str:
    """A function that is called by its name, without a template of its own."""
    name = str(part.extra.get("function", part.function)).lower()
    if name not in FUNCTIONS or set(part.extra) - {"function"}:
        return f"the function {name}"
    return _alike(part)


_RULES: dict[type, Callable[[Any], str]] = {
    **dict.fromkeys((Value, When), lambda _part: ""),
    Collate: _of_text,
    Length: _of_text,
    StrIndex: _of_text,
    **dict.fromkeys(OF_TEXT, _of_text),
    Concat: _of_texts,
    ConcatPair: _of_texts,
    Case: _alike,
    Coalesce: _alike,
    ExpressionWrapper: _alike,
    NullIf: _alike,
    Cast: _of_cast,
    CombinedExpression: _of_arithmetic,
    Func: _of_function,
}


def text_collations(expression: Any, dialect: Dialect) -> set[str]:
    """The collations that decide which results of an expression are equal texts.

    They are named as in models, "" for the default; `SESSION` stands for the session's.
    """
    found = set(_collations(expression, dialect))
    return found or {SESSION}


def _collations(part: Any, dialect: Dialect) -> Iterator[str]:
    if isinstance(part, Collate):
        yield str(vars(part)["collation"])
    elif isinstance(part, Col):
        yield collation_of(part.target, dialect)
    elif isinstance(part, Cast) and dialect.session_collation:
        yield SESSION
    else:
        for each in _results(part):
            if _family(each) == TEXT and not isinstance(each, Value):
                yield from _collations(each, dialect)


def is_collated(expression: Any) -> bool:
    """Whether an expression names the collation of its result."""
    return isinstance(expression, Collate)


def _results(part: Any) -> Iterable[Any]:
    """The arguments that a result consists of: not the conditions of a Case."""
    if isinstance(part, Case):
        return [part.default, *(when.result for when in part.cases)]
    return _arguments(part)


def collation_of(field: AnyField, dialect: Dialect) -> str:
    """The collation that a model gives to a field, "" for the default."""
    return field.db_parameters(dialect.connection).get("collation") or ""
