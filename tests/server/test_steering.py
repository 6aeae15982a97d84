"""Steering by bytes of the payload: which worker gets a datagram."""

import os
import signal
import socket as std

import pytest

import tomada
from proxied import headed
from serving import client, server
from support import Child, eventually

PORTS = 40
WORKERS = 4


def tell_pid(data, _):
    return b"%d" % os.getpid()


def workers_of(address, *payloads, ports=PORTS):
    """Return the workers that reply to some payloads, each sent from many ports."""
    found = set()
    for _ in range(ports):
        with client(address) as sock:
            for payload in payloads:
                sock.send(payload)
                found.add(sock.recv(100))
    return found


def steered(address=("127.0.0.1", 0), *, key=(4, 8), **options):
    return server(tell_pid, address, workers=WORKERS, steering=tomada.key(*key), **options)


def payload(number, size=20):
    return b"head" + number.to_bytes(8, "big") + bytes(size - 12)


@pytest.mark.parametrize("address", [("127.0.0.1", 0), ("::1", 0), ("::", 0)], ids=str)
def test_key_steering_is_independent_of_the_address(address):
    with steered(address) as serving:
        found = [workers_of(serving.address, payload(number)) for number in range(4)]
        assert [len(workers) for workers in found] == [1] * 4


def test_key_steering_is_independent_of_the_rest_of_the_payload():
    with steered() as serving:
        variants = [b"HEAD" + b"identity", b"head" + b"identity" + b"x", b"\0\0\0\0identity" * 50]
        assert len(workers_of(serving.address, *variants, ports=10)) == 1


def test_key_steering_uses_all_workers():
    with steered(key=(4, 8)) as serving, client(serving.address) as sock:
        counts = {}
        for number in range(200):
            sock.send(payload(number))
            worker = sock.recv(100)
            counts[worker] = counts.get(worker, 0) + 1
        assert len(counts) == WORKERS
        assert min(counts.values()) > 20, "50 each is even"


@pytest.mark.parametrize("key", [(0, 1), (1, 2), (0, 64), (3, 5)])
def test_key_steering_of_short_datagrams(key):
    offset, length = key
    with steered(key=key) as serving:
        for available in {1, length // 2, length - 1, length} - {0}:
            short = bytes(offset) + b"k" * available
            assert len(workers_of(serving.address, short)) == 1, available
        # Without any byte of the key, the address decides.
        if offset:
            with client(serving.address) as sock:
                replies = set()
                for size in [*range(offset + 1)] * 10:
                    sock.send(bytes(size))
                    replies.add(sock.recv(100))
            assert len(replies) == 1
            assert len(workers_of(serving.address, bytes(offset), b"", ports=100)) > 1


# Another user may not be able to read the library, so everything is imported before.
SERVER = """
import encodings.idna, os, sys, tomada.server

if sys.argv[1] == "nobody" and os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)

def tell_pid(data, _):
    return b"%d" % os.getpid()

steering = tomada.key(4, 8)
with tomada.Server(("127.0.0.1", 0), tell_pid, workers=4, steering=steering) as server:
    print(server.address[1], flush=True)
    server.serve_forever()
"""


@pytest.mark.parametrize("user", ["this user", "nobody"])
def test_key_steering_survives_replaced_and_killed_workers(user):
    # The last ones are too short for the whole key.
    keys = [payload(number) for number in range(8)]
    keys += [b"head" + b"short"[:size] for size in range(1, 6)]
    with Child("-c", SERVER, user) as serving:
        address = ("127.0.0.1", int(serving.line()))

        def places(ports=PORTS):
            return [workers_of(address, key, ports=ports) for key in keys]

        def groups():
            """Return which keys share a worker, from which all 40 ports get their replies."""
            found = places()
            assert [len(workers) for workers in found] == [1] * len(keys)
            return sorted({tuple(i for i, w in enumerate(found) if w == one) for one in found})

        before, old = groups(), set().union(*places(1))
        assert len(old) > 1
        serving.signal(signal.SIGHUP)
        eventually(lambda: not old & set().union(*places(1)))
        assert groups() == before
        (killed,) = workers_of(address, keys[0], ports=1)
        os.kill(int(killed), signal.SIGKILL)
        eventually(lambda: killed not in set().union(*places(1)))
        assert groups() == before


def test_key_steering_looks_behind_proxy_headers():
    with steered(proxy=["127.0.0.0/8"]) as serving:
        for number in range(3):
            data = payload(number)
            sources = [("192.0.2.1", 1), ("192.0.2.77", 999), ("2001:db8::1", 5)]
            fields = [b"", b"\x04\0\x01x"]
            variants = [headed(s, data, fields=f) for s in sources for f in fields]
            assert len(workers_of(serving.address, *variants, ports=10)) == 1
        # Datagrams with a truncated header still arrive somewhere, and are counted.
        with client(serving.address) as sock:
            whole = headed(("192.0.2.1", 1))
            for size in range(len(whole)):
                sock.send(whole[:size])
            eventually(lambda: serving.stats().proxy_malformed == len(whole))


@pytest.mark.parametrize("arguments", [(-1, 4), (65_536, 4), (0, 0), (0, 65)])
def test_key_out_of_range(arguments):
    with pytest.raises(ValueError, match="must be from"):
        tomada.key(*arguments)


def test_key_must_be_numbers():
    with pytest.raises(TypeError, match="offset must be an int"):
        tomada.key("0", 4)


def test_steering_must_be_known():
    with pytest.raises(ValueError, match=r"tomada.key\(…\), not 'port'"):
        server(tell_pid, workers=2, steering="port")


def test_key_steering_needs_a_socket_per_worker(unix):
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match="nothing to steer"):
            steered(None, sock=sock).start()
    with pytest.raises(ValueError, match="nothing to steer"):
        steered(unix.address()).start()
