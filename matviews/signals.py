"""Signals, each sent after the commit that it reports.

A process that is killed between the commit and the signal never sends it: use signals for metrics
and wake-ups, and the bookkeeping tables for what must not be missed.

refresh_requested
    A refresh was requested. `sender`: the view's class. `refresh`: the `Refresh`; if `requests` is
    more than 1, the request has joined a refresh that had not begun. Sent inside the caller's
    transaction if there is one.
batch_finished
    A batch committed, or failed and was rolled back. `sender`: the view's class, None if the code
    no longer defines it. `report`: the `matviews.engine.BatchReport`.
refresh_finished
    A refresh ended. `sender`: as above. `refresh`: the `Refresh`, with state and error. Sent once
    for all requests that joined it. The refreshes that were merged into it before it began
    (`refresh.merged`) end with it and send no signal of their own.
view_suspended
    A view was suspended, because it kept failing. `sender`: as above. `refresh`: the `Refresh` that
    failed last, with its error.
view_alarm
    An alarm was raised, or repeated because it has not ended: a problem of health has lasted.
    `sender`: as above, None also if the problem concerns all views. `alarm`: the
    `matviews.models.Alarm`, with "raised" or "repeated" in `event`.
view_alarm_ended
    An alarm that was raised has ended, because its problem has been gone for a while. `sender` and
    `alarm` as above. Unlike view_recovered it comes once for each alarm, whatever ended it.
view_recovered
    A view that had failed has succeeded again. `sender`: as above. `refresh`: the `Refresh` that
    succeeded. `failures`: how often in a row it had failed before.
message_refused
    A batch message was a duplicate, came too late or met a running batch; it changed nothing.
    `sender`: None. `message`: the `matviews.engine.Message`. `outcome`: the
    `matviews.engine.Outcome`.
"""

from django.dispatch import Signal

__all__ = [
    "batch_finished", "message_refused", "refresh_finished", "refresh_requested", "view_alarm",
    "view_alarm_ended", "view_recovered", "view_suspended",
]  # fmt: skip

refresh_requested = Signal()
batch_finished = Signal()
refresh_finished = Signal()
view_suspended = Signal()
view_alarm = Signal()
view_alarm_ended = Signal()
view_recovered = Signal()
message_refused = Signal()
