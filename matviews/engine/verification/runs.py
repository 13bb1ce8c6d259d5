"""Verifications in the background: requested once per view, and done in slices of some seconds.

As with batches, a message is a hint. It has a token, and only the first worker that presents the
current one gets the run; a lease by the database's clock says when it is sent again.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from django.db import IntegrityError, InterfaceError, OperationalError, transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce

from ...conf import get_settings
from ...databases import clock
from ...databases.clock import UtcNow
from ...databases.keys import from_json
from ...definition import ViewDefinition
from ...exceptions import ViewBusy
from ...logs import log
from ...models import Origin, VerifyRun, ViewControl
from ...redact import bounded, error_text, loggable
from ..batches.claim import worker_name
from ..requests.controls import not_ready
from ..transactions import alias, drop_broken_connection, now, short_transaction, statement_timeout
from .comparison import compare_without_pending
from .halves import Halves
from .key_parts import Part, keys_left_out, keys_part, parts, repair_part
from .progress import VerifyProgress
from .sums import count_differing_sums
from .verify import check_verifiable, failed_text, stored_result
from .waits import postpone_if_needed

__all__ = ["VerifyMessage", "repaired_view", "request_verification", "rescue_verifications",
    "verify_slice"]  # fmt: skip

logger = logging.getLogger(__name__)

SLICE = 20.0  # seconds that a worker spends on a run before others get their turn
KEYS_AGAIN = 1_000  # keys of the second pass that are compared together
SAVE_EVERY = 1.0  # seconds
MAX_ATTEMPTS = 3  # in a row without getting any further: the worker was killed, or the database
KILLED = f"{MAX_ATTEMPTS} workers in a row died while they compared the same rows."
MAX_NAME_LENGTH = 255  # characters of the requester


class VerifyMessage(NamedTuple):
    """What a worker is sent: the primary key of the run, and its token; and where it is sent."""

    run_id: int
    token: int
    #: The queue of its view; None leaves it to `task_routes`.
    queue: str | None = None


class _Superseded(Exception):
    """Another worker has the run, or it was requested again."""


def request_verification(
    view: str | type,
    *,
    sample: int | None = None,
    repair: bool = False,
    origin: Origin = Origin.API,
    requested_by: str = "",
) -> VerifyMessage | None:
    """Request a verification in the background; the message to send after the commit, if any.

    One that waits or runs is joined. If it would do less, it begins again and does both.

    Raises:
        UnknownView, InvalidView, InvalidRequest, ViewNotReady: as `verify`.
    """
    definition = check_verifiable(view, sample)
    control = ViewControl.objects.filter(label=definition.label).first()
    if control is None:
        raise not_ready(definition.label)
    requested = {
        "origin": origin,
        "requested_by": bounded(requested_by)[:MAX_NAME_LENGTH],
        "requested_at": now(),
        "resend_after": UtcNow() + _lease(),
    }
    new = VerifyRun(view=control, sample=sample, repair=repair, **requested)
    with short_transaction(durable=False):
        with suppress(IntegrityError), transaction.atomic(using=alias()):
            new.save(force_insert=True)
            return VerifyMessage(new.pk, new.token, control.queue_name)
        run = VerifyRun.objects.filter(view=control).select_for_update().first()
        if run is None:
            return None
        if _covers(run, sample, repair):
            return _take_over(run, control, requested) if origin != Origin.SCHEDULE else None
        wider = None if None in (sample, run.sample) else max(sample or 0, run.sample or 0)
        VerifyRun.objects.filter(pk=run.pk).update(
            token=F("token") + 1, sample=wider, repair=repair or run.repair,
            started_at=None, attempts=0, progress=VerifyProgress.begun_again(run.progress),
            wait=None, waiting_since=None, proceeded_despite=None, **requested,
        )  # fmt: skip
        return VerifyMessage(run.pk, run.token + 1, control.queue_name)


def _take_over(
    run: VerifyRun, control: ViewControl, requested: dict[str, Any]
) -> VerifyMessage | None:
    """Hand a schedule's run over to a person: it no longer waits for quiet hours.

    Returns:
        The message to send if the run was waiting.
    """
    if run.origin != Origin.SCHEDULE:
        return None
    names = ("origin", "requested_by")
    waits = {"resend_after": requested["resend_after"]} if run.wait else {}
    VerifyRun.objects.filter(pk=run.pk).update(**{name: requested[name] for name in names}, **waits)
    return VerifyMessage(run.pk, run.token, control.queue_name) if waits else None


def _covers(run: VerifyRun, sample: int | None, repair: bool) -> bool:
    of_more = run.sample is None or (sample is not None and run.sample >= sample)
    return of_more and run.repair >= repair


def rescue_verifications() -> list[VerifyMessage]:
    """The messages to send again: of runs that no worker has taken, or whose worker is gone."""
    quiet = VerifyRun.objects.filter(Q(resend_after=None) | Q(resend_after__lt=UtcNow()))
    runs = quiet.order_by("pk").select_related("view")
    found = [VerifyMessage(run.pk, run.token, run.view.queue_name) for run in runs]
    return [each for each in found if _update(each, resend_after=UtcNow() + _lease())]


def repaired_view(message: VerifyMessage) -> int | None:
    """The view whose rows the run writes: meanwhile its batches may be refused."""
    repairs = VerifyRun.objects.filter(pk=message.run_id, repair=True)
    return repairs.values_list("view_id", flat=True).first()


def verify_slice(message: VerifyMessage) -> VerifyMessage | None:
    """Work on a run for a few seconds, if its token is still that of the message.

    Returns:
        The message that continues it; None if it has ended, or if another worker has it.
    """
    waiting = VerifyRun.objects.select_related("view").filter(**_named(message)).first()
    if waiting and postpone_if_needed(waiting, message.token):
        return None
    claimed = {
        "token": F("token") + 1,
        "worker": worker_name(),
        "attempts": F("attempts") + 1,
        "started_at": Coalesce("started_at", UtcNow()),
        "resend_after": UtcNow() + _lease(),
    }
    if not _update(message, **claimed):
        log(logger, logging.DEBUG, "verification refused", run=message.run_id, token=message.token)
        return None
    mine = message._replace(token=message.token + 1)
    run = VerifyRun.objects.select_related("view").filter(**_named(mine)).first()
    if run is None:
        return None
    mine = mine._replace(queue=run.view.queue_name)
    progress = VerifyProgress.of(run.progress)
    if run.attempts > MAX_ATTEMPTS:
        _end(run, mine, progress, KILLED)
        return None
    try:
        if not _Slice(run, mine, progress).work():
            return mine
        _end(run, mine, progress)
    except _Superseded:
        pass
    except Exception as error:  # noqa: BLE001 - source() and depends_on may raise anything
        _fail(run, mine, progress, error)
    return None


def _fail(run: VerifyRun, mine: VerifyMessage, progress: VerifyProgress, error: Exception) -> None:
    """End a run that cannot succeed; after an error that may pass, `rescue_verifications` resumes.

    A worker that is killed leaves no error, only an attempt.
    """
    drop_broken_connection()
    passes = isinstance(error, (OperationalError, InterfaceError, ViewBusy))
    ends = not passes or run.attempts >= MAX_ATTEMPTS
    if ends:
        _end(run, mine, progress, error_text(error))
    log(
        logger, logging.ERROR if ends else logging.WARNING, "verification failed",
        exception=loggable(error), view=run.view.label, attempts=run.attempts,
        error=error_text(error),
    )  # fmt: skip


class _Slice:
    """A worker's turn at a run."""

    def __init__(self, run: VerifyRun, mine: VerifyMessage, progress: VerifyProgress) -> None:
        self._run, self._mine, self._progress = run, mine, progress
        self._until = time.monotonic() + SLICE
        self._saved = time.monotonic()
        self._turn = _lease()

    def work(self) -> bool:
        """Compare part after part; whether all are done."""
        definition = check_verifiable(self._run.view.label, self._run.sample)
        compare = partial(compare_without_pending, definition, self._run.view_id)
        halves = Halves(definition, self._run.view_id, compare, leave_out_pending=True)
        self._turn = _lease() + timedelta(seconds=statement_timeout(definition))
        self._hold()
        if not self._progress.has_compared_sums:
            self._compare_sums(definition)
        for part in self._parts(definition):
            self._compare(definition, part, halves)
            self._progress.cursor = part.cursor
            if time.monotonic() > self._until:
                self._save()
                return False
            if time.monotonic() > self._saved + SAVE_EVERY:
                self._save()
        return True

    def _compare_sums(self, definition: ViewDefinition) -> None:
        """Before a repair, after which they are to be recomputed anyway."""
        self._progress.has_compared_sums = True
        if self._run.sample is None:
            self._progress.sums = count_differing_sums(
                definition, self._run.view_id, record=self._record_sums
            )
        if self._progress.sums is not None:
            self._save()

    def _record_sums(self, groups: int) -> None:
        """For the worker that continues the run: once recomputed, the sums are right."""
        self._progress.sums = groups
        self._save()

    def _parts(self, definition: ViewDefinition) -> Iterator[Part]:
        """What is left of the first pass, then the keys that had a pending change in it."""
        progress, left_out = self._progress, keys_left_out(self._run.view_id)
        progress.parked = len(left_out)
        if not progress.is_second_pass:
            yield from parts(definition, self._run.sample, left_out, progress.cursor)
            progress.begin_second_pass()
        while some := progress.again[:KEYS_AGAIN]:
            progress.again = progress.again[KEYS_AGAIN:]
            yield keys_part(definition, map(from_json, some))

    def _compare(self, definition: ViewDefinition, part: Part, halves: Halves) -> None:
        for piece, result in halves.compare(part):
            self._progress.add(result)
            if self._run.repair and result.counts:
                self._progress.repaired += repair_part(definition, piece)
            if piece is not part:
                self._hold()

    def _save(self) -> None:
        self._saved = time.monotonic()
        self._hold(progress=self._progress.as_json(), attempts=0)

    def _hold(self, **changes: Any) -> None:
        """Keep the run until the next part is compared."""
        if not _update(self._mine, resend_after=UtcNow() + self._turn, **changes):
            raise _Superseded


