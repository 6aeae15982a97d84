"""Handlers that publish datagrams to a distributed engine.

::

    from tomada.sinks import JetStream

    sink = JetStream("nats://127.0.0.1:4222", "telemetry")
    tomada.serve(("0.0.0.0", 1234), sink, workers=4)

A sink does not wait for an engine that is unavailable. It holds a limited number of datagrams and
then drops new ones. At any moment, its counters account for every datagram: ``received ==
published + dropped + in_flight``.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tomada._core import SinkStats
from tomada._sinks.jetstream import JetStream
from tomada._sinks.kafka import Kafka
from tomada._sinks.sink import Sink

__all__ = ["JetStream", "Kafka", "Sink", "SinkStats", "from_url"]

# The options that a URL may set, and their types.
_SETTINGS = {"key": str, "pack": str, "capacity": int, "window": int, "linger": float}


def from_url(url: str) -> Sink:
    """Return the sink for a URL: ``nats://HOST:PORT?subject=…`` or ``kafka://HOST:PORT,…?topic=…``.

    Further parameters are ``key=source``, ``pack=arrow``, ``capacity``, ``linger`` and, for NATS,
    ``window``. ``tls://`` connects to NATS over TLS.

    :raises ValueError: The URL does not have this form.
    :raises ImportError: The engine's client is not installed.
    """
    parts = urlsplit(url)
    place = {"nats": "subject", "tls": "subject", "kafka": "topic"}.get(parts.scheme)
    if place is None or not parts.netloc:
        raise ValueError(
            f"{url!r} is not a sink: write nats://HOST:PORT?subject=… or kafka://HOST:PORT?topic=…"
        )
    options: dict[str, Any] = dict(parse_qsl(parts.query, keep_blank_values=True))
    target = options.pop(place, "")
    if not target:
        raise ValueError(f"{url!r} lacks its {place}: add ?{place}=…")
    for name, text in options.items():
        if name not in _SETTINGS or (name == "window" and place == "topic"):
            raise ValueError(f"{url!r} sets {name!r}, which is not an option of this sink")
        options[name] = _SETTINGS[name](text)
    if place == "topic":
        return Kafka(parts.netloc, target, **options)
    servers = [f"{parts.scheme}://{server}" for server in parts.netloc.split(",")]
    return JetStream(servers, target, **options)
