"""The schedules as they are read again and again: what has not changed is kept."""

from functools import cache, cached_property
from typing import Any, NamedTuple

from django_celery_beat.models import CrontabSchedule

from .. import engine
from ..models import RefreshSchedule, ViewControl
from ..phases import Phase
from ..registry import registry

__all__ = ["ScheduleRow", "read_schedules"]

#: The fields of a view that its schedules depend on.
_OF_VIEW = ("id", "label", "enabled", "paused", "queue", "freshness_target")
#: And those that only say when the first interval of a schedule begins.
_OF_START = ("verification", *(phase.success_field for phase in Phase))
_FIELDS = [
    field.attname
    for field in ViewControl._meta.concrete_fields
    if field.attname in (*_OF_VIEW, *_OF_START)
]


class _Starts:
    """The values of `_OF_START`, read for all views as soon as one is needed."""

    @cached_property
    def of_views(self) -> dict[int, dict[str, Any]]:
        """By the primary keys of the views."""
        rows = ViewControl.objects.order_by().values("pk", *_OF_START)
        return {row.pop("pk"): row for row in rows}


class ScheduleRow(NamedTuple):
    """A schedule, and what was read of its view."""

    #: The schedule without its view: the same object as long as the row is the same.
    known: RefreshSchedule
    #: The values of `_OF_VIEW`.
    view: dict[str, Any]
    starts: _Starts
    #: Its crontab, if it has one.
    crontab: CrontabSchedule | None

    @property
    def state(self) -> tuple[object, ...]:
        """All that the schedule depends on, except its crontab and the time."""
        label = self.view["label"]
        definition = registry.find(label) if label in registry else None
        # Models with one primary key are equal; this one is kept, so that no other gets its id.
        return id(self.known), self.known, definition, *(self.view[name] for name in _OF_VIEW)

    def load(self) -> RefreshSchedule:
        """The schedule with its view; other columns of the view are read when they are needed."""
        schedule: RefreshSchedule = engine.twin(self.known)
        using = self.known._state.db
        values = self.view | self.starts.of_views.get(self.view["id"], dict.fromkeys(_OF_START))
        schedule.view = ViewControl.from_db(using, _FIELDS, [values[each] for each in _FIELDS])
        if self.crontab:
            schedule.crontab = self.crontab
        return schedule


@cache
def _known() -> engine.KnownRows[RefreshSchedule]:
    return engine.KnownRows(RefreshSchedule)


def read_schedules() -> list[ScheduleRow]:
    """Every schedule, by primary key; one statement, and one if there are crontabs.

    Loading one takes another statement for all of them.
    """
    columns, starts = [f"view__{name}" for name in _OF_VIEW], _Starts()
    rows = _known().read(RefreshSchedule.objects.order_by("pk"), *columns, everything=True)
    keys = {schedule.crontab_id for schedule, _values in rows} - {None}
    crontabs = CrontabSchedule.objects.using(engine.alias()).in_bulk(keys) if keys else {}
    return [
        ScheduleRow(
            known=schedule,
            view=dict(zip(_OF_VIEW, values, strict=True)),
            starts=starts,
            crontab=crontabs.get(schedule.crontab_id),
        )
        for schedule, values in rows
    ]
