"""`--follow`: refreshing views on change, until the process is stopped."""

from matviews.tasks.following import Follower

from .interrupts import stop_on_signal
from .supervisor import Supervisor
from .targets import Targets

__all__ = ["follow"]


def follow(targets: Targets) -> None:
    """Follow the changes of the named views, or of all, until Ctrl-C or SIGTERM.

    Being stopped is its normal end, not an error.
    """
    targets.refuse_in_transaction()
    targets.refuse_without_views()
    supervisor = Supervisor()
    note = targets.output.reporter().note
    with stop_on_signal(note) as stop:
        note("Following changes. Ctrl-C stops after the batch.")
        Follower(
            stop=stop,
            report_alive=supervisor.report_alive,
            labels=targets.options.labels or None,
            enqueue=targets.options.enqueue,
        ).run()
        supervisor.report_stopping()
