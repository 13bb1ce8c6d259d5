"""Metrics for Prometheus, read from the bookkeeping when they are scraped.

`metrics` is an address for `urls.py` and needs no package. `Collector` is for a registry of
prometheus-client: `pip install django-matviews[metrics]`.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from . import engine
from .health import connection_returned, refusal
from .series import SERIES, Sample, Series, look

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

__all__ = ["Collector", "metrics", "register"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Collector:
    """Gives prometheus-client all metrics of this package.

    Raises:
        ImproperlyConfigured: prometheus-client is not installed.
    """

    def __init__(self) -> None:
        self._core = _prometheus()

    def collect(self) -> "Iterator[Metric]":
        """Look at the bookkeeping, once for each scrape."""
        with connection_returned():  # its own server makes a thread for each scrape
            found = _by_series()
        for series in SERIES:
            kind = self._core.CounterMetricFamily if series.kind == "counter" else None
            family = (kind or self._core.GaugeMetricFamily)(
                series.name, series.help, labels=series.labels
            )
            for sample in found[series]:
                family.add_metric(sample.labels, sample.value)
            yield family

    def describe(self) -> "Iterator[Metric]":
        """The metrics without samples, so that registering reads nothing."""
        for series in SERIES:
            yield self._core.Metric(series.name.removesuffix("_total"), series.help, series.kind)


def _prometheus() -> Any:
    try:
        from prometheus_client import core
    except ImportError as error:
        raise ImproperlyConfigured(
            "prometheus-client is not installed: pip install django-matviews[metrics]"
        ) from error
    return core


def register(registry: "CollectorRegistry | None" = None) -> Collector:
    """Add a collector to a registry of prometheus-client, by default to its global one.

    Raises:
        ImproperlyConfigured: prometheus-client is not installed.
    """
    collector = Collector()
    (registry or _prometheus().REGISTRY).register(collector)
    return collector


@transaction.non_atomic_requests(using=engine.alias())
@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """All metrics in the text format of Prometheus.

    With `MATVIEWS["HEALTH_TOKEN"]` it answers 403 unless the request has the header
    `Authorization: Bearer <token>`. If the database does not answer, the status is 200 and
    `matviews_up` is 0.
    """
    return refusal(request) or HttpResponse(_text(), content_type=CONTENT_TYPE)


def _by_series() -> dict[Series, list[Sample]]:
    found: dict[Series, list[Sample]] = defaultdict(list)
    for sample in look():
        found[sample.series].append(sample)
    return found


def _text() -> str:
    """The samples as prometheus-client would write them, in a tenth of the time."""
    found, lines, label = _by_series(), list[str](), cache(_label)
    for series in SERIES:
        lines += (f"# HELP {series.name} {series.help}", f"# TYPE {series.name} {series.kind}")
        for _series, labels, value in found[series]:
            named = ",".join(map(label, series.labels, labels))
            lines.append(f"{series.name}{named and f'{{{named}}}'} {float(value)!r}")
    return "\n".join([*lines, ""])


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{escaped}"'
