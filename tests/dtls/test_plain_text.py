"""Sockets with sessions hand out only what peers have sent in these sessions."""

import asyncio
import errno
import os

import pytest

import tomada.asyncio
import tomada.trio
from dtls_pairs import connected, psk_server
from tomada import Client, _core, dtls, socket

SOMEWHERE = ("127.0.0.1", 9)


def test_socket_drops_what_it_had_received_before_its_sessions():
    with connected() as (near, far):
        far.gro = True  # so that a look at a datagram keeps it in the backlog
        near.send(b"plain text")
        assert far.recv(100, socket.MSG_PEEK) == b"plain text"
        assert far.pending == 1
        _core.DtlsEndpoint(psk_server(), far)
        assert far.pending == 0
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(100)


def test_socket_has_either_sessions_or_proxies():
    unsupported = os.strerror(errno.EOPNOTSUPP)
    with connected() as (_, far):
        _core.DtlsEndpoint(psk_server(), far)
        with pytest.raises(OSError, match=unsupported):
            _core.trust_proxies(far, ["192.0.2.0/24"])
    with connected() as (_, far):
        _core.trust_proxies(far, ["192.0.2.0/24"])
        with pytest.raises(OSError, match=unsupported):
            _core.DtlsEndpoint(psk_server(), far)


@pytest.mark.parametrize("opened", [Client, tomada.asyncio.Client, tomada.trio.open_endpoint])
def test_host_name_without_a_context_is_refused(opened):
    peer = (
        {"remote_addr": SOMEWHERE}
        if opened is tomada.trio.open_endpoint
        else {"address": SOMEWHERE}
    )
    with pytest.raises(ValueError, match="server_hostname needs dtls"):
        opened(**peer, dtls=None, server_hostname="localhost")


def test_host_name_without_a_context_is_refused_by_asyncio_endpoints():
    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(ValueError, match="server_hostname needs dtls"):
            tomada.asyncio.open_endpoint(remote_addr=SOMEWHERE, server_hostname="localhost")
        with pytest.raises(ValueError, match="server_hostname needs dtls"):
            await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, remote_addr=SOMEWHERE, server_hostname="localhost"
            )

    tomada.asyncio.run(main())


def test_wrap_socket_refuses_what_is_not_a_context():
    with (
        connected() as (near, _),
        pytest.raises(TypeError, match=r"must be a tomada\.dtls\.Context"),
    ):
        dtls.wrap_socket(near, None)
