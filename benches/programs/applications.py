"""Libraries from PyPI, unchanged, each with its own client and server on one event loop.

Each function runs operations, one after another, and counts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from benches.programs.loops import start
from benches.programs.run import Run

# Does one operation.
Operate = Callable[[], Awaitable[object]]
Opened = contextlib.AbstractAsyncContextManager[Operate]

HOST = "127.0.0.1"


def program(opened: Callable[[Run], AsyncIterator[Operate]]) -> Callable[[Run], None]:
    """Return a program that repeats an operation until the driver has seen enough."""
    manager = contextlib.asynccontextmanager(opened)
    return functools.wraps(opened)(functools.partial(repeat, manager))


def repeat(opened: Callable[[Run], Opened], run: Run) -> None:
    async def work(operate: Operate) -> None:
        counter = run.counter
        while True:
            await operate()
            counter[0] += 1

    async def main() -> None:
        async with opened(run) as operate, asyncio.TaskGroup() as group:
            for _ in range(run.tasks):
                group.create_task(work(operate))

    start(run, main)


@program
async def aiocoap(run: Run) -> AsyncIterator[Operate]:
    """Send a GET and receive its response."""
    # Select the transport that is built on create_datagram_endpoint().
    os.environ["AIOCOAP_SERVER_TRANSPORT"] = "simplesocketserver"
    os.environ["AIOCOAP_CLIENT_TRANSPORT"] = "simple6"
    from aiocoap import GET, Context, Message, resource  # noqa: PLC0415 - like all in this module

    class Hello(resource.Resource):
        async def render_get(self, _: Message) -> Message:
            return Message(payload=bytes(run.size))

    site = resource.Site()
    site.add_resource(["hello"], Hello())
    port = await free_port()
    server = await Context.create_server_context(site, bind=(HOST, port))
    client = await Context.create_client_context()

    async def operate() -> None:
        await client.request(Message(code=GET, uri=f"coap://{HOST}:{port}/hello")).response

    yield operate
    await client.shutdown()
    await server.shutdown()


@program
async def rpcudp(run: Run) -> AsyncIterator[Operate]:
    """Call a remote procedure."""
    from rpcudp.protocol import RPCProtocol  # noqa: PLC0415

    class Server(RPCProtocol):
        def rpc_echo(self, _: Any, data: bytes) -> bytes:
            return data

    loop = asyncio.get_running_loop()
    server, _ = await loop.create_datagram_endpoint(Server, local_addr=(HOST, 0))
    client, protocol = await loop.create_datagram_endpoint(RPCProtocol, local_addr=(HOST, 0))
    address, data = server.get_extra_info("sockname"), bytes(run.size)
    yield lambda: protocol.echo(address, data)
    client.close()
    server.close()


@program
async def dnspython(_: Run) -> AsyncIterator[Operate]:
    """Send a query from an endpoint of its own."""
    import dns.asyncquery  # noqa: PLC0415
    import dns.message  # noqa: PLC0415

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.DatagramTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            reply = dns.message.make_response(dns.message.from_wire(data))
            self.transport.sendto(reply.to_wire(), addr)

    loop = asyncio.get_running_loop()
    server, _ = await loop.create_datagram_endpoint(Server, local_addr=(HOST, 0))
    port = server.get_extra_info("sockname")[1]

    async def operate() -> None:
        query = dns.message.make_query("example.org", "A")
        await dns.asyncquery.udp(query, HOST, port=port, timeout=5)

    yield operate
    server.close()


@program
async def twisted(run: Run) -> AsyncIterator[Operate]:
    """Exchange a datagram with an echo server."""
    from twisted.internet import asyncioreactor, protocol  # noqa: PLC0415

    # Not the global reactor: this one only reads and writes sockets on this loop.
    reactor = asyncioreactor.AsyncioSelectorReactor(asyncio.get_running_loop())
    waiting: list[asyncio.Future[None]] = []

    class Echo(protocol.DatagramProtocol):
        def datagramReceived(self, data: bytes, addr: Any) -> None:  # noqa: N802 - Twisted's
            self.transport.write(data, addr)

    class Client(protocol.DatagramProtocol):
        def datagramReceived(self, _: bytes, __: Any) -> None:  # noqa: N802
            waiting.pop(0).set_result(None)

    server = reactor.listenUDP(0, Echo(), interface=HOST)
    client = Client()
    port = reactor.listenUDP(0, client, interface=HOST)
    address, data = (HOST, server.getHost().port), bytes(run.size)

    def operate() -> Awaitable[None]:
        future = asyncio.get_running_loop().create_future()
        waiting.append(future)
        client.transport.write(data, address)
        return future

    yield operate
    port.stopListening()
    server.stopListening()


@program
async def aioice(run: Run) -> AsyncIterator[Operate]:
    """Send data over a connection, and receive it at the other end."""
    from aioice import Connection  # noqa: PLC0415

    ends = Connection(ice_controlling=True), Connection(ice_controlling=False)
    await asyncio.gather(*(end.gather_candidates() for end in ends))
    for end, other in (ends, ends[::-1]):
        for candidate in other.local_candidates:
            await end.add_remote_candidate(candidate)
        await end.add_remote_candidate(None)
        end.remote_username = other.local_username
        end.remote_password = other.local_password
    await asyncio.gather(*(end.connect() for end in ends))
    data = bytes(run.size)

    async def operate() -> None:
        await ends[0].send(data)
        await ends[1].recv()

    yield operate
    await asyncio.gather(*(end.close() for end in ends))


@program
async def aiortc(run: Run) -> AsyncIterator[Operate]:
    """Send a message on a data channel, and receive it back."""
    from aiortc import RTCPeerConnection  # noqa: PLC0415

    ends = RTCPeerConnection(), RTCPeerConnection()
    channel, opened = ends[0].createDataChannel("bench"), asyncio.Event()
    waiting: list[asyncio.Future[None]] = []
    channel.on("open", opened.set)
    channel.on("message", lambda _: waiting.pop(0).set_result(None))

    @ends[1].on("datachannel")  # type: ignore[untyped-decorator, unused-ignore]
    def on_channel(other: Any) -> None:
        other.on("message", other.send)

    await ends[0].setLocalDescription(await ends[0].createOffer())
    await ends[1].setRemoteDescription(ends[0].localDescription)
    await ends[1].setLocalDescription(await ends[1].createAnswer())
    await ends[0].setRemoteDescription(ends[1].localDescription)
    await asyncio.wait_for(opened.wait(), 10)
    data = bytes(run.size)

    def operate() -> Awaitable[None]:
        future = asyncio.get_running_loop().create_future()
        waiting.append(future)
        channel.send(data)
        return future

    yield operate
    await asyncio.gather(*(end.close() for end in ends))


@program
async def aioquic(run: Run) -> AsyncIterator[Operate]:
    """Send data on a new stream of a QUIC connection, and receive it back."""
    import ssl  # noqa: PLC0415

    from aioquic.asyncio import connect, serve  # noqa: PLC0415
    from aioquic.quic.configuration import QuicConfiguration  # noqa: PLC0415

    def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def answer() -> None:
            writer.write(await reader.read())
            writer.write_eof()

        tasks.add(task := asyncio.create_task(answer()))
        task.add_done_callback(tasks.discard)

    tasks: set[asyncio.Task[None]] = set()
    port = await free_port()
    of_server = QuicConfiguration(is_client=False, alpn_protocols=["bench"])
    of_server.certificate, of_server.private_key = certificate()
    server = await serve(HOST, port, configuration=of_server, stream_handler=echo)
    of_client = QuicConfiguration(alpn_protocols=["bench"], verify_mode=ssl.CERT_NONE)
    data = bytes(run.size)
    async with connect(HOST, port, configuration=of_client) as client:

        async def operate() -> None:
            reader, writer = await client.create_stream()
            writer.write(data)
            writer.write_eof()
            await reader.read()

        yield operate
    server.close()


def certificate() -> tuple[Any, Any]:
    """Make a self-signed certificate and its key."""
    import datetime as dt  # noqa: PLC0415

    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()), key


@program
async def pysnmp(_: Run) -> AsyncIterator[Operate]:
    """Send a GET of one variable, and receive its value."""
    from pysnmp.carrier.asyncio.dgram import udp  # noqa: PLC0415
    from pysnmp.entity import config, engine  # noqa: PLC0415
    from pysnmp.entity.rfc3413 import cmdrsp, context  # noqa: PLC0415
    from pysnmp.hlapi import v3arch  # noqa: PLC0415

    port = await free_port()
    agent = engine.SnmpEngine()
    transport = udp.UdpTransport().open_server_mode((HOST, port))
    config.add_transport(agent, udp.DOMAIN_NAME, transport)
    config.add_v1_system(agent, "area", "public")
    config.add_vacm_user(agent, 2, "area", "noAuthNoPriv", (1, 3, 6), (1, 3, 6))
    cmdrsp.GetCommandResponder(agent, context.SnmpContext(agent))
    manager = v3arch.SnmpEngine()
    community = v3arch.CommunityData("public", mpModel=1)  # noqa: S508 - on loopback
    target = await v3arch.UdpTransportTarget.create((HOST, port), timeout=5)
    wanted = v3arch.ObjectType(v3arch.ObjectIdentity("1.3.6.1.2.1.1.1.0"))

    async def operate() -> None:
        error, *_ = await v3arch.get_cmd(manager, community, target, v3arch.ContextData(), wanted)
        if error:
            raise RuntimeError(str(error))

    yield operate
    manager.close_dispatcher()
    agent.close_dispatcher()


async def free_port() -> int:
    """Find a port for libraries that do not report which one they were given."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=(HOST, 0)
    )
    port: int = transport.get_extra_info("sockname")[1]
    transport.close()
    await asyncio.sleep(0.01)
    return port
