"""Handlers that publish datagrams to a message broker.

::

    from tomada.sinks import JetStream

    sink = JetStream("nats://127.0.0.1:4222", "telemetry")
    tomada.serve(("0.0.0.0", 1234), sink, workers=4)

A sink does not wait for an unavailable broker: it holds a limited number of datagrams and then
drops new ones. At any moment, its counters account for every datagram: ``received == published +
dropped + in_flight``.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tomada._core import SinkStats
from tomada._server.steering import Key
from tomada._sinks.jetstream import JetStream
from tomada._sinks.kafka import Kafka
from tomada._sinks.sink import Sink, without_password

__all__ = ["JetStream", "Kafka", "Sink", "SinkStats", "from_url"]


def _key(text: str) -> str | Key:
    if text == "source":
        return text
    try:
        offset, length = map(int, text.split(","))
    except ValueError:
        raise ValueError(f"key must be source or OFFSET,LENGTH, not {text!r}") from None
    return Key(offset, length)


# The options that a URL may set, and their types.
_COMMON = {"key": _key, "pack": str, "capacity": int, "linger": float}
_OF_NATS = {**_COMMON, "window": int, "credentials": str}


def from_url(url: str) -> Sink:
    """Return the sink for a URL: ``nats://HOST:PORT?subject=…`` or ``kafka://HOST:PORT,…?topic=…``.

    Further parameters are ``key=source`` or ``key=OFFSET,LENGTH`` (see :func:`tomada.key`),
    ``pack=arrow``, ``capacity`` and ``linger``. For NATS, there are also ``window`` and
    ``credentials`` (a file), and ``tls://`` connects over TLS. For Kafka, a parameter with a dot in
    its name is a librdkafka setting, such as ``compression.type=lz4``.

    :raises ValueError: The URL does not have this form.
    :raises ImportError: The broker's client is not installed.
    """
    parts, shown = urlsplit(url), without_password(url.partition("?")[0])
    place = {"nats": "subject", "tls": "subject", "kafka": "topic"}.get(parts.scheme)
    if place is None or not parts.netloc:
        raise ValueError(
            f"{shown!r} is not a sink: write nats://HOST:PORT?subject=… or kafka://HOST:PORT?topic=…"
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    target = given.pop(place, "")
    if not target:
        raise ValueError(f"{shown!r} lacks its {place}: add ?{place}=…")
    is_kafka = place == "topic"
    if is_kafka and "@" in parts.netloc:
        raise ValueError(f"{shown!r} has a user: set sasl.username=… and sasl.password=… instead")
    config = {name: given.pop(name) for name in [*given] if is_kafka and "." in name}
    known: dict[str, Any] = _COMMON if is_kafka else _OF_NATS
    options: dict[str, Any] = {}
    for name, text in given.items():
        if name not in known:
            raise ValueError(f"{shown!r} sets {name!r}, which is not an option of this sink")
        try:
            options[name] = known[name](text)
        except ValueError as error:
            raise ValueError(f"{name} of {shown!r}: {error}") from None
    if is_kafka:
        return Kafka(parts.netloc, target, config=config, **options)
    if "credentials" in options:
        options["user_credentials"] = options.pop("credentials")
    servers = [f"{parts.scheme}://{server}" for server in parts.netloc.split(",")]
    return JetStream(servers, target, **options)
