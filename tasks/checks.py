"""System checks of the Celery app, its broker and the maintenance task."""

from typing import Any

from celery import current_app
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DatabaseError, router, transaction
from django.utils import translation
from django_celery_beat.models import PeriodicTask
from kombu import Connection

from .. import engine
from ..limits import queue_fault
from ..models import ViewControl
from ..presentation import format_duration
from . import heartbeat
from .broker_errors import in_words
from .followed_views import remarks_on
from .queues import BATCHES, queue_of

__all__ = [
    "check_accepts_json",
    "check_beat_scheduler",
    "check_broker_timeouts",
    "check_broker_urls",
    "check_celery_app",
    "check_followed_views",
    "check_maintenance",
    "check_not_eager",
    "check_one_database",
    "check_queues",
    "check_staged_views",
]  # fmt: skip

JSON_NAMES = {"json", "application/json"}
TIMEOUTS = ("socket_timeout", "socket_connect_timeout")


@register()
def check_accepts_json(**_kwargs: Any) -> list[CheckMessage]:
    """E011: workers would reject our messages, which are JSON."""
    accepted = {str(name) for name in current_app.conf.accept_content or ()}
    if accepted & JSON_NAMES:
        return []
    return [
        Error(
            f"Celery's accept_content is {sorted(accepted)}: workers would reject the messages of "
            f"matviews, which are JSON.",
            hint="Add 'json' to accept_content (CELERY_ACCEPT_CONTENT).",
            id="matviews.E011",
        )
    ]


@register(deploy=True)
def check_not_eager(**_kwargs: Any) -> list[CheckMessage]:
    """E012: tasks would run inside the web request that sends them."""
    if not current_app.conf.task_always_eager:
        return []
    return [
        Error(
            "Celery's task_always_eager is on: a whole refresh would run inside the web request "
            "that requests it.",
            hint="Turn task_always_eager off in production and start a worker.",
            id="matviews.E012",
        )
    ]


@register()
def check_one_database(**_kwargs: Any) -> list[CheckMessage]:
    """E014: django-celery-beat and the schedules are in different databases."""
    ours, theirs = engine.alias(), router.db_for_write(PeriodicTask)
    if ours == theirs:
        return []
    return [
        Error(
            f"django_celery_beat is in the database {theirs!r}, the schedules of matviews in "
            f"{ours!r}: schedules refer to its crontabs, and are copied to it in one transaction.",
            hint=f"Route the app django_celery_beat to {ours!r}, or matviews to {theirs!r}.",
            id="matviews.E014",
        )
    ]


@register(deploy=True)
def check_beat_scheduler(**_kwargs: Any) -> list[CheckMessage]:
    """W005: beat would not read the schedules, unless its command line names the scheduler."""
    scheduler = str(current_app.conf.beat_scheduler)
    if "DatabaseScheduler" in scheduler:
        return []
    return [
        Warning(
            f"Celery's beat_scheduler is {scheduler!r}, which does not read the schedules of views "
            f"from the database.",
            hint="Set CELERY_BEAT_SCHEDULER = 'django_celery_beat.schedulers:DatabaseScheduler', "
            "or silence this if beat is started with --scheduler.",
            id="matviews.W005",
        )
    ]


@register()
def check_broker_timeouts(**_kwargs: Any) -> list[CheckMessage]:
    """W002: a Redis that accepts connections but never answers would block publishers."""
    urls = current_app.conf.broker_write_url or current_app.conf.broker_url or ""
    url = urls if isinstance(urls, str) else next(iter(urls), "")
    options = current_app.conf.broker_transport_options or {}
    missing = [name for name in TIMEOUTS if name not in options]
    if not url.startswith(("redis", "sentinel")) or not missing:
        return []
    return [
        Warning(
            f"Celery's broker_transport_options do not set {' and '.join(missing)}: if Redis "
            f"hangs, every web request that asks for a refresh blocks for a minute.",
            hint="Set both to 2 (seconds) in CELERY_BROKER_TRANSPORT_OPTIONS.",
            id="matviews.W002",
        )
    ]


@register()
def check_celery_app(**_kwargs: Any) -> list[CheckMessage]:
    """W028: this process does not use the project's Celery app, or the app has no broker."""
    if current_app.conf.task_always_eager or _broker_urls():
        return []
    if (
        current_app.main == "default" and not current_app.set_as_current
    ):  # the one that Celery makes itself
        return [
            Warning(
                "The project's Celery app is not imported: web processes and manage.py would send "
                "the messages of matviews to amqp://guest@localhost.",
                hint="Import the app in the project's __init__.py: "
                "from .celery import app as celery_app",
                id="matviews.W028",
            )
        ]
    return [
        Warning(
            f"The Celery app {current_app.main!r} has no broker: the messages of matviews would go "
            f"to amqp://guest@localhost.",
            hint="Set CELERY_BROKER_URL, and call app.config_from_object('django.conf:settings', "
            "namespace='CELERY').",
            id="matviews.W028",
        )
    ]


