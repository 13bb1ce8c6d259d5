"""What an operator does to views: it is done, noted in the admin's log, and told in messages."""

from collections.abc import Iterable
from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest

from .. import engine, tasks
from ..exceptions import MatviewsError, UnknownView
from ..models import Origin, Refresh, ViewControl
from ..registry import registry
from ..states import RefreshState
from ..tasks import broker_errors, schedules

__all__ = ["Steering"]

NAMED = 5  # views in a message; of more, the number is given

ENDED = "Refresh {} has ended already."
# What a message says of the workers, who are told after the commit.
TOLD = {
    None: "the workers are told when it is committed",
    True: "the workers have been told",
    False: "sent by matviews.maintain when the broker is back ({error})",
}


class Steering:
    """The actions, for the list, the view page and the refresh page alike.

    No sentence begins with a label: the admin shows messages with a capital letter.

    Nothing here checks permissions: whoever calls it has done so.
    """

    def __init__(self, model_admin: Any, request: HttpRequest) -> None:
        self._admin, self._request = model_admin, request
        self._broker_error = "see the log"

    def refresh(self, controls: Iterable[ViewControl], phases: list[str] | None = None) -> None:
        """Ask for a refresh of each view; what is refused keeps the others from nothing."""
        asked: list[ViewControl] = []
        for control in controls:
            try:
                made = self._ask(control.label, phases)
            except MatviewsError as error:
                self._say(f"No refresh of {control.label}: {error}", messages.WARNING)
            else:
                asked.append(control)
                self._note(control, f"Asked for refresh {made.pk}: {', '.join(made.phases)}.")
        if going := [control for control in asked if not control.paused]:
            self._tell(f"Refresh of {_names(going)} recorded", going)
        if paused := [control for control in asked if control.paused]:
            self._say(
                f"Refresh of {_names(paused)} recorded; it waits until resumed.", messages.WARNING
            )

    def pause(self, controls: Iterable[ViewControl]) -> None:
        """Hold the work of each view between two batches; requests are kept and wait."""
        if changed := self._set_paused(controls, True):
            self._say(f"Paused: {_names(changed)}. A batch that is at work ends first.")

    def resume(self, controls: Iterable[ViewControl]) -> None:
        """Let the work of each view go on."""
        if changed := self._set_paused(controls, False):
            self._tell(f"Resume of {_names(changed)} recorded", changed)

    def stop(self, refresh: Refresh) -> None:
        """End a refresh between two batches; what these have committed stays."""
        if not engine.request_stop(refresh.pk):
            self._say(ENDED.format(refresh.pk), messages.WARNING)
            return
        self._note(refresh.view, f"Asked refresh {refresh.pk} to stop.")
        sent = self._send([refresh.view])
        refresh.refresh_from_db(fields=["state", "requests"])
        count = engine.count_requests(refresh)
        which = (
            f"Refresh {refresh.pk}{f', with the {count} requests that it includes,' * (count > 1)}"
        )
        if refresh.state == RefreshState.OPEN:
            self._say(f"{which} stops after the batch that is at work; {self._told(sent)}.")
        elif refresh.state == RefreshState.STOPPED:
            self._say(f"{which} has been stopped.")
        else:
            self._say(ENDED.format(refresh.pk), messages.WARNING)

    def _ask(self, label: str, phases: list[str] | None) -> Refresh:
        if label not in registry:
            raise UnknownView("The code no longer defines it.")
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
            self._note(control, "Paused." if paused else "Resumed.")
        if changed:
            transaction.on_commit(schedules.reconcile, using=engine.alias(), robust=True)
        else:
            self._say("Nothing to do: it was so already.", messages.WARNING)
        return changed

    def _tell(self, done: str, controls: list[ViewControl]) -> None:
        sent = self._send(controls)
        self._say(
            f"{done}; {self._told(sent)}.", messages.WARNING if sent is False else messages.SUCCESS
        )

    def _send(self, controls: list[ViewControl]) -> bool | None:
        """Send what is due once this is committed; None if that is to come."""
        answers: list[bool] = []

        def send() -> None:
            answers.append(False)  # should it raise
            with broker_errors.heard() as errors:
                answers[0] = tasks.dispatch_all([control.pk for control in controls])
            self._broker_error = "; ".join(errors) or self._broker_error

        transaction.on_commit(send, using=engine.alias(), robust=True)
        return answers[0] if answers else None

    def _told(self, sent: bool | None) -> str:
        return TOLD[sent].format(error=self._broker_error)

    def _note(self, control: ViewControl, what: str) -> None:
        self._admin.log_change(self._request, control, what)

    def _say(self, sentence: str, level: int = messages.SUCCESS) -> None:
        self._admin.message_user(self._request, sentence, level)


def _names(controls: list[ViewControl]) -> str:
    if len(controls) > NAMED:
        return f"{len(controls)} views"
    return ", ".join(control.label for control in controls)
