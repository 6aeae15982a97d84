"""Random calls on both modules: equal results, equal exceptions, and no call hangs.

The long form makes many more of them, others in each run.
"""

import errno
import fcntl
import os
import random
import socket as std
import struct
import termios

import pytest

from families import LONG, length
from parity import Side
from support import DEADLINE, Call, eventually, fill, sleeps_in_the_kernel
from tomada import socket

SEQUENCES = length(60, 4000)
STEPS = 14
SOON = 0.01
LIMITS = {0: struct.pack("ll", 0, 0), SOON: struct.pack("ll", 0, 10_000)}
FAMILIES = (std.AF_INET, std.AF_INET6, std.AF_UNIX)
RECEIVE_FLAGS = (
    0, 0, 0,
    std.MSG_DONTWAIT,
    std.MSG_PEEK,
    std.MSG_PEEK | std.MSG_DONTWAIT,
    std.MSG_TRUNC,
    std.MSG_WAITALL,
    std.MSG_ERRQUEUE,
    std.MSG_ERRQUEUE | std.MSG_DONTWAIT,
)  # fmt: skip
SEND_FLAGS = (0, 0, 0, std.MSG_DONTWAIT)
UDP_CORK, UDP_SEGMENT = 1, 103


class Player:
    """A socket of one module, a plain peer, and the steps of a sequence."""

    def __init__(self, side, family):
        self.family = family
        self.is_ours = side.module is socket
        self.was_filled = False
        self.sock, self.peer = side.connected(family)
        self.sock.settimeout(None)
        self.peer.setblocking(False)

    # Steps that change whether a call waits.

    def set_timeout(self, timeout):
        self.sock.settimeout(timeout)

    def set_blocking(self, way):
        fd = self.sock.fileno()
        copy = os.dup(fd)
        {
            "os": lambda: os.set_blocking(fd, False),
            "copy": lambda: os.set_blocking(copy, False),
            "ioctl": lambda: fcntl.ioctl(fd, termios.FIONBIO, struct.pack("i", 1)),
            "block": lambda: self.sock.gettimeout() is None and os.set_blocking(fd, True),
        }[way]()
        os.close(copy)

    def limit(self, option, seconds, own):
        if own:
            self.sock.setsockopt(std.SOL_SOCKET, option, LIMITS[seconds])
            return
        with std.socket(fileno=os.dup(self.sock.fileno())) as other:
            other.setsockopt(std.SOL_SOCKET, option, LIMITS[seconds])

    def set_gro(self, is_on):
        if self.is_ours and self.family != std.AF_UNIX:
            self.sock.gro = is_on

    def set_cork(self, is_on):
        self.sock.setsockopt(std.IPPROTO_UDP, UDP_CORK, is_on)

    def set_segment(self, length):
        self.sock.setsockopt(std.IPPROTO_UDP, UDP_SEGMENT, length)

    def shutdown(self, how):
        # With a timeout, tomada tries before it polls: it raises EPIPE at once, while the
        # standard module first waits for room in the peer's queue.
        if how == std.SHUT_RD or not self.was_filled:
            self.sock.shutdown(how)

    def connect(self):
        self.sock.connect(self.peer.getsockname())

    def want_errors(self, is_on):
        option = {std.AF_INET: (std.IPPROTO_IP, 11), std.AF_INET6: (std.IPPROTO_IPV6, 25)}
        self.sock.setsockopt(*option[self.family], is_on)

    # Steps that give the socket something to receive.

    def feed(self, count):
        for index in range(count):
            self.peer.sendto(b"%d" % index * 10, self.sock.getsockname())
        # On a busy machine the kernel delivers later, and what another core sends may be first.
        eventually(self.has_input)

    def feed_run(self, length):
        """Send one message that the kernel splits, but not for a socket with UDP_GRO."""
        segment = [(std.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", length))]
        self.peer.sendmsg([b"0123456789" * 2], segment, 0, self.sock.getsockname())
        eventually(self.has_input)

    def has_input(self):
        return fcntl.ioctl(self.sock.fileno(), termios.FIONREAD, bytes(4)) != bytes(4)

    def fill(self):
        if self.family == std.AF_UNIX:
            self.was_filled = True
            fill(self.sock, self.peer.getsockname())

    # Calls

    def receive(self, name, flags):
        buffer = bytearray(20)
        call = {
            "recv": lambda: self.sock.recv(20, flags),
            "recvfrom": lambda: self.sock.recvfrom(20, flags),
            "recv_into": lambda: self.sock.recv_into(buffer, 0, flags),
            "recvfrom_into": lambda: self.sock.recvfrom_into(buffer, 0, flags),
            "recvmsg": lambda: self.sock.recvmsg(20, 0, flags),
            "recvmsg_into": lambda: self.sock.recvmsg_into([buffer], 0, flags),
        }[name]
        with_buffer = lambda: (call(), bytes(buffer))  # noqa: E731 - it is passed as a function
        return self.run(with_buffer, std.SO_RCVTIMEO)

    def accept(self):
        return self.run(self.sock.accept, std.SO_RCVTIMEO)

    def send(self, name, flags):
        to = self.peer.getsockname()
        call = {
            "send": lambda: self.sock.send(b"sent", flags),
            "sendto": lambda: self.sock.sendto(b"sent", flags, to),
            "sendmsg": lambda: self.sock.sendmsg([b"se", b"nt"], [], flags),
            "sendall": lambda: self.sock.sendall(b"sent", flags),
        }[name]
        return self.run(call, std.SO_SNDTIMEO)

    def run(self, call, option):
        """Make a call; if it blocks for ever, unblock it."""
        is_limited = (
            self.sock.gettimeout() is not None
            or fcntl.fcntl(self.sock.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
            or any(self.sock.getsockopt(std.SOL_SOCKET, option, 16))
        )
        made = Call(call)
        if is_limited:
            return made.result()
        eventually(lambda: not made.is_alive() or sleeps_in_the_kernel("self", made.native_id))
        while made.is_alive():
            if option == std.SO_RCVTIMEO:
                self.peer.sendto(b"rescue", self.sock.getsockname())
            else:
                self.drain()
            made.join(DEADLINE)
            assert not made.is_alive(), "the call hangs"
        return made.result()

    def drain(self):
        try:
            while True:
                self.peer.recv(100)
        except BlockingIOError:
            pass

    def play(self, step):
        name, *arguments = step
        names = [(self.sock.getsockname(), "own"), (self.peer.getsockname(), "peer")]
        try:
            result = getattr(self, name)(*arguments)
        except OSError as error:
            return type(error), error.errno, error.strerror
        return name_addresses(result, names)


def name_addresses(result, names):
    """Replace addresses, whose ports differ between both sides, with "own" and "peer"."""
    for address, name in names:
        if result == address:
            return name
    if isinstance(result, tuple):
        return tuple(name_addresses(item, names) for item in result)
    return result


def random_step(chance, family):
    """Choose a random step; calls are more frequent than other steps."""
    is_ip = family != std.AF_UNIX
    receive = ("recv", "recvfrom", "recv_into", "recvfrom_into", "recvmsg", "recvmsg_into")
    makers = [
        (4, lambda: ("set_timeout", chance.choice([None, None, 0, SOON]))),
        (4, lambda: ("set_blocking", chance.choice(["os", "copy", "ioctl", "block"]))),
        (3, lambda: ("limit", std.SO_RCVTIMEO, chance.choice([0, SOON]), chance.random() < 0.5)),
        (3, lambda: ("limit", std.SO_SNDTIMEO, chance.choice([0, SOON]), chance.random() < 0.5)),
        (2, lambda: ("set_gro", chance.random() < 0.7)),
        (1, lambda: ("shutdown", chance.choice([std.SHUT_RD, std.SHUT_WR, std.SHUT_RDWR]))),
        (1, lambda: ("connect",)),
        (6, lambda: ("feed", chance.randint(1, 3))),
        (12, lambda: ("receive", chance.choice(receive), chance.choice(RECEIVE_FLAGS))),
        (5, lambda: ("send", chance.choice(["send", "sendto", "sendmsg", "sendall"]),
                     chance.choice(SEND_FLAGS))),
        (1, lambda: ("accept",)),
        (2 * (not is_ip), lambda: ("fill",)),
        (is_ip, lambda: ("set_cork", chance.random() < 0.5)),
        (is_ip, lambda: ("want_errors", chance.random() < 0.5)),
        (is_ip, lambda: ("set_segment", chance.choice([0, 2, 1000]))),
        (3 * is_ip, lambda: ("feed_run", chance.choice([1, 6, 10, 15]))),
    ]  # fmt: skip
    (maker,) = chance.choices([maker for _, maker in makers], [weight for weight, _ in makers])
    return maker()


def play(module, family, steps):
    with Side(module) as side:
        player = Player(side, family)
        return [player.play(step) for step in steps]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_random_calls_have_the_same_outcome_with_both_modules(family):
    base = random.SystemRandom().randrange(2**32) if LONG else 1234
    for seed in range(base, base + SEQUENCES):
        chance = random.Random(seed)  # noqa: S311 - not for secrets
        steps = [random_step(chance, family) for _ in range(STEPS)]
        expected = play(std, family, steps)
        found = play(socket, family, steps)
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            done = "".join(f"\n  {step}" for step in steps[: index + 1])
            assert one == other, f"seed {seed}: {one} and not {other} after{done}"


def test_differential_test_notices_a_call_that_does_not_wait():
    assert play(std, std.AF_INET, [("set_blocking", "os"), ("receive", "recv", 0)])[1] == (
        BlockingIOError, errno.EAGAIN, os.strerror(errno.EAGAIN)
    )  # fmt: skip
    assert play(std, std.AF_INET, [("receive", "recv", 0)]) == [(b"rescue", bytes(20))]


def test_accept_does_not_wait_for_the_kernel_if_a_datagram_is_kept():
    steps = [
        ("set_gro", True),
        ("set_timeout", SOON),
        ("feed", 1),
        ("receive", "recv_into", std.MSG_PEEK),
        ("accept",),
    ]
    expected = OSError, errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP)
    assert play(std, std.AF_INET, steps)[-1] == play(socket, std.AF_INET, steps)[-1] == expected
