"""The sink for Apache Kafka."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

from tomada._sinks.packing import Message, messages
from tomada._sinks.sink import KeyOf, Pack, Sink, log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from confluent_kafka import Producer

# How long the thread waits for the broker's reports before it checks for new datagrams, in seconds.
TICK = 0.05
# The same while there is nothing to publish.
IDLE = 1.0
# The longest message to publish, in bytes: by default, a broker accepts up to 1 MB.
LARGEST = 900_000


class Kafka(Sink):
    """Publishes datagrams to a topic of Apache Kafka: the extra ``tomada[kafka]``.

    librdkafka retries until the broker acknowledges a message. A message that the broker can never
    accept (because it is too long, or the topic is unknown) is dropped and counted.

    :param servers: One or more brokers, such as ``"127.0.0.1:9092"``.
    :param topic: The topic.
    :param key: The message's key, which determines the partition: ``"source"`` for the sender's
        host, or a function of the payload and the address that returns the key. ``None`` means no
        key.
    :param pack: See :class:`Sink`. With ``None``, a message has the headers ``Source`` (host and
        port) and ``Timestamp-Ns`` (when the kernel received the datagram, in nanoseconds since
        1970).
    :param capacity: See :class:`Sink`.
    :param linger: See :class:`Sink`.
    :param config: Further librdkafka settings, such as ``{"compression.type": "lz4"}``.
    :raises ValueError: librdkafka does not accept a setting.
    :raises ImportError: ``confluent-kafka`` is not installed.
    """

    def __init__(  # noqa: PLR0913 - the options of a sink
        self,
        servers: str | Sequence[str],
        topic: str,
        *,
        key: KeyOf = None,
        pack: Pack = None,
        capacity: int = 100_000,
        linger: float = 4.0,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        from confluent_kafka import KafkaException, Producer  # noqa: PLC0415 - an extra

        super().__init__(key, pack, capacity, linger)
        if not topic:
            raise ValueError("topic must not be empty: pass the name of a topic")
        self._topic = topic
        self._config = {
            "bootstrap.servers": servers if isinstance(servers, str) else ",".join(servers),
            "client.id": "tomada",
            "message.timeout.ms": 0,  # no timeout: retry until the sink gives up
            "queue.buffering.max.messages": min(capacity, 10_000_000),
            "linger.ms": 5,
            "logger": log,
            **(config or {}),
        }
        try:  # check the settings, without connecting to a broker
            Producer({**self._config, "bootstrap.servers": "", "log_level": 0})
        except (KafkaException, TypeError, ValueError) as error:
            reason = error.args[0]
            text = reason.str() if hasattr(reason, "str") else reason
            raise ValueError(f"cannot use the settings for Kafka: {text}") from None

    def _forget(self) -> None:
        super()._forget()
        self._news = threading.Event()

    def _wake(self) -> None:
        self._news.set()

    def _publish(self) -> None:
        from confluent_kafka import Producer  # noqa: PLC0415 - an extra

        producer = Producer({"error_cb": self._complain, **self._config})
        try:
            while self._time_left > 0:
                rows = self._take(4096)
                for message in messages(rows, self._key, self._pack, LARGEST, self._refuse):
                    self._produce(producer, message)
                if rows:
                    producer.poll(0)
                elif self._is_closing and not len(producer):
                    break
                elif len(producer):
                    producer.poll(TICK)
                else:
                    producer.poll(0)  # this reports whether the brokers are down
                    self._news.wait(TICK if self._is_closing else IDLE)
                    self._news.clear()
        finally:
            # Each purged message is reported with an error, which counts it as dropped.
            producer.purge(in_queue=True, in_flight=True, blocking=True)
            producer.poll(0)

    def _produce(self, producer: Producer, message: Message) -> None:
        """Pass a message to librdkafka; retry while its queue is full."""
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

        report = functools.partial(self._report, message.datagrams)
        headers: Any = message.headers and list(message.headers.items())
        while True:
            try:
                producer.produce(
                    self._topic,
                    message.payload,
                    message.key or None,
                    headers=headers,
                    on_delivery=report,
                )
            except BufferError:
                if self._time_left <= 0:
                    break
                producer.poll(TICK)
            except KafkaException as error:
                self._complain(error)
                break
            else:
                return
        self._dropped(message.datagrams)

    def _report(self, datagrams: int, error: Any, _message: Any) -> None:
        """Count a message as published or dropped, as librdkafka reports it."""
        if error is None:
            self._published(datagrams)
        else:
            self._complain(error)
            self._dropped(datagrams)