@register()
def check_broker_urls(**_kwargs: Any) -> list[CheckMessage]:
    """E024: a broker URL that Celery cannot read."""
    if current_app.conf.task_always_eager:
        return []
    return [
        Error(
            f"Celery cannot read its broker URL: {fault}.",
            hint="Correct CELERY_BROKER_URL; it looks like redis://127.0.0.1:6379/0.",
            id="matviews.E024",
        )
        for fault in dict.fromkeys(map(_fault_of_url, _broker_urls()))
        if fault
    ]


def _broker_urls() -> list[str]:
    """The URLs that messages are sent to."""
    urls = current_app.conf.broker_write_url or current_app.conf.broker_url or ()
    return [str(each) for each in ([urls] if isinstance(urls, str) else urls)]


def _fault_of_url(url: str) -> str:
    """Why Celery cannot read a URL, without the secrets in it; "" if it can."""
    if "://" not in url and not current_app.conf.broker_transport:
        return "it does not begin with the name of a transport and ://"
    try:
        Connection(url, transport=current_app.conf.broker_transport or None).get_transport_cls()
    except Exception as error:  # noqa: BLE001 - kombu imports whatever a transport needs
        return in_words(error)
    return ""


@register(Tags.database)
def check_queues(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W042: Celery or the broker refuses the queue of a view, so its messages are never sent."""
    if engine.alias() not in (databases or ()):
        return []
    try:
        controls = list(ViewControl.objects.only("label", "queue"))
    except DatabaseError:  # not migrated yet
        return []
    found = ((control, _fault_of_queue(control.queue_name)) for control in controls)
    return [
        Warning(
            f"{control.label}: its queue {control.queue_name!r} {fault}.",
            hint="Correct its queue in the admin, in MatviewMeta.queue, or in "
            "MATVIEWS['CELERY_QUEUE'].",
            obj=control.definition and control.definition.model,
            id="matviews.W042",
        )
        for control, fault in found
        if fault
    ]


@register(Tags.database)
def check_staged_views(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W044: one statement of a view may take longer than the target of another on its queue."""
    if engine.alias() not in (databases or ()):
        return []
    try:
        found = engine.long_statements()
    except DatabaseError:  # not migrated yet
        return []
    return [
        Warning(
            f"{each.label}: its source is computed in one statement, which takes up to "
            f"{format_duration(each.takes)}. Meanwhile its worker cannot refresh {each.other}, "
            f"whose rows may be no older than {format_duration(each.target)}: both use "
            f"the queue {queue_of(BATCHES[0], each.queue)!r}.",
            hint=f"Give {each.label} a queue of its own (MatviewMeta.queue, or its page in the "
            f"admin), and start a worker for it. With several workers on this queue, and few such "
            f"views, silence this.",
            obj=each.model,
            id="matviews.W044",
        )
        for each in found
    ]


@register(Tags.database)
def check_followed_views(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W047: dates move, and no schedule by time follows. W048: a target cannot be met on change."""
    if engine.alias() not in (databases or ()):
        return []
    try:
        # What is printed is English.
        with transaction.atomic(using=engine.alias()), translation.override(None):
            views = ViewControl.objects.filter(schedules__on_change=True, enabled=True).distinct()
            return [
                Warning(
                    remark.text,
                    hint=remark.hint,
                    obj=control.definition and control.definition.model,
                    id=remark.id,
                )
                for control in views.prefetch_related("schedules").order_by("label")
                for remark in remarks_on(control)
            ]
    except DatabaseError:  # not migrated yet
        return []


def _fault_of_queue(name: str | None) -> str:
    """Why messages cannot be sent to a queue, "" if they can."""
    if name is None:
        return ""
    if fault := queue_fault(name):
        return f"must be {fault}"
    if current_app.conf.task_create_missing_queues or name in current_app.amqp.queues:
        return ""
    return "is not in task_queues, and task_create_missing_queues is off"


@register(Tags.database)
def check_maintenance(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W003: the maintenance task does not run, so lost messages are not re-sent."""
    if engine.alias() not in (databases or ()):
        return []
    try:
        # A failure must not break an outer transaction, and what is printed is English.
        with transaction.atomic(using=engine.alias()), translation.override(None):
            problem = heartbeat.maintenance_problem()
    except DatabaseError:  # not migrated yet
        return []
    return [Warning(problem, id="matviews.W003")] if problem else []
