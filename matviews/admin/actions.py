"""What an operator does to views. Each action is logged in the admin, and a message reports it."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from .. import engine, tasks
from ..engine import VerifyMessage
from ..exceptions import (
    InvalidRequest,
    InvalidView,
    MatviewsError,
    UnknownView,
    ViewDisabled,
    ViewNotReady,
)
from ..models import Origin, Refresh, ViewControl
from ..registry import registry
from ..states import RefreshState, ViewState
from ..tasks import broker_errors, schedules, verifications
from .phrases import count_views, number

__all__ = ["OperatorActions"]

MAX_NAMED = 5  # views in a message; beyond that, only their number

# What a message says about the delivery, which happens after the commit: by success, None before
# the commit.
DELIVERY = {
    None: gettext_lazy("The workers are notified after the commit."),
    False: gettext_lazy(
        "The broker is unreachable (%(error)s); matviews.maintain notifies the workers when it is "
        "back."
    ),
}

# Why the engine refuses a request, which it says in English.
REFUSED: dict[type[MatviewsError], Any] = {
    ViewDisabled: gettext_lazy("It is disabled: enable it first, in its settings."),
    ViewNotReady: gettext_lazy("It has no bookkeeping rows yet: run manage.py migrate."),
}


class OperatorActions:
    """The actions of the list, the view page and the refresh page.

    Callers have checked the permissions.

    No message begins with a label: the admin capitalizes the first letter of messages. What goes to
    the admin's log is stored, so it is English.
    """

    def __init__(self, model_admin: Any, request: HttpRequest) -> None:
        self._admin, self._request = model_admin, request
        self._broker_error = _("see the log")

    def refresh(self, controls: Iterable[ViewControl], phases: list[str] | None = None) -> None:
        """Request a refresh of each view, after those of the views that it reads.

        A refused view does not stop the others.
        """
        requested: list[ViewControl] = []
        by_label = {control.label: control for control in controls}
        order = engine.Order(label for label in by_label if label in registry)
        for control in [by_label[label] for label in dict.fromkeys([*order.labels, *by_label])]:
            try:
                refresh = self._request_refresh(control.label, phases, order)
            except MatviewsError as error:
                refused = _("Cannot refresh %(view)s: %(error)s")
                names = {"view": control.label, "error": _refusal(error, control, phases)}
                self._message(refused % names, messages.WARNING)
            else:
                requested.append(control)
                phase_names = ", ".join(refresh.phases)
                self._log(control, f"Requested refresh {refresh.pk}: {phase_names}.")
        if active := [control for control in requested if not control.paused]:
            done = _("Refresh of %(views)s queued.") % {"views": _names(active)}
            self._report_sent(done, active)
        if paused := [control for control in requested if control.paused]:
            waits = _("Refresh of %(views)s queued; it waits until resumed.")
            self._message(waits % {"views": _names(paused)}, messages.WARNING)

    def retry(self, control: ViewControl) -> None:
        """Request a refresh of a view that tries its parked keys again, too."""
        if control.definition:
            engine.retry_parked(control.label)
        self.refresh([control])

    def pause(self, controls: Iterable[ViewControl]) -> None:
        """Start no further batch of the views; requests are kept and wait."""
        if changed := self._set_paused(controls, True):
            done = _("Paused: %(views)s. A running batch will finish first.")
            self._message(done % {"views": _names(changed)})

    def resume(self, controls: Iterable[ViewControl]) -> None:
        """Let the batches of the views start again."""
        if changed := self._set_paused(controls, False):
            done = _("Resumed: %(views)s.") % {"views": _names(changed)}
            self._report_sent(done, changed)

    def resume_suspended(self, controls: Iterable[ViewControl]) -> None:
        """Forget the failures of the suspended ones among views, and let their batches start."""
        suspended = [control for control in controls if control.suspended_at]
        if not suspended:
            self._message(_("Nothing changed."), messages.WARNING)
            return
        engine.resume(control.pk for control in suspended)
        for control in suspended:
            self._log(control, f"Resumed after {control.failures} failures.")
        done = _("No longer suspended: %(views)s.") % {"views": _names(suspended)}
        self._report_sent(done, suspended)

    def retry_parked(self, control: ViewControl, ids: list[int] | None) -> None:
        """Have parked keys tried again, and request the refresh that does; None for all keys."""
        if ids == []:
            self._message(_("Tick at least one key."), messages.WARNING)
            return
        try:
            count = engine.retry_parked(control.label, ids)
        except UnknownView:
            count = 0
        if not count:
            self._message(_("None of these keys is parked any more."), messages.WARNING)
            return
        self._log(control, f"Requested another try of {count} parked keys.")
        tried = ngettext(
            "The next refresh tries %(count)s parked key again.",
            "The next refresh tries %(count)s parked keys again.",
            count,
        )
        self._message(tried % {"count": number(count)})
        self.refresh([control])

    def verify(self, controls: Iterable[ViewControl], *, repair: bool = False) -> None:
        """Request a verification of each view. A refused view does not stop the others."""
        requested: list[ViewControl] = []
        to_send: list[VerifyMessage] = []
        for control in controls:
            try:
                to_send += self._request_verification(control, repair)
            except MatviewsError as error:
                refused = _("Cannot verify %(view)s: %(error)s")
                names = {"view": control.label, "error": _refusal(error, control, None)}
                self._message(refused % names, messages.WARNING)
            else:
                requested.append(control)
                self._log(control, f"Requested a {'repair' if repair else 'verification'}.")
        if requested:
            done = (
                _("Repair of %(views)s queued.")
                if repair
                else _("Verification of %(views)s queued.")
            )
            sent = self._send(lambda: verifications.send(to_send))
            level = messages.WARNING if sent is False else messages.SUCCESS
            self._message(self._with_delivery(done % {"views": _names(requested)}, sent), level)

    def _request_verification(self, control: ViewControl, repair: bool) -> list[VerifyMessage]:
        if control.label not in registry:
            raise UnknownView(_("The code no longer defines it."))
        if control.definition and not control.definition.has_source:
            raise InvalidRequest(_("It has no source() to compare it with."))
        name = self._request.user.get_username()
        return verifications.request(control.label, repair=repair, requested_by=name)

    def stop(self, refresh: Refresh) -> None:
        """End a refresh between two batches; what its batches have committed stays."""
        ended = _("Refresh %(refresh)s has already ended.") % {"refresh": refresh.pk}
        if not engine.request_stop(refresh.pk):
            self._message(ended, messages.WARNING)
            return
        self._log(refresh.view, f"Requested a stop of refresh {refresh.pk}.")
        sent = self._dispatch([refresh.view])
        refresh.refresh_from_db(fields=["state", "requests"])
        count = engine.count_requests(refresh)
        names = {"refresh": refresh.pk, "count": number(count)}
        if refresh.state == RefreshState.OPEN:
            stops = ngettext(
                "Refresh %(refresh)s stops after the running batch.",
                "Refresh %(refresh)s, which includes %(count)s requests, stops after the running "
                "batch.",
                count,
            )
            self._message(self._with_delivery(stops % names, sent))
        elif refresh.state == RefreshState.STOPPED:
            stopped = ngettext(
                "Refresh %(refresh)s has been stopped.",
                "Refresh %(refresh)s, which includes %(count)s requests, has been stopped.",
                count,
            )
            self._message(stopped % names)
        else:
            self._message(ended, messages.WARNING)

    def _request_refresh(
        self, label: str, phases: list[str] | None, order: engine.Order
    ) -> Refresh:
        if label not in registry:
            raise UnknownView(_("The code no longer defines it."))
        refresh = engine.request(
            label,
            phases=phases,
            origin=Origin.ADMIN,
            requested_by=self._request.user.get_username(),
            force=True,
            upstream_refreshes=order.follows(label),
            waits_for_upstream=True,
        )
        order.add(label, refresh)
        return refresh

    def _set_paused(self, controls: Iterable[ViewControl], paused: bool) -> list[ViewControl]:
        changed = [control for control in controls if control.paused != paused]
        # Not save(), whose receivers would write schedules and send for one view after the other.
        keys = [control.pk for control in changed]
        ViewControl.objects.filter(pk__in=keys).update(
            paused=paused, paused_by=self._request.user.get_username()
        )
        if not paused:
            engine.try_now(keys, wait_again=True)
        for control in changed:
            self._log(control, "Paused." if paused else "Resumed.")
        if changed:
            transaction.on_commit(schedules.reconcile, using=engine.alias(), robust=True)
        else:
            self._message(_("Nothing changed."), messages.WARNING)
        return changed

    def _report_sent(self, done: str, controls: list[ViewControl]) -> None:
        """Send the messages, and report what was done and whether they were delivered."""
        sent = self._dispatch(controls)
        level = messages.WARNING if sent is False else messages.SUCCESS
        self._message(self._with_delivery(done, sent), level)

    def _dispatch(self, controls: list[ViewControl]) -> bool | None:
        """Send the messages that are due for views, as `_send` does."""
        return self._send(lambda: tasks.dispatch_all([control.pk for control in controls]))

    def _send(self, deliver: Callable[[], bool]) -> bool | None:
        """Deliver once the transaction has committed; None if it has not yet."""
        answers: list[bool] = []

        def send() -> None:
            answers.append(False)  # should it raise
            with broker_errors.collected() as errors:
                answers[0] = deliver()
            self._broker_error = "; ".join(errors) or self._broker_error

        transaction.on_commit(send, using=engine.alias(), robust=True)
        return answers[0] if answers else None

    def _with_delivery(self, done: str, sent: bool | None) -> str:
        if sent:
            return done
        return f"{done} {DELIVERY[sent] % {'error': self._broker_error}}"

    def _log(self, control: ViewControl, what: str) -> None:
        self._admin.log_change(self._request, control, what)

    def _message(self, sentence: str, level: int = messages.SUCCESS) -> None:
        self._admin.message_user(self._request, sentence, level)


def _refusal(error: MatviewsError, control: ViewControl, phases: Collection[str] | None) -> str:
    """Why a refresh of a view was refused; what is wrong with its class is in English."""
    definition = control.definition
    if definition and isinstance(error, InvalidView):
        return " ".join([ViewState.INVALID.meaning, *(str(each.msg) for each in definition.errors)])
    if definition and isinstance(error, InvalidRequest):
        if phases is None:
            return str(error)
        if not phases:
            return _("Tick at least one phase.")
        has = ", ".join(definition.options.phases)
        return _("It has only these phases: %(phases)s.") % {"phases": has}
    return str(REFUSED.get(type(error), error))


def _names(controls: list[ViewControl]) -> str:
    if len(controls) > MAX_NAMED:
        return count_views(len(controls))
    return ", ".join(control.label for control in controls)
