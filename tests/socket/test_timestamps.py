"""Transmit timestamps: each belongs to the datagram that was sent, and none is an error."""

import asyncio
import errno
import select
import socket as std
import struct
import time

import pytest

import families
import links
import skips
from support import CLOSED, DEADLINE, Call, eventually
from tomada import Datagram, _devices, socket
from tomada.asyncio import open_endpoint

SO_TIMESTAMPNS = 35


@pytest.fixture(params=["inet", "inet6", "mapped"])
def stamping(request, inet):
    """Provide a socket with transmit timestamps, a plain one that stamps, and its address."""
    receiving = request.getfixturevalue("inet6") if request.param == "inet6" else inet
    sending = inet if request.param == "inet" else request.getfixturevalue("inet6")
    with receiving.bound(std) as receiver, sending.open(socket) as sock:
        receiver.setsockopt(std.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.transmit_timestamps = True
        to = receiver.getsockname()
        yield sock, receiver, ("::ffff:127.0.0.1", to[1]) if request.param == "mapped" else to


def received_ns(receiver):
    """Return the payload of the next datagram, and when the kernel received it."""
    data, ancillary, _, _ = receiver.recvmsg(100, 100)
    (stamp,) = (value for level, kind, value in ancillary if kind == SO_TIMESTAMPNS)
    seconds, fraction = struct.unpack("qq", stamp)
    return data, seconds * 1_000_000_000 + fraction


def take(sock, count):
    """Wait for a number of timestamps, and return them by id."""
    found = []
    eventually(lambda: found.extend(sock.timestamps(0.1)) or len(found) >= count)
    assert len(found) == count
    assert all(hardware is None for _, _, hardware in found)
    return {id: software for id, software, _ in found}


def test_every_datagram_has_its_timestamp(stamping):
    sock, receiver, to = stamping
    length = families.length(2_000)
    sent, came, stamps = {}, {}, {}
    for number in range(length):
        before = time.time_ns()
        sent[sock.send_datagram(Datagram(b"%d" % number, to))] = number, before
        data, came[number] = received_ns(receiver)
        assert int(data) == number
        if number % 10_000 == 9_999:  # fewer than the socket stores
            stamps |= {id: software for id, software, _ in sock.timestamps()}
    assert list(sent) == list(range(1, length + 1))
    stamps |= take(sock, length - len(stamps))
    assert stamps.keys() == sent.keys()
    for id, stamp in stamps.items():
        number, before = sent[id]
        assert before <= stamp <= came[number]
    assert sock.timestamps() == []
    assert (sock.stats().transmitted, sock.stats().errors) == (length, 0)


def test_bursts_lose_no_timestamp(stamping):
    """Though nobody reads them meanwhile, and the kernel's queue has room for some hundreds."""
    sock, _, to = stamping
    ids = [sock.send_datagram(Datagram(b"x", to, ttl=9)) for _ in range(3_000)]
    assert take(sock, len(ids)).keys() == set(ids)


def test_only_send_datagram_asks_for_timestamps(stamping):
    sock, _, to = stamping
    sock.sendto(b"x", to)
    sock.send_many([b"x"] * 3, to)
    sock.send_datagrams([Datagram(b"x", to)] * 3)
    id = sock.send_datagram(Datagram(b"x", to))
    assert list(take(sock, 1)) == [id]


def test_timestamps_are_off_by_default(inet):
    with inet.bound(socket) as sock:
        assert sock.transmit_timestamps is False
        assert sock.send_datagram(Datagram(b"x", sock.getsockname())) is None
        assert (sock.timestamps(), sock.timestamps(0.001), sock.stats().transmitted) == ([], [], 0)


def test_timestamps_can_be_switched_off(stamping):
    sock, _, to = stamping
    sock.send_datagram(Datagram(b"x", to))
    take(sock, 1)
    sock.transmit_timestamps = False
    assert sock.send_datagram(Datagram(b"x", to)) is None
    assert (sock.timestamps(), sock.transmit_timestamps) == ([], False)
    sock.transmit_timestamps = True
    assert take(sock, 0) == {}
    id = sock.send_datagram(Datagram(b"x", to))
    assert list(take(sock, 1)) == [id]


def test_timestamps_that_arrived_before_they_were_switched_off(stamping):
    sock, _, to = stamping
    id = sock.send_datagram(Datagram(b"x", to))
    sock.transmit_timestamps = False
    sock.setblocking(False)
    assert message(sock) is None
    assert sock.errors() == []
    assert list(take(sock, 1)) == [id]


def test_timestamps_end_when_the_program_asks_for_its_own(stamping):
    """Both would be in one queue, and their ids would be the same."""
    sock, _, to = stamping
    id = sock.send_datagram(Datagram(b"x", to))
    own = 0x2 | 0x10 | 0x80 | 0x800  # TX_SOFTWARE, SOFTWARE, OPT_ID, OPT_TSONLY
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_TIMESTAMPING, own)
    assert sock.transmit_timestamps is False
    assert sock.send_datagram(Datagram(b"x", to)) is None
    assert list(take(sock, 1)) == [id]
    assert message(sock) is not None
    sock.transmit_timestamps = False
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TIMESTAMPING) == own


