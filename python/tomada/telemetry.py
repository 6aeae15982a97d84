"""A server's counters for OpenTelemetry: the extra ``tomada[otel]``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider

from tomada._address import format_address
from tomada._core import ServerCounters

if TYPE_CHECKING:
    from tomada.server import Server

__all__ = ["instrument"]

# The units of counters that do not count datagrams (UCUM).
UNITS = {
    "received_bytes": "By",
    "sent_bytes": "By",
    "handler_time": "s",
    "receive_calls": "{call}",
    "send_calls": "{call}",
    "handler_errors": "{error}",
    "receive_errors": "{error}",
    "restarts": "{restart}",
}


def instrument(server: Server, provider: MeterProvider | None = None) -> None:
    """Export a server's :meth:`~tomada.Server.stats` to OpenTelemetry, summed over all workers.

    Call it in the process that starts the server, before or after the start. A worker process must
    not inherit a provider that has started threads, so create the provider after the start::

        with tomada.Server(("0.0.0.0", 1234), handle, workers=4) as server:
            metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(exporter)]))
            tomada.telemetry.instrument(server)

    The counters are named ``tomada.server.received`` and so on, and have the attributes
    ``server.address`` and ``server.port`` (``server.address`` alone for ``AF_UNIX``). If the
    handler is a sink, there are also ``tomada.sink.received``, ``…published`` and ``…dropped``.

    :param provider: A meter provider; by default, the global one.
    """
    from tomada import __version__  # noqa: PLC0415 - it imports this package's other modules

    meter = (provider or get_meter_provider()).get_meter("tomada", __version__)
    for name, text in ServerCounters.descriptions().items():
        meter.create_observable_counter(
            f"tomada.server.{name}",
            [_observer(server, name, server.stats)],
            UNITS.get(name, "{datagram}"),
            text,
        )
    if server.sink is not None:
        for name in ("received", "published", "dropped"):
            text = f"Datagrams that the sink has {name}."
            observers = [_observer(server, name, server.sink.stats)]
            meter.create_observable_counter(f"tomada.sink.{name}", observers, "{datagram}", text)


def _observer(
    server: Server, name: str, stats: Callable[[], Any]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        try:
            value, address = getattr(stats(), name), server.address
        except RuntimeError:  # the server was not started
            return
        attributes: dict[str, str | int] = {"server.address": format_address(address)}
        if isinstance(address, tuple):
            attributes = {"server.address": address[0], "server.port": address[1]}
        yield Observation(value, attributes)

    return observe
