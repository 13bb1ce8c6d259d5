"""What an operator does to views. Each action is logged in the admin, and a message reports it."""

from collections.abc import Collection, Iterable
from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from .. import engine, tasks
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
from ..tasks import broker_errors, schedules
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
        """Request a refresh of each view. A refused view does not stop the others."""
        requested: list[ViewControl] = []
        for control in controls:
            try:
                refresh = self._request_refresh(control.label, phases)
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

    def stop(self, refresh: Refresh) -> None:
        """End a refresh between two batches; what its batches have committed stays."""
        ended = _("Refresh %(refresh)s has already ended.") % {"refresh": refresh.pk}
        if not engine.request_stop(refresh.pk):
            self._message(ended, messages.WARNING)
            return
        self._log(refresh.view, f"Requested a stop of refresh {refresh.pk}.")
        sent = self._send([refresh.view])
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

    def _request_refresh(self, label: str, phases: list[str] | None) -> Refresh:
        if label not in registry:
            raise UnknownView(_("The code no longer defines it."))
        return engine.request(
            label,
            phases=phases,
            origin=Origin.ADMIN,
            requested_by=self._request.user.get_username(),
        )

    def _set_paused(self, controls: Iterable[ViewControl], paused: bool) -> list[ViewControl]:
        changed = [control for control in controls if control.paused != paused]
        # Not save(), whose receivers would write schedules and send for one view after the other.
        keys = [control.pk for control in changed]
        ViewControl.objects.filter(pk__in=keys).update(paused=paused)
        for control in changed:
            self._log(control, "Paused." if paused else "Resumed.")
        if changed:
            transaction.on_commit(schedules.reconcile, using=engine.alias(), robust=True)
        else:
            self._message(_("Nothing changed."), messages.WARNING)
        return changed

    def _report_sent(self, done: str, controls: list[ViewControl]) -> None:
        """Send the messages, and report what was done and whether they were delivered."""
        sent = self._send(controls)
        level = messages.WARNING if sent is False else messages.SUCCESS
        self._message(self._with_delivery(done, sent), level)

    def _send(self, controls: list[ViewControl]) -> bool | None:
        """Send what is due once the transaction has committed; None if it has not yet."""
        answers: list[bool] = []

        def send() -> None:
            answers.append(False)  # should it raise
            with broker_errors.heard() as errors:
                answers[0] = tasks.dispatch_all([control.pk for control in controls])
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
        if not phases:
            return _("Tick at least one phase.")
        has = ", ".join(definition.options.phases)
        return _("It has only these phases: %(phases)s.") % {"phases": has}
    return str(REFUSED.get(type(error), error))


def _names(controls: list[ViewControl]) -> str:
    if len(controls) > MAX_NAMED:
        return count_views(len(controls))
    return ", ".join(control.label for control in controls)