def test_failed_send_has_no_timestamp(stamping):
    sock, _, to = stamping
    with pytest.raises(OSError, match=rf"^\[Errno {errno.EMSGSIZE}\]"):
        sock.send_datagram(Datagram(bytes(70_000), to))
    id = sock.send_datagram(Datagram(b"x", to))
    assert list(take(sock, 1)) == [id]


def test_timestamps_wait_for_the_first(stamping):
    sock, _, to = stamping
    start = time.monotonic()
    assert sock.timestamps(0.02) == []
    assert time.monotonic() - start >= 0.02
    call = Call(sock.timestamps, DEADLINE).until_it_waits()
    id = sock.send_datagram(Datagram(b"x", to))
    ((found, _, _),) = call.result()
    assert found == id


def test_timestamps_of_a_closed_socket_raise(stamping):
    sock, _, to = stamping
    call = Call(sock.timestamps, DEADLINE).until_it_waits()
    sock.close()
    for end in (call.result, sock.timestamps, lambda: sock.send_datagram(Datagram(b"x", to))):
        with pytest.raises(OSError, match=CLOSED):
            end()


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_timestamps_refuse_a_wrong_timeout(stamping, timeout):
    with pytest.raises(ValueError, match="timeout must be a number of seconds, not"):
        stamping[0].timestamps(timeout)


def test_timestamps_are_not_errors(inet):
    """An error queue with both: each reader gets its own."""
    with inet.bound(std) as gone:
        dead = gone.getsockname()
    with inet.bound(std) as alive, inet.bound(socket) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVERR, 1)
        sock.transmit_timestamps = True
        ids = []
        for _ in range(5):
            for to in (dead, alive.getsockname()):
                while True:
                    try:
                        ids.append(sock.send_datagram(Datagram(b"x", to)))
                        break
                    except ConnectionRefusedError:
                        continue  # of the one before
        errors = []
        eventually(lambda: errors.extend(sock.errors()) or len(errors) == 5)
        assert {(error.peer, error.errno) for error in errors} == {(dead, errno.ECONNREFUSED)}
        assert take(sock, 10).keys() == set(ids)
        assert (sock.stats().errors, sock.stats().transmitted) == (5, 10)
        # And by recvmsg.
        sock.send_datagram(Datagram(b"x", dead))
        poll = select.poll()
        poll.register(sock, 0)
        assert poll.poll(DEADLINE * 1000)
        data, ancillary, flags, _ = eventually(lambda: message(sock))
        assert (data, flags & socket.MSG_ERRQUEUE) == (b"x", socket.MSG_ERRQUEUE)
        assert (socket.IPPROTO_IP, socket.IP_RECVERR) in [item[:2] for item in ancillary]
        assert len(take(sock, 1)) == 1


