"""Sockets with sessions hand out only what peers have sent in these sessions."""

import errno
import os

import pytest

from dtls_pairs import connected, psk_server
from tomada import _core, socket


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
