"""A server's counters for Prometheus: the extra ``tomada[metrics]``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tomada._address import format_address
from tomada._core import ServerCounters

if TYPE_CHECKING:
    from tomada.server import Server

__all__ = ["ServerCollector"]

# Prometheus counts the batches in a histogram, so calls are not counters of their own.
COUNTERS = {
    name: text
    for name, text in ServerCounters.descriptions().items()
    if name not in ("receive_calls", "send_calls")
}


class ServerCollector(Collector):
    """Exports a server's :meth:`~tomada.Server.stats` to Prometheus, summed over all workers.

    Register it in the process that started the server, and serve the registry with
    ``prometheus_client``, for example with ``start_http_server(8000)``::

        with tomada.Server(("0.0.0.0", 1234), handle, workers=4) as server:
            tomada.metrics.ServerCollector(server)

    Each metric has the label ``address``, which is the server's address. The counters are named
    ``tomada_server_received_total`` and so on; ``tomada_server_batch_size`` is a histogram of the
    number of datagrams per receive.

    :param registry: Where to register; ``None`` does not register.
    """

    def __init__(self, server: Server, registry: CollectorRegistry | None = REGISTRY) -> None:
        self._server = server
        if registry is not None:
            registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """Return the metrics without values, so that registering does not need a started server."""
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"tomada_server_{name}", text)
        yield HistogramMetricFamily("tomada_server_batch_size", "Datagrams in one batch.")

    def collect(self) -> Iterator[Metric]:
        """Return the current metrics. Before the server is started, they have no values."""
        try:
            stats, address = self._server.stats(), format_address(self._server.address)
        except RuntimeError:  # the server was not started
            yield from self.describe()
            return
        # An AF_UNIX path is bytes. A byte that is not text would make the whole scrape fail.
        labels = [address.encode(errors="replace").decode()]
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"tomada_server_{name}", text, labels=["address"])
            counter.add_metric(labels, getattr(stats, name))
            yield counter
        histogram = HistogramMetricFamily(
            "tomada_server_batch_size", "Datagrams in one batch.", labels=["address"]
        )
        buckets, total = [], 0
        for size, batches in stats.batch_sizes.items():
            total += batches
            buckets.append((str(float(size)), total))
        buckets[-1] = ("+Inf", total)
        histogram.add_metric(labels, buckets, sum_value=stats.received)
        yield histogram
