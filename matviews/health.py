"""Whether views are refreshed as they should be, in one call: for monitoring."""

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections, transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from . import engine
from .answer_cache import CachedAnswer
from .conf import get_settings
from .tasks.problems import Health, HealthState, Problem, check_health

__all__ = [
    "Health", "HealthState", "Problem", "as_dict", "check_health", "connection_returned", "health",
    "recent_health", "recent_statuses", "refusal",
]  # fmt: skip

CACHE_SECONDS = 5.0


@transaction.non_atomic_requests(using=engine.alias())
@never_cache
@require_safe
def health(request: HttpRequest) -> JsonResponse:
    """The health as JSON: status 200 if it is fine or degraded, 503 if it is broken.

    For monitoring, not for readiness probes of web pods: a pod that serves pages is ready even if
    no view is refreshed. With `MATVIEWS["HEALTH_TOKEN"]` it answers 403 unless the request has the
    header `Authorization: Bearer <token>`. Each process computes it at most once every 5 seconds,
    and finds the status of the views less often if that takes more than 5 ms.
    """
    if refused := refusal(request):
        return refused
    found = recent_health()
    status = 503 if found.state is HealthState.BROKEN else 200
    return JsonResponse(as_dict(found), status=status)


@contextmanager
def connection_returned() -> Iterator[None]:
    """Close the database connection afterwards if it was opened here: for threads of others."""
    connection = connections[engine.alias()]
    was_open = connection.connection is not None
    try:
        yield
    finally:
        if not was_open:
            connection.close()


def refusal(request: HttpRequest) -> JsonResponse | None:
    """The answer to a request without the right token; None if it has the token or needs none."""
    token = get_settings().HEALTH_TOKEN
    given = request.headers.get("Authorization", "").encode()
    if token and not hmac.compare_digest(given, f"Bearer {token}".encode()):
        return JsonResponse({"error": "The token is missing or wrong."}, status=403)
    return None


def as_dict(found: Health) -> dict[str, Any]:
    """The health as values for JSON, without the errors of views."""
    return {
        "state": found.state.value,
        "problems": [
            {"state": each.state.value, "kind": each.kind, "view": each.view, "text": each.text}
            for each in found.problems
        ],
    }


#: The status of every view, a few seconds old.
recent_statuses = CachedAnswer(lambda: engine.view_statuses(counted=False), CACHE_SECONDS)
recent_health = CachedAnswer(
    lambda: check_health(recent_statuses), CACHE_SECONDS, longest=CACHE_SECONDS
)
