"""A Content-Security-Policy on Django 5.2 too; Django 6 has a middleware of its own for it."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

__all__ = ["content_security_policy"]


def content_security_policy(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Let pages load from this server only: no inline script, no inline style."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["Content-Security-Policy"] = "default-src 'self'"
        return response

    return middleware