def _end(run: VerifyRun, mine: VerifyMessage, progress: VerifyProgress, error: str = "") -> None:
    """Store the result and delete the run, unless another worker has it."""
    assert run.started_at is not None
    ended, counts = now(), progress.counts
    result = stored_result(
        **counts,
        at=ended.isoformat(),
        rows_compared=progress.rows_compared,
        repaired=progress.repaired if run.repair else None,
        sample=run.sample,
        parked=progress.parked,
        pending=progress.pending,
        untracked=progress.untracked,
        sums=progress.sums,
        examples=progress.examples,
        seconds=(ended - clock.stored(run.started_at, alias())).total_seconds(),
        origin=run.origin,
        requested_by=run.requested_by,
        error=error or failed_text(progress.failed, progress.error),
    )
    with short_transaction():
        if not VerifyRun.objects.filter(**_named(mine)).delete()[0]:
            return
        control = ViewControl.objects.filter(pk=run.view_id)
        before = control.values_list("differing", flat=True).first()
        control.update(verification=result, differing=_still_differing(before, result))
    _report(run, result)


def _still_differing(before: Any, result: dict[str, Any]) -> dict[str, Any] | None:
    """What is known to differ after a verification.

    A difference of an untracked view may be a change since its last refresh, and its next refresh
    compares all rows anyway.
    """
    differ, repaired = _differ(result), result["repaired"] is not None and not result["error"]
    if differ and not repaired and not result["untracked"]:
        counts = {kind: result[kind] for kind in ("missing", "differing", "surplus")}
        counts["sums"] = result["sums"] or 0
        return {"since": before["since"] if before else result["at"], **counts}
    is_full = not result["sample"] and not result["error"]
    return None if is_full and (repaired or not differ) else before


def _differ(result: dict[str, Any]) -> int:
    return sum(result[kind] or 0 for kind in ("missing", "differing", "surplus", "sums"))


def _report(run: VerifyRun, result: dict[str, Any]) -> None:
    names = ("rows_compared", "missing", "differing", "surplus", "repaired", "pending", "sums")
    facts = {name: result[name] for name in names}
    wrong = _differ(result) and not result["untracked"]
    level, event = (
        (logging.ERROR, "rows differ from their source")
        if wrong
        else (logging.INFO, "verification finished")
    )
    log(logger, level, event, view=run.view.label, **facts)


def _named(message: VerifyMessage) -> dict[str, int]:
    return {"pk": message.run_id, "token": message.token}


def _update(message: VerifyMessage, **changes: Any) -> bool:
    return bool(VerifyRun.objects.filter(**_named(message)).update(**changes))


def _lease() -> timedelta:
    """How long a message may take; a worker may take a statement's timeout longer."""
    return timedelta(seconds=get_settings().LEASE)
