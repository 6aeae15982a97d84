"""Transfers a file over QUIC between two processes, on each event loop in turn, and times it.

    python examples/quic_transfer.py [MEBIBYTES]

aioquic uses the loop's transports, so only the loop's factory differs.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import hashlib
import multiprocessing
import ssl
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop
from aioquic.asyncio.client import connect
from aioquic.asyncio.server import QuicServer
from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import tomada.asyncio

LOOPS = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
    "tomada": tomada.asyncio.EventLoop,
}
HOST = "127.0.0.1"
WINDOW = 4 << 20  # bytes in flight


def write_certificate(folder: Path) -> None:
    """Make a key and a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    pem = serialization.Encoding.PEM
    (folder / "certificate").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))
    private, unlocked = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key").write_bytes(key.private_bytes(pem, private, unlocked))


def serve(loop: str, folder: Path, pipe: Connection) -> None:
    """Send the file that a client names, until the pipe is closed."""
    configuration = QuicConfiguration(is_client=False, max_data=WINDOW, max_stream_data=WINDOW)
    configuration.load_cert_chain(folder / "certificate", folder / "key")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = (await reader.read()).decode()
        writer.write((folder / Path(name).name).read_bytes())
        writer.write_eof()

    tasks = set()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(answer(reader, writer)))

    async def main() -> None:
        transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
            functools.partial(QuicServer, configuration=configuration, stream_handler=handle),
            local_addr=(HOST, 0),
        )
        pipe.send(transport.get_extra_info("sockname")[1])
        await asyncio.to_thread(pipe.poll, None)
        server.close()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


async def fetch(port: int, name: str) -> tuple[str, float]:
    """Fetch a file, and return its digest and the seconds that it took."""
    configuration = QuicConfiguration(
        is_client=True, verify_mode=ssl.CERT_NONE, max_data=WINDOW, max_stream_data=WINDOW
    )
    digest = hashlib.sha256()
    async with connect(HOST, port, configuration=configuration) as client:
        start = time.perf_counter()
        reader, writer = await client.create_stream()
        writer.write(name.encode())
        writer.write_eof()
        while chunk := await reader.read(1 << 16):
            digest.update(chunk)
        return digest.hexdigest(), time.perf_counter() - start


def main(mebibytes: float) -> None:
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_certificate(folder)
        data = bytes(range(256)) * int(mebibytes * 4096)
        (folder / "file").write_bytes(data)
        for loop, new_loop in LOOPS.items():
            pipe, theirs = processes.Pipe()
            server = processes.Process(target=serve, args=(loop, folder, theirs), daemon=True)
            server.start()
            with pipe, asyncio.Runner(loop_factory=new_loop) as runner:
                digest, seconds = runner.run(fetch(pipe.recv(), "file"))
                pipe.send("done")
                server.join()
            outcome = "intact" if digest == hashlib.sha256(data).hexdigest() else "CORRUPT"
            print(f"{loop:8} {mebibytes / seconds:6.1f} MiB/s  {seconds:6.2f} s  {outcome}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 16)