def message(sock):
    """Take an entry of the error queue as the standard class does, if there is one."""
    try:
        return sock.recvmsg(100, 1000, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        return None


def test_waiting_receive_does_not_spin_because_of_timestamps(stamping):
    sock, _, to = stamping
    sock.settimeout(0.3)
    ids = [sock.send_datagram(Datagram(b"x", to)) for _ in range(20)]
    start = time.process_time()
    with pytest.raises(TimeoutError):
        sock.recv(10)
    assert time.process_time() - start < 0.15
    assert take(sock, 20).keys() == set(ids)


@pytest.mark.usefixtures("runner")
async def test_event_loop_does_not_spin_because_of_timestamps(inet):
    with inet.bound(std) as receiver, inet.bound(socket) as sock:
        sock.transmit_timestamps = True
        async with open_endpoint(sock=sock) as endpoint:
            waiting = asyncio.ensure_future(endpoint.recv())
            ids = []
            for _ in range(20):
                ids.append(sock.send_datagram(Datagram(b"x", receiver.getsockname())))
                await asyncio.sleep(0)
            start = time.process_time()
            await asyncio.sleep(0.3)
            assert time.process_time() - start < 0.15
            assert take(sock, 20).keys() == set(ids)
            assert endpoint.errors() == []
            receiver.sendto(b"y", sock.getsockname())
            assert (await waiting)[0] == b"y"


@pytest.mark.usefixtures("stamped")
def test_received_datagrams_keep_their_timestamps(inet):
    """Whether they were asked for before or after the transmit timestamps."""
    for first in (False, True):
        with inet.bound(socket) as sock:
            sock.transmit_timestamps = first
            sock.sendto(b"x", sock.getsockname())
            sock.recv_datagram()
            sock.transmit_timestamps = True
            before = time.time_ns()
            sock.send_datagram(Datagram(b"x", sock.getsockname()))
            received = sock.recv_datagram()
            (stamp,) = take(sock, 1).values()
            assert before <= stamp <= received.timestamp_ns <= time.time_ns()
            assert received.hardware_timestamp_ns is None


def test_metadata_of_a_dual_stack_socket_has_room_for_both_timestamps(inet, inet6):
    with inet6.open(socket) as sock, inet.open(std) as sender:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        sock.gro = True
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv_datagram()
        sock.settimeout(DEADLINE)
        sock.transmit_timestamps = True
        segment = (std.IPPROTO_UDP, socket.UDP_SEGMENT, struct.pack("H", 4))
        sender.sendmsg([b"one two "], [segment], 0, ("127.0.0.1", sock.getsockname()[1]))
        for data in (b"one ", b"two "):
            received = sock.recv_datagram()
            assert (received.data, received.destination) == (data, "127.0.0.1")
            assert None not in (received.ttl, received.tos, received.interface)
            assert received.timestamp_ns is not None


def test_timestamps_that_the_program_asks_for_itself_are_left_alone(inet):
    software = 0x2 | 0x10 | 0x800  # TX_SOFTWARE, SOFTWARE, OPT_TSONLY
    with inet.bound(socket) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_TIMESTAMPING, software)
        with pytest.raises(OSError, match="has set SO_TIMESTAMPING for all datagrams"):
            sock.transmit_timestamps = True
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TIMESTAMPING) == software
        assert sock.transmit_timestamps is False


def test_af_unix_has_no_timestamps(unix):
    with unix.bound(socket) as sock:
        with pytest.raises(OSError, match="transmit timestamps need a socket of AF_INET"):
            sock.transmit_timestamps = True
        assert sock.timestamps() == []


def test_threads_get_different_ids(stamping):
    sock, _, to = stamping

    def send():
        return [sock.send_datagram(Datagram(b"x", to)) for _ in range(200)]

    calls = [Call(send) for _ in range(4)]
    ids = [id for call in calls for id in call.result()]
    assert sorted(ids) == list(range(1, 801))
    assert take(sock, 800).keys() == set(ids)


def test_devices_say_which_timestamps_they_can_make():
    lo = _devices.timestamping("lo")
    assert (lo.transmit_software, lo.receive_software) == (True, True)
    assert (lo.transmit_hardware, lo.receive_hardware, lo.clock) == (False, False, None)
    with pytest.raises(OSError, match=rf"^\[Errno {errno.ENODEV}\]"):
        _devices.timestamping("nosuch")


def test_hardware_timestamps_need_hardware(inet):
    with inet.bound(socket) as sock:
        for interface in ("lo", std.if_nametoindex("lo")):
            with pytest.raises(
                OSError, match="lo: the hardware of this device does not support timestamps"
            ):
                sock.enable_hardware_timestamps(interface)
        with pytest.raises(OSError, match="nosuch: there is no such device"):
            sock.enable_hardware_timestamps("nosuch")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TIMESTAMPING) == 0


@pytest.mark.usefixtures("stamped")
def test_hardware_timestamps_are_asked_for_once_the_device_makes_them(inet, monkeypatch):
    asked = []
    monkeypatch.setattr(
        _devices,
        "_call",
        lambda _, request, device, config: asked.append(
            (request, device, config.transmit, config.filter)
        ),
    )
    with inet.bound(socket) as sock:
        sock.enable_hardware_timestamps("lo")
        assert asked == [(0x89B1, "lo", 0, 0), (0x89B0, "lo", 1, 1)]
        wanted = (
            socket.SOF_TIMESTAMPING_RX_HARDWARE
            | socket.SOF_TIMESTAMPING_RAW_HARDWARE
            | socket.SOF_TIMESTAMPING_SOFTWARE
        )
        flags = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TIMESTAMPING)
        assert flags & wanted == wanted
        sock.sendto(b"x", sock.getsockname())
        received = sock.recv_datagram()
        assert received.timestamp_ns is not None  # the kernel's own
        assert received.hardware_timestamp_ns is None


def test_queueing_disciplines_of_devices():
    skips.program("tc")
    if reason := links.why_not():
        pytest.skip(reason)
    namespace = links.Namespace()
    try:
        assert namespace.run(_devices.queueing_disciplines)["lo"] == ["noqueue"]
        namespace.command("tc", "qdisc", "add", "dev", "lo", "root", "pfifo")
        assert namespace.run(_devices.queueing_disciplines)["lo"] == ["pfifo"]
    finally:
        namespace.close()
