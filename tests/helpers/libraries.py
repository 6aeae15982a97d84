"""Python libraries for UDP, behind one interface, to compare their features.

Each has ``open(local, remote)``, which opens a socket with a local or a remote address. Each socket
has ``send``, ``send_run``, ``recv``, ``answer`` (to the last sender), ``fileno`` and ``close``.
``run`` runs a coroutine on the library's event loop.
"""

import asyncio
import importlib
import socket as std

from tomada import _core


class Blocking:
    """A socket module with blocking sockets."""

    def __init__(self, module):
        self._module = importlib.import_module(module)

    @staticmethod
    def run(coroutine):
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("it waits for something else")

    async def open(self, local=None, remote=None, family=std.AF_INET):
        self._sock = sock = self._module.socket(family, std.SOCK_DGRAM)
        sock.settimeout(PATIENCE)
        if isinstance(sock, _core.Socket) and family != std.AF_UNIX:
            sock.gro = True
            sock.setsockopt(std.IPPROTO_IP, self._module.IP_PKTINFO, 1)
        if local is not None:
            sock.bind(local)
        if remote is not None:
            sock.connect(remote)
        return self

    async def send(self, data):
        self._sock.send(data)

    async def send_run(self, run):
        if hasattr(self._sock, "send_many"):
            self._sock.send_many(run)
        else:
            await each(self.send, run)

    async def recv(self):
        if hasattr(self._sock, "recv_datagram"):
            self._last = self._sock.recv_datagram()
            return self._last.data
        data, self._last = self._sock.recvfrom(65535)
        return data

    async def answer(self, data):
        if hasattr(self._last, "reply"):
            self._last.reply(data)
        else:
            self._sock.sendto(data, self._last)

    async def flush(self):
        pass

    def name(self):
        return self._sock.getsockname()

    def fileno(self):
        return self._sock.fileno()

    async def close(self):
        self._sock.close()


async def each(send, run):
    """Send datagrams one by one, in quick succession."""
    for data in run:
        await send(data)


class Protocols:
    """An event loop with asyncio's interface: protocols and transports."""

    def __init__(self, factory):
        self._factory = factory

    def run(self, coroutine):
        module, name, *call = self._factory.split()
        factory = getattr(importlib.import_module(module), name)
        with asyncio.Runner(loop_factory=factory() if call else factory) as runner:
            return runner.run(asyncio.wait_for(coroutine, 10 * PATIENCE))

    async def open(self, local=None, remote=None, family=std.AF_INET):
        loop = asyncio.get_running_loop()
        self._came, self._flushed = asyncio.Queue(), None
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: Queueing(self._came), local_addr=local, remote_addr=remote, family=family
        )
        return self

    async def send(self, data):
        self._transport.sendto(data)

    async def send_run(self, run):
        await each(self.send, run)

    async def recv(self):
        came = await asyncio.wait_for(self._came.get(), PATIENCE)
        if isinstance(came, Exception):
            raise came
        data, self._last = came
        return data

    async def answer(self, data):
        self._transport.sendto(data, self._last)

    async def flush(self):
        await asyncio.sleep(0)

    def name(self):
        return self._transport.get_extra_info("sockname")

    def fileno(self):
        return self._transport.get_extra_info("socket").fileno()

    async def close(self):
        self._transport.close()
        await asyncio.sleep(0)


class Queueing(asyncio.DatagramProtocol):
    """Puts received datagrams into a queue."""

    def __init__(self, came):
        self._came = came

    def datagram_received(self, data, addr):
        self._came.put_nowait((data, addr))

    def error_received(self, exc):
        self._came.put_nowait(exc)


class Awaited:
    """A base for libraries with awaitable sockets."""

    def __init__(self, module):
        self._module = importlib.import_module(module)

    def run(self, coroutine):
        return asyncio.run(asyncio.wait_for(coroutine, 10 * PATIENCE))

    async def within(self, awaitable):
        return await asyncio.wait_for(awaitable, PATIENCE)

    async def send_run(self, run):
        await each(self.send, run)

    async def flush(self):
        pass

    def fileno(self):
        return self._sock.fileno()


