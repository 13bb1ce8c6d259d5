"""A digest of the definition of a failing view: if it changes, the next try may succeed."""

import hashlib
from collections.abc import Iterator
from dataclasses import fields
from inspect import unwrap
from types import CodeType
from typing import Any

from django.db import DatabaseError

from ...conf import get_settings
from ...definition import ViewDefinition
from ...exceptions import InvalidView
from ...near_misses import SOURCE
from ...phases import Phase
from ...queryset import plan_of
from ..transactions import alias

__all__ = ["definition_digest"]

OPTIONS = (
    "phases", "key", "batch_size", "batch_target", "statement_timeout", "shards", "tracking",
    "strategy",
)  # fmt: skip
SETTINGS_OF_BATCHES = ("BATCH_", "STATEMENT_TIMEOUT", "STAGING_SCHEMA")


def definition_digest(definition: ViewDefinition | None) -> str:
    """A digest of a view's source, the code of its hooks, its options and settings of batches.

    Two processes with the same code and settings find the same; a hook that only calls what has
    changed keeps its digest.
    """
    if definition is None:
        return ""
    names = (SOURCE, *(name for phase in Phase for name in (phase.needs_hook, phase.do_hook)))
    parts = [
        *(f"{name} {part}" for name in names for part in _code(definition.model, name)),
        *(f"{name} {getattr(definition.options, name)}" for name in OPTIONS),
        *(
            f"{field.name} {getattr(get_settings(), field.name)}"
            for field in fields(get_settings())
            if field.name.startswith(SETTINGS_OF_BATCHES)
        ),
        *(each.msg for each in definition.errors),
        _fingerprint(definition),
    ]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _fingerprint(definition: ViewDefinition) -> str:
    """The fingerprint of `source()`; "" if it cannot be derived from."""
    if not definition.derived or definition.errors:
        return ""
    try:
        return plan_of(definition, alias()).fingerprint
    except (InvalidView, DatabaseError):
        return ""


def _code(model: type[Any], name: str) -> Iterator[str]:
    method = getattr(model, name, None)
    code = getattr(unwrap(getattr(method, "__func__", method)), "__code__", None) if method else ""
    return _parts(code) if isinstance(code, CodeType) else iter(())


def _parts(code: CodeType) -> Iterator[str]:
    """The instructions, names and constants of a function, without its place in a file."""
    yield code.co_code.hex()
    yield " ".join(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
        elif isinstance(constant, frozenset):  # its order differs between processes
            yield repr(sorted(map(repr, constant)))
        else:
            yield repr(constant)
