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
from .series import SERIES, Sample, Series, collect, collect_groups

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
    for sample in collect():
        found[sample.series].append(sample)
    return found


class _Text:
    """The samples as prometheus-client would write them, in a tenth of the time.

    Of groups that have not changed since the last scrape, the lines are kept.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[list[Sample], dict[Series, str]]] = {}

    def __call__(self) -> str:
        kept, self._kept = self._kept, {}
        found: dict[Series, list[str]] = defaultdict(list)
        for group in collect_groups():
            known = kept.get(id(group)) or (group, _lines(group))
            self._kept[id(group)] = known  # with the group, so that no other gets its id
            for series, lines in known[1].items():
                found[series].append(lines)
        text = list[str]()
        for series in SERIES:
            text += (f"# HELP {series.name} {series.help}", f"# TYPE {series.name} {series.kind}")
            text += found[series]
        return "\n".join([*text, ""])


_text = _Text()


def _lines(samples: list[Sample]) -> dict[Series, str]:
    found, label = defaultdict[Series, list[str]](list), cache(_label)
    for series, labels, value in samples:
        named = ",".join(map(label, series.labels, labels))
        found[series].append(f"{series.name}{named and f'{{{named}}}'} {float(value)!r}")
    return {series: "\n".join(lines) for series, lines in found.items()}


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{escaped}"'
