"""The columns of the list of views. Their rows are those of `ViewList`."""

from typing import Any

from django.contrib import admin
from django.template.loader import render_to_string
from django.utils.html import format_html
from django.utils.safestring import SafeString

from .statuses import in_words
from .tones import tone
from .words import length, plan, rows_in_words, successes_in_words

__all__ = ["columns"]

DASH = "-"


@admin.display(description="View")
def name(control: Any) -> SafeString:
    """The label, and what the class calls itself."""
    definition = control.definition
    verbose = definition.model._meta.verbose_name if definition else ""
    return format_html('{} <span class="matviews-quiet">{}</span>', control.label, verbose)


@admin.display(description="State")
def state(control: Any) -> SafeString:
    """The state as a badge, how far a refresh is, and what went wrong."""
    status = control.status
    context = {"status": status, "words": in_words(status), "tone": tone(status.state)}
    return render_to_string("matviews/state.html", context)


@admin.display(description="Rows")
def rows(control: Any) -> str:
    """How many rows the view has."""
    return rows_in_words(control.status.rows)


@admin.display(description="Last success")
def last_success(control: Any) -> SafeString:
    """When each phase last succeeded."""
    return successes_in_words(control.status.successes)


@admin.display(description="Lag")
def lag(control: Any) -> SafeString | str:
    """How long ago the oldest of these is, and how long it may be."""
    status = control.status
    if status.lag is None:
        return DASH
    target = f"target {length(status.target)}" if status.target else ""
    return format_html('{} <span class="matviews-quiet">{}</span>', length(status.lag), target)


@admin.display(description="Schedule")
def schedule(control: Any) -> SafeString | str:
    """How often the view is asked for, and when next."""
    return plan(control.planned) or DASH


columns = (name, state, rows, last_success, lag, schedule)
