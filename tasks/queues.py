"""The queues of the tasks, to tell a person which ones a worker has to listen to."""

from celery import current_app

from ..conf import get_settings

__all__ = ["BATCHES", "queue_of", "queues_in_words"]

BATCHES = ("matviews.insert_batch", "matviews.update_batch", "matviews.delete_batch")


def queues_in_words(*tasks: str, queue: str | None = None) -> str:
    """The queues to which this process sends some tasks, as in "the queue 'celery'".

    Args:
        tasks: their names.
        queue: that of the view; None for the one of the settings.
    """
    names = {queue_of(task, queue) for task in tasks}
    if "" in names:
        return "the queue of its tasks"
    listed = " and ".join(repr(name) for name in sorted(names))
    return f"the queue{'s' if len(names) > 1 else ''} {listed}"


def queue_of(task: str, queue: str | None = None) -> str:
    """The queue to which this process sends a task; "" if its route raises an error.

    Args:
        task: its name.
        queue: that of the view; None for the one of the settings.
    """
    try:
        return _routed(task, queue or get_settings().CELERY_QUEUE)
    except Exception:  # noqa: BLE001 - the project's routes may be functions that raise anything
        return ""


def _routed(task: str, given: str | None) -> str:
    routed = current_app.amqp.router.route({"queue": given} if given else {}, task)
    queue = routed.get("queue") or current_app.conf.task_default_queue
    return str(getattr(queue, "name", queue))
