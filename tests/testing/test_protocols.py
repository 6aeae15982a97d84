"""QUIC and CoAP across bad networks: other implementations' retransmissions complete transfers."""

import asyncio
import datetime as dt
import hashlib
import ssl

import pytest

import tomada.testing
from tomada.asyncio import run
from tomada.testing import impaired, network

DATA = bytes(range(256)) * 512
DIGEST = hashlib.sha256(DATA).hexdigest()

# A tenth is lost in each direction, and as much is reordered.
BAD = {"loss": 0.1, "reorder": 0.1, "delay": 0.001, "jitter": 0.001}


@pytest.fixture(scope="module")
def configurations(tmp_path_factory):
    """Provide configurations for a QUIC server and for its client."""
    configuration = pytest.importorskip("aioquic.quic.configuration")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("certificates")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    pem = serialization.Encoding.PEM
    (folder / "certificate").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))
    private, unlocked = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key").write_bytes(key.private_bytes(pem, private, unlocked))

    def make():
        server = configuration.QuicConfiguration(is_client=False, idle_timeout=120)
        server.load_cert_chain(folder / "certificate", folder / "key")
        client = configuration.QuicConfiguration(
            is_client=True, idle_timeout=120, verify_mode=ssl.CERT_NONE
        )
        return server, client

    return make


_tasks = set()


def serve_file(reader, writer):
    """Send the file on each stream."""

    async def answer():
        await reader.read()
        writer.write(DATA)
        writer.write_eof()

    _tasks.add(asyncio.ensure_future(answer()))


async def fetch(client):
    """Fetch the file, and return its digest."""
    reader, writer = await client.create_stream()
    writer.write(b"file")
    writer.write_eof()
    digest = hashlib.sha256()
    while chunk := await reader.read(1 << 16):
        digest.update(chunk)
    return digest.hexdigest()


def test_quic_transfers_a_file_across_a_bad_link(configurations):
    from aioquic.asyncio import connect, serve

    async def main():
        ours, theirs = configurations()
        server = await serve("127.0.0.1", 0, configuration=ours, stream_handler=serve_file)
        address = server._transport.get_extra_info("sockname")  # noqa: SLF001 - no other way
        async with impaired(address, seed=2, **BAD) as link:
            async with connect("127.0.0.1", link.address[1], configuration=theirs) as client:
                digest = await fetch(client)
                link.rebind()
                await client.ping()
                assert len({item.outside for item in link.clients}) == 1
            stats = link.stats
        server.close()
        return digest, stats

    digest, stats = run(main())
    assert digest == DIGEST
    assert stats.to_server.lost > 0
    assert stats.to_client.lost > 0
    assert stats.to_client.reordered > 0


def test_quic_transfers_a_file_in_memory_and_idles_on_the_virtual_clock(configurations):
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.asyncio.server import QuicServer
    from aioquic.quic.connection import QuicConnection

    async def main():
        ours, theirs = configurations()
        address = ("127.0.0.1", 4433)
        async with network(seed=3, loss=0.1, reorder=0.1, delay=0.05) as net:
            await net.create_datagram_endpoint(
                lambda: QuicServer(configuration=ours, stream_handler=serve_file), address
            )
            _, client = await net.create_datagram_endpoint(
                lambda: QuicConnectionProtocol(QuicConnection(configuration=theirs))
            )
            client.connect(address)
            await client.wait_connected()
            digest = await fetch(client)
            transferred = asyncio.get_running_loop().time()
            await client.wait_closed()  # nobody says anything until the idle timeout
            idled = asyncio.get_running_loop().time()
            return digest, transferred, idled

    digest, transferred, idled = tomada.testing.run(main())
    assert digest == DIGEST
    assert transferred > 0.2
    assert idled >= transferred + 100


def test_coap_transfers_blocks_across_a_bad_network():
    aiocoap = pytest.importorskip("aiocoap")
    from aiocoap import resource

    class Large(resource.Resource):
        async def render_get(self, _request):
            return aiocoap.Message(payload=DATA[:20_000])

        async def render_put(self, request):
            return aiocoap.Message(payload=hashlib.sha256(request.payload).digest())

    async def main():
        site = resource.Site()
        site.add_resource(["large"], Large())
        async with network(seed=1, loss=0.1, reorder=0.1, delay=0.05) as net:
            net.install(asyncio.get_running_loop())
            server = await aiocoap.Context.create_server_context(
                site, bind=("127.0.0.1", 5683), transports=["simplesocketserver"]
            )
            client = await aiocoap.Context.create_client_context(transports=["simple6"])
            got = await client.request(get).response
            put = await client.request(store).response
            await client.shutdown()
            await server.shutdown()
            return got.payload, put.payload, net.stats

    uri = "coap://127.0.0.1/large"
    get = aiocoap.Message(code=aiocoap.GET, uri=uri)
    store = aiocoap.Message(code=aiocoap.PUT, uri=uri, payload=DATA[:20_000])
    got, put, stats = tomada.testing.run(main())
    assert got == DATA[:20_000]
    assert put == hashlib.sha256(got).digest()
    assert stats.lost > 0
    assert stats.reordered > 0
