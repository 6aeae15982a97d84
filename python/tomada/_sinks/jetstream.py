"""The sink for NATS JetStream."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING, Any

from tomada._sinks.packing import Message, messages, token
from tomada._sinks.sink import FIRST_PAUSE, LAST_PAUSE, KeyOf, Pack, Sink, without_password

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nats.aio.client import Client as Connection
    from nats.js import JetStreamContext

# Room in a message for the headers that nats-py adds to the payload.
HEADER_ROOM = 1024
# The error code of a message that exceeds the stream's max_msg_size.
EXCEEDS_MAXIMUM = 10054
# The longest subject in bytes. The server ends the connection of a client that sends a longer
# command than its max_control_line, by default 4096 bytes.
LONGEST_SUBJECT = 3072


class JetStream(Sink):
    """Publishes datagrams to NATS JetStream: the extra ``tomada[nats]``.

    The stream must exist and must include the subject. The sink republishes a message until
    JetStream acknowledges it. The message's identifier (``Nats-Msg-Id``) lets the stream drop
    duplicates within its duplicate window. A message that is longer than the server's
    ``max_payload`` or the stream's ``max_msg_size`` is dropped and counted.

    :param servers: One or more URLs, such as ``"nats://127.0.0.1:4222"``.
    :param subject: The subject to publish to. With ``key``, the key is appended as the last token,
        with ``_`` in place of characters that are special in a subject; a key that is not text
        becomes hexadecimal digits. A datagram whose subject would be longer than 3072 bytes is
        dropped and counted.
    :param key: ``"source"`` for the sender's host, or a function of the payload and the address
        that returns the key.
    :param pack: See :class:`Sink`. With ``None``, a message has the headers ``Source`` (host and
        port) and ``Timestamp-Ns`` (when the kernel received the datagram, in nanoseconds since
        1970).
    :param capacity: See :class:`Sink`.
    :param window: The maximum number of messages waiting for an acknowledgement.
    :param timeout: How long to wait for an acknowledgement before publishing again, in seconds.
    :param linger: See :class:`Sink`.
    :param options: Further options for ``nats.connect()``, such as ``user_credentials`` or ``tls``.
    :raises ImportError: ``nats-py`` is not installed.
    """

    def __init__(  # noqa: PLR0913 - the options of a sink
        self,
        servers: str | Sequence[str],
        subject: str,
        *,
        key: KeyOf = None,
        pack: Pack = None,
        capacity: int = 100_000,
        window: int = 256,
        timeout: float = 5.0,
        linger: float = 4.0,
        **options: Any,
    ) -> None:
        import nats  # noqa: F401, PLC0415 - an extra; a wrong installation is noticed here

        super().__init__(key, pack, capacity, linger)
        if not subject or any(sign in subject for sign in " *>"):
            raise ValueError(f"the subject must be one subject without wildcards, not {subject!r}")
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self._servers = [servers] if isinstance(servers, str) else list(servers)
        self._subject, self._window, self._timeout = subject, window, timeout
        self._options = options
        self._loop: asyncio.AbstractEventLoop | None = None

    def _forget(self) -> None:
        super()._forget()
        self._loop = None

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                loop.call_soon_threadsafe(self._news.set)

    def _publish(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        work = asyncio.create_task(self._work())
        try:
            while not work.done():
                # After the deadline, publish nothing more.
                left = self._time_left
                if left <= 0:
                    work.cancel()
                await asyncio.wait([work], timeout=min(max(left, 0.0), 0.25))
            if not work.cancelled():
                work.result()
        finally:
            self._loop = None

    async def _work(self) -> None:
        connection = await self._connect()
        pending: set[asyncio.Task[None]] = set()
        try:
            stream = connection.jetstream(
                timeout=self._timeout, publish_async_max_pending=self._window + 1
            )
            prefix, number = uuid.uuid4().hex, 0
            while True:
                self._news.clear()
                rows = self._take(1 if self._pack is None else 65_536)
                if not rows:
                    if self._is_closing:
                        break
                    await self._news.wait()
                    continue
                largest = connection.max_payload - HEADER_ROOM
                for message in messages(rows, self._key, self._pack, largest, self._refuse):
                    number += 1
                    if len(pending) >= self._window:
                        _, pending = await asyncio.wait(
                            pending, return_when=asyncio.FIRST_COMPLETED
                        )
                    deliver = self._deliver(connection, stream, message, f"{prefix}-{number}")
                    pending.add(asyncio.create_task(deliver))
            if pending:
                await asyncio.wait(pending)
        finally:
            for task in pending:
                task.cancel()
            await _disconnect(connection)

    async def _connect(self) -> Connection:
        """Connect, and retry until that succeeds."""
        import nats  # noqa: PLC0415 - an extra

        where = ", ".join(map(without_password, self._servers))

        async def on_error(error: Exception) -> None:
            self._complain(f"{where}: {error!r}")

        options: dict[str, Any] = {
            "name": "tomada",
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": 0.25,
            "error_cb": on_error,
            **self._options,
        }
        pause = FIRST_PAUSE
        while True:
            try:
                return await nats.connect(self._servers, allow_reconnect=True, **options)
            except (TimeoutError, OSError, nats.errors.Error) as error:
                self._complain(f"cannot connect to {where}: {error!r}")
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE)

    async def _deliver(
        self, connection: Connection, stream: JetStreamContext, message: Message, name: str
    ) -> None:
        """Publish a message until it is acknowledged."""
        import nats  # noqa: PLC0415 - an extra

        headers = {**(message.headers or {}), "Nats-Msg-Id": name}
        subject = self._subject
        if self._key is not None:
            subject += "." + token(message.key)
        if len(message.payload) + HEADER_ROOM > connection.max_payload:
            self._complain(f"a message of {len(message.payload)} bytes exceeds max_payload")
            self._dropped(message.datagrams)
            return
        if len(subject.encode()) > LONGEST_SUBJECT:
            self._complain(f"a subject of {len(subject)} characters is too long")
            self._dropped(message.datagrams)
            return
        pause = FIRST_PAUSE
        while True:
            try:
                await stream.publish(subject, message.payload, headers=headers)
            except (TimeoutError, OSError, nats.errors.Error) as error:
                self._complain(f"cannot publish to {subject}: {error!r}")
                if getattr(error, "err_code", None) == EXCEEDS_MAXIMUM:
                    self._dropped(message.datagrams)
                    return
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE)
            else:
                self._published(message.datagrams)
                return


async def _disconnect(connection: Connection) -> None:
    import nats  # noqa: PLC0415 - an extra

    with contextlib.suppress(
        TimeoutError, OSError, nats.errors.Error
    ):  # there is nothing left to lose
        await asyncio.wait_for(connection.close(), 0.5)