class AsyncioDgram(Awaited):
    """asyncio-dgram's streams."""

    async def open(self, local=None, remote=None, family=std.AF_INET):
        dgram = self._module
        if family == std.AF_UNIX:
            sock = std.socket(family, std.SOCK_DGRAM)
            sock.bind(local)
            self._stream = await dgram.from_socket(sock)
        else:
            self._stream = await (dgram.bind(local) if remote is None else dgram.connect(remote))
        self._sock = self._stream.socket
        return self

    async def send(self, data):
        await self._stream.send(data)

    async def recv(self):
        data, self._last = await self.within(self._stream.recv())
        return data

    async def answer(self, data):
        await self._stream.send(data, self._last)

    def name(self):
        return self._stream.sockname

    async def close(self):
        self._stream.close()
        await asyncio.sleep(0)


class AnyIO(Awaited):
    """anyio's UDP sockets, on asyncio."""

    async def open(self, local=None, remote=None, family=std.AF_INET):
        self._is_connected = remote is not None
        if family == std.AF_UNIX:
            self._udp = await self._module.create_unix_datagram_socket(local_path=local)
        elif self._is_connected:
            self._udp = await self._module.create_connected_udp_socket(*remote)
        else:
            self._udp = await self._module.create_udp_socket(
                local_host=local[0], local_port=local[1]
            )
        self._sock = self._udp.extra(self._module.abc.SocketAttribute.raw_socket)  # noqa: S610
        return self

    async def send(self, data):
        await self._udp.send(data)

    async def recv(self):
        came = await self.within(self._udp.receive())
        data, self._last = (came, None) if self._is_connected else came
        return data

    async def answer(self, data):
        await self._udp.sendto(data, *self._last)

    def name(self):
        return self._sock.getsockname()

    async def close(self):
        await self._udp.aclose()


class Trio:
    """trio's sockets."""

    def __init__(self, module):
        self._trio = importlib.import_module(module)

    def run(self, coroutine):
        async def main():
            with self._trio.fail_after(10 * PATIENCE):
                return await coroutine

        return self._trio.run(main)

    async def within(self, awaitable):
        with self._trio.move_on_after(PATIENCE):
            return await awaitable
        raise TimeoutError

    async def open(self, local=None, remote=None, family=std.AF_INET):
        self._sock = self._trio.socket.socket(family, std.SOCK_DGRAM)
        if local is not None:
            await self._sock.bind(local)
        if remote is not None:
            await self._sock.connect(remote)
        return self

    async def send(self, data):
        await self._sock.send(data)

    async def send_run(self, run):
        await each(self.send, run)

    async def recv(self):
        data, self._last = await self.within(self._sock.recvfrom(65535))
        return data

    async def answer(self, data):
        await self._sock.sendto(data, self._last)

    async def flush(self):
        pass

    def name(self):
        return self._sock.getsockname()

    def fileno(self):
        return self._sock.fileno()

    async def close(self):
        self._sock.close()


# How long to wait, in seconds, for things that some libraries never do.
PATIENCE = 0.5

LIBRARIES = {
    "tomada.socket": (Blocking, "tomada.socket"),
    "tomada.asyncio": (Protocols, "tomada.asyncio EventLoop"),
    "socket": (Blocking, "socket"),
    "asyncio": (Protocols, "asyncio SelectorEventLoop"),
    "uvloop": (Protocols, "uvloop new_event_loop"),
    "aiofastnet": (Protocols, "aiofastnet loop_factory ()"),
    "asyncio-dgram": (AsyncioDgram, "asyncio_dgram"),
    "anyio": (AnyIO, "anyio"),
    "trio": (Trio, "trio"),
}


def library(name):
    """Create the library's adapter; raise ImportError if the library is missing."""
    adapter, argument = LIBRARIES[name]
    importlib.import_module(argument.split()[0])
    return adapter(argument)
