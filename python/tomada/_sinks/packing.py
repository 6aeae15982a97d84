"""Packs datagrams into messages."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tomada._sinks.sink import KeyOf, Pack, Row

# The maximum number of datagrams in a record batch.
MOST_ROWS = 16_384
# Bytes of a record batch besides the payloads: for the schema, and for each row's other columns.
OVERHEAD, ROW_OVERHEAD = 2048, 96


@dataclass(slots=True)
class Message:
    """A message to publish."""

    payload: bytes
    key: bytes
    datagrams: int
    headers: dict[str, str] | None


def check_pack(pack: Any) -> None:
    """Raise an exception if datagrams cannot be packed in this way.

    :raises ValueError: `pack` is neither ``None`` nor ``"arrow"``.
    :raises ImportError: ``pyarrow`` is not installed.
    """
    if pack not in (None, "arrow"):
        raise ValueError(f"pack must be None or 'arrow', not {pack!r}")
    if pack == "arrow":
        import pyarrow as pa  # noqa: F401, PLC0415 - an extra, and slow to import


def host_and_port(address: Any) -> tuple[str, int]:
    """Return a sender's host and port; the port is 0 for ``AF_UNIX``."""
    if isinstance(address, tuple):
        return address[0], address[1]
    return os.fsencode(address or b"").decode(errors="replace"), 0


def key_of(key: KeyOf, row: Row) -> bytes:
    """Return a datagram's key."""
    if key is None:
        return b""
    if key == "source":
        return host_and_port(row[1])[0].encode()
    found = key(row[0], row[1])
    return found.encode() if isinstance(found, str) else bytes(memoryview(found))


def headers_of(row: Row) -> dict[str, str]:
    """Return a datagram's source and time as headers."""
    host, port = host_and_port(row[1])
    source = f"[{host}]:{port}" if ":" in host else f"{host}:{port}" if port else host
    headers = {"Source": source}
    if row[2] is not None:
        headers["Timestamp-Ns"] = str(row[2])
    return headers


def messages(
    rows: list[Row], key: KeyOf, pack: Pack, largest: int, refuse: Callable[[Exception], None]
) -> Iterator[Message]:
    """Pack datagrams into messages of up to ``largest`` bytes.

    A single datagram that is longer still becomes a message, which is then too long. If ``key``
    raises an exception, the datagram is left out and the exception is passed to ``refuse``.
    """
    if pack is None:
        for name, row in _keyed(rows, key, refuse):
            yield Message(row[0], name, 1, headers_of(row))
        return
    groups = {b"": rows} if rows else {}
    if key is not None:
        groups = {}
        for name, row in _keyed(rows, key, refuse):
            groups.setdefault(name, []).append(row)
    for name, group in groups.items():
        for part in _parts(group, largest):
            yield Message(record_batch(part), name, len(part), None)


def _keyed(
    rows: list[Row], key: KeyOf, refuse: Callable[[Exception], None]
) -> Iterator[tuple[bytes, Row]]:
    """Yield each datagram with its key."""
    for row in rows:
        try:
            name = key_of(key, row)
        except Exception as error:  # noqa: BLE001 - whatever the user's function raises
            refuse(error)
        else:
            yield name, row


def _parts(rows: list[Row], largest: int) -> Iterator[list[Row]]:
    """Divide datagrams so that each part fits into a message."""
    if len(rows) > MOST_ROWS:
        for start in range(0, len(rows), MOST_ROWS):
            yield from _parts(rows[start : start + MOST_ROWS], largest)
        return
    size = OVERHEAD + sum(len(row[0]) for row in rows) + ROW_OVERHEAD * len(rows)
    if size <= largest or len(rows) == 1:
        yield rows
        return
    middle = len(rows) // 2
    yield from _parts(rows[:middle], largest)
    yield from _parts(rows[middle:], largest)


def record_batch(rows: list[Row]) -> bytes:
    """Return datagrams as an Arrow stream with one record batch."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    addresses: Sequence[Any]
    data, addresses, times = zip(*rows, strict=True)
    # The addresses of a socket are all of one family. Tuples, the usual case, need no call each.
    if not isinstance(addresses[0], tuple):
        addresses = [host_and_port(address) for address in addresses]
    batch = pa.record_batch(
        [
            pa.array(data, pa.binary()),
            pa.array([address[0] for address in addresses], pa.string()),
            pa.array([address[1] for address in addresses], pa.uint16()),
            pa.array(times, pa.int64()),
        ],
        names=["data", "host", "port", "timestamp_ns"],
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def token(key: bytes) -> str:
    """Return a key as a token of a NATS subject, in which some characters are special.

    Binary keys become hexadecimal digits, so that different keys remain different.
    """
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return key.hex()
    if not text.isprintable():
        return key.hex()
    return re.sub(r"[ .*>:]", "_", text) or "_"
