"""Event loops with tomada's transports, and a protocol that records its calls."""

import asyncio

import uvloop

import tomada.asyncio
from peer import DEADLINE
from traffic import receive


def installed(loop):
    tomada.asyncio.install(loop)
    return loop


# Every kind of loop, each with tomada's transports.
LOOPS = {
    "tomada": tomada.asyncio.EventLoop,
    "asyncio": lambda: installed(asyncio.SelectorEventLoop()),
    "uvloop": lambda: installed(uvloop.new_event_loop()),
}


class Recorder(asyncio.DatagramProtocol):
    """Records its calls, and wakes a test that waits for them."""

    def __init__(self):
        self.datagrams = []
        self.errors = []
        # The names of all other calls, in order.
        self.calls = []
        self._changed = asyncio.Event()

    @property
    def payloads(self):
        return [data for data, _ in self.datagrams]

    def connection_made(self, transport):
        self.transport = transport
        self.note("made")

    def datagram_received(self, data, addr):
        self.datagrams.append((data, addr))
        self._changed.set()

    def error_received(self, error):
        self.errors.append(error)
        self._changed.set()

    def pause_writing(self):
        self.note("paused")

    def resume_writing(self):
        self.note("resumed")

    def connection_lost(self, error):
        assert error is None
        self.note("lost")

    def note(self, call):
        self.calls.append(call)
        self._changed.set()

    async def until(self, condition):
        """Wait until the condition holds. The loop may sleep meanwhile."""
        while not condition():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), DEADLINE)

    async def received(self, count):
        """Wait for a total number of datagrams, and return the payloads."""
        await self.until(lambda: len(self.datagrams) >= count)
        return self.payloads

    async def lost(self):
        await self.until(lambda: "lost" in self.calls)


class Batches(Recorder):
    """A recorder that receives whole batches."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def datagrams_received(self, datagrams):
        self.batches.append(datagrams)
        self.datagrams += datagrams
        self._changed.set()

    def datagram_received(self, *_):
        raise AssertionError


def recorder(**methods):
    """Return a class of recorders with some methods replaced."""
    return type("Special", (Recorder,), methods)


def echo(self, data, addr):
    """Echo a datagram, as a protocol's ``datagram_received`` method."""
    self.transport.sendto(data, addr)


async def hear(sock, count=1):
    """Wait for datagrams on a plain socket, and return the payloads."""
    return [data for data, _ in await asyncio.to_thread(receive, sock, count)]


async def open_first(endpoint):
    """Open and close an endpoint: a loop's first one opens descriptors that all share."""
    transport, protocol = await endpoint()
    transport.close()
    await protocol.lost()
    await turns()


async def turns(count=1):
    """Let the loop run some iterations."""
    for _ in range(count):
        await asyncio.sleep(0)


def given(address):
    """Return an address in the form that endpoints accept."""
    if isinstance(address, bytes):
        return address.decode()
    return address if isinstance(address, str) else address[:2]


def local(kind):
    """Return the arguments for an endpoint with a free address."""
    return {"local_addr": given(kind.address()), "family": kind.family}
