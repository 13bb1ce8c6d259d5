"""Alarms: each lasting problem is reported once, and so is its end.

The maintenance task compares the problems of health with the rows of `Alarm`. A row is claimed
before people are notified, and marked afterwards, so they are notified again only if a process is
killed in between.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from django.db.models import F, Q

from .. import engine
from ..conf import get_settings
from ..models import Alarm, AlarmEvent
from ..states import ViewState
from .alarm_causes import STATE, Cause, causes_of
from .delivery import deliver
from .problems import check_health

__all__ = ["notify"]

# These need a person, and do not pass by themselves.
AT_ONCE = (ViewState.SUSPENDED, ViewState.INVALID)
# The next refresh ends these, and it may be one a night.
SELF_ENDING = (ViewState.NEVER_BUILT, ViewState.CHANGED)
SELF_ENDING_AFTER = timedelta(hours=30)
# While there is one of these, other problems cannot be detected.
HIDE_OTHERS = ("database", "not migrated")
RETRY_OFTEN = timedelta(hours=1)  # each minute; then as rarely as that
# Of notifying that a view has got worse, or that another one is late because of it.
MIN_BETWEEN = timedelta(hours=1)
LEASE = timedelta(minutes=2)  # of a claim; far longer than it takes to notify


def notify() -> None:
    """Raise alarms, repeat and end them, and notify people."""
    problems = check_health().problems
    others_hidden = any(each.kind in HIDE_OTHERS and not each.view for each in problems)
    listed = _compare(causes_of(problems), others_hidden=others_hidden)
    alarms = _claim(listed)
    if not alarms:
        return
    retried = [alarm.pk for alarm in alarms if alarm.undelivered]
    deliveries = deliver(alarms)
    now = engine.now()
    left = {each.channel: list(each.left) for each in deliveries}  # a thread may shorten it yet
    for alarm in alarms:
        alarm.undelivered = ",".join(name for name in left if alarm in left[name])
        if alarm.pk not in retried:
            alarm.notified_at = now
    _mark_notified(alarms)
    for delivery in deliveries:
        delivery.recorded = left[delivery.channel]
        delivery.record_late()


def _compare(causes: Iterable[Cause], *, others_hidden: bool) -> list[int]:
    """Bring the open alarms into line with the problems.

    Returns:
        The primary keys of those whose problem lasts, but is listed under another one now.
    """
    by_key, now = {cause.key: cause for cause in causes}, engine.now()
    alarms = {(each.view, each.slot): each for each in Alarm.objects.filter(is_open=True)}
    new = [_new(cause, now) for key, cause in by_key.items() if key not in alarms]
    if new:
        with engine.short_transaction():
            Alarm.objects.bulk_create(new, ignore_conflicts=True)
    if any(each.kind in AT_ONCE for each in new):
        alarms = {(each.view, each.slot): each for each in Alarm.objects.filter(is_open=True)}
    listed = {(label, STATE) for cause in by_key.values() for label in cause.views}
    for key, alarm in alarms.items():
        if key in by_key:
            _update(alarm, by_key[key], now)
        elif key not in listed and not others_hidden:
            _end_if_due(alarm, now)
    lasting = [alarms[key] for key in by_key.keys() & alarms.keys()]
    waiting = [each for each in lasting if each.raised_at is None]
    due = [each.pk for each in waiting if now - each.since >= _duration(each.kind)]
    if due:
        Alarm.objects.filter(pk__in=due, is_open=True, raised_at=None).update(raised_at=now)
    return [alarms[key].pk for key in listed & alarms.keys() - by_key.keys()]


def _new(cause: Cause, now: datetime) -> Alarm:
    return Alarm(view=cause.problem.view, slot=cause.slot, since=now, **_described(cause))


def _described(cause: Cause) -> dict[str, Any]:
    problem = cause.problem
    return {
        "kind": problem.kind,
        "text": problem.text,
        "error": problem.error,
        "views": cause.views,
    }


def _update(alarm: Alarm, cause: Cause, now: datetime) -> None:
    values = {**_described(cause), "gone_since": None}
    notified_lately = alarm.notified_at is not None and now - alarm.notified_at < MIN_BETWEEN
    worse = _is_worse(cause.problem.kind, alarm.kind)
    joined = set(cause.views) - set(alarm.views)
    if worse and alarm.raised_at is None:
        values["since"] = now
    elif (worse and cause.problem.kind in AT_ONCE) or ((worse or joined) and not notified_lately):
        values["notified_at"] = None  # so that people are notified again
    elif joined:  # they join when people may be notified again
        values["views"] = [each for each in cause.views if each not in joined]
    changed = {name: value for name, value in values.items() if getattr(alarm, name) != value}
    # Another maintenance task may have recorded the same, and notified people of it.
    same = Alarm.objects.filter(
        pk=alarm.pk, is_open=True, kind=alarm.kind, notified_at=alarm.notified_at
    )
    for name, value in changed.items():
        setattr(alarm, name, value)
    if changed:
        same.update(**changed)


def _is_worse(kind: str, than: str) -> bool:
    states = ViewState.values
    return kind in states and than in states and states.index(kind) < states.index(than)


def _duration(kind: str) -> timedelta:
    """How long a problem must last until its alarm is raised."""
    if kind in AT_ONCE:
        return timedelta()
    return SELF_ENDING_AFTER if kind in SELF_ENDING else get_settings().ALARM_AFTER


def _end_if_due(alarm: Alarm, now: datetime) -> None:
    same = Alarm.objects.filter(pk=alarm.pk, is_open=True)
    if alarm.raised_at is None:
        with engine.short_transaction():
            same.filter(raised_at=None).delete()
    elif alarm.gone_since is None:
        same.update(gone_since=now)
    elif now - alarm.gone_since >= get_settings().ALARM_AFTER:
        same.update(ended_at=now, is_open=None)


def _claim(listed: Iterable[int]) -> list[Alarm]:
    """Claim the alarms of which people are to be notified; nobody else gets them meanwhile.

    Args:
        listed: primary keys of those that are not repeated, because another one lists them.
    """
    now, token = engine.now(), uuid4().hex
    old = Q(is_open=True, gone_since=None, notified_at__lte=now - get_settings().ALARM_REPEAT)
    repeated = old & ~Q(pk__in=list(listed))
    over = Q(ended_at__isnull=False)
    ended = over & (Q(notified_at=None) | Q(notified_at__lte=F("ended_at")))
    lately = over | Q(notified_at__gt=now - get_settings().ALARM_REPEAT)
    tried = Q(notified_at__gt=now - RETRY_OFTEN) | Q(claimed_at__lte=now - RETRY_OFTEN)
    retried = ~Q(undelivered="") & lately & tried
    due = Q(raised_at__isnull=False) & (Q(notified_at=None) | repeated | ended | retried)
    free = Q(claim="") | Q(claimed_at__lte=now - LEASE)
    with engine.short_transaction():
        Alarm.objects.filter(due, free).update(claim=token, claimed_at=now)
    alarms = list(Alarm.objects.filter(claim=token))
    for alarm in alarms:
        _set_event(alarm)
    return alarms


def _set_event(alarm: Alarm) -> None:
    """What people are notified of; `undelivered` stays if only that is delivered again."""
    notified = alarm.notified_at
    if alarm.ended_at:
        event = AlarmEvent.ENDED
        retried = notified is not None and notified > alarm.ended_at
    elif notified is None:
        event, retried = AlarmEvent.RAISED, False
    else:
        event = AlarmEvent.REPEATED
        retried = notified > engine.now() - get_settings().ALARM_REPEAT
    if not retried:
        alarm.event, alarm.undelivered = event, ""


def _mark_notified(alarms: Iterable[Alarm]) -> None:
    """Record what people were notified of, except of those that have got worse meanwhile."""
    alike = defaultdict(list)
    for each in alarms:
        alike[each.claim, each.kind, each.notified_at, each.event, each.undelivered].append(each.pk)
    for (claim, kind, notified_at, event, undelivered), keys in alike.items():
        claimed = Alarm.objects.filter(pk__in=keys, claim=claim)
        worse = claimed.filter(kind__in=[each for each in AT_ONCE if _is_worse(each, kind)])
        worse.update(claim="")
        claimed.update(notified_at=notified_at, event=event, undelivered=undelivered, claim="")
