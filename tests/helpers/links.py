"""Machines on a wire: network namespaces connected by veth devices, with IPv4 and IPv6 addresses.

A namespace and its devices exist as long as a descriptor of the namespace is open, so nothing is
left behind even if the tests crash.
"""

import contextlib
import ctypes
import functools
import os
import socket as std
import subprocess
from pathlib import Path

import skips
import tools
from support import DEADLINE, Call, eventually
from tomada import socket

CLONE_NEWNET = 0x40000000
SCOPE = "fe80::%d"

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result):
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Namespace:
    """A separate network, with a loopback device."""

    def __init__(self):
        self._fd = Call(self._make).result()
        self.command("ip", "link", "set", "lo", "up")

    @staticmethod
    def _make():
        # This affects only the calling thread, which ends afterwards.
        _checked(_libc.unshare(CLONE_NEWNET))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def run(self, function, *arguments):
        """Call a function in a thread in the namespace; sockets opened there stay in it."""

        def enter():
            _checked(_libc.setns(self._fd, CLONE_NEWNET))
            return function(*arguments)

        return Call(enter).result()

    def command(self, *command):
        """Run a program in the namespace, and return its output."""
        path = tools.find(command[0])
        result = self.run(
            lambda: subprocess.run(
                [path, *command[1:]], capture_output=True, text=True, timeout=DEADLINE, check=False
            )
        )
        assert result.returncode == 0, (command, result.stderr)
        return result.stdout

    def set(self, option, value):
        """Set a sysctl of the namespace, named with slashes."""
        self.run(lambda: Path("/proc/sys/net", option).write_text(str(value)))

    def open(self, module, family=socket.AF_INET):
        """Open a datagram socket with a deadline."""

        def make():
            sock = module.socket(family, socket.SOCK_DGRAM)
            sock.settimeout(DEADLINE)
            return sock

        return self.run(make)

    def bound(self, module, address):
        """Open a datagram socket bound to a numeric address and a free port."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = self.open(module, family)
        self.run(sock.bind, address)
        return sock

    def join(self, device, other, other_device, addresses, other_addresses):
        """Connect to another namespace with a pair of devices that have these addresses."""
        there = f"/proc/{os.getpid()}/fd/{other._fd}"  # noqa: SLF001 - the same class
        pair = (device, "type", "veth", "peer", "name", other_device, "netns", there)
        self.command("ip", "link", "add", *pair)
        ends = ((self, device, addresses), (other, other_device, other_addresses))
        for namespace, name, own in ends:
            namespace._set_up(name, own)  # noqa: SLF001
        # Wait until the devices are ready: datagrams sent earlier are dropped, and a neighbour
        # solicitation is repeated only after a second.
        for namespace, name, own in ends:
            eventually(functools.partial(namespace.is_ready, name, own))

    def _set_up(self, device, addresses):
        # No automatic addresses, and no duplicate address detection, which takes a second.
        self.command("ip", "link", "set", device, "addrgenmode", "none")
        for address in addresses:
            options = ["nodad"] if ":" in address else []
            self.command("ip", "address", "add", address, "dev", device, *options)
        self.command("ip", "link", "set", device, "up")

    def is_ready(self, device, addresses):
        """Return whether a device is up and its IPv6 addresses, which take longer, are there."""
        if "state UP" not in self.command("ip", "-oneline", "link", "show", "dev", device):
            return False
        routes = self.command("ip", "-6", "route", "show", "table", "local")
        own = (address.partition("/")[0] for address in addresses if ":" in address)
        return all(f"local {address} dev {device} " in routes for address in own)

    def index(self, device):
        return self.run(std.if_nametoindex, device)

    def close(self):
        os.close(self._fd)


class Network:
    """A group of namespaces that are removed together."""

    def __init__(self, stack):
        self._stack = stack

    def namespace(self):
        return self._stack.enter_context(contextlib.closing(Namespace()))

    def link(self):
        """Connect two namespaces, and return them.

        They have the addresses 10.77.0.1 and 10.77.0.2, the second also 10.77.0.22; fd77::1 and
        fd77::2, fd77::22; fe80::1 and fe80::2. The devices are called left and right.
        """
        left, right = self.namespace(), self.namespace()
        left.join(
            "left",
            right,
            "right",
            ["10.77.0.1/24", "fd77::1/64", "fe80::1/64"],
            ["10.77.0.2/24", "10.77.0.22/24", "fd77::2/64", "fd77::22/64", "fe80::2/64"],
        )
        for there in ("10.77.0.2", "fd77::2"):
            self.find(left, right, there)
        return left, right

    @staticmethod
    def find(left, right, there):
        """Have both neighbours resolve each other's addresses, so that no test datagram waits."""
        here = there.rpartition(":" if ":" in there else ".")[0]
        here = f"{here}{':' if ':' in there else '.'}1"
        with left.bound(std, (here, 0)) as sock, right.bound(std, (there, 0)) as other:
            sock.sendto(b"are you there?", other.getsockname())
            other.sendto(*other.recvfrom(100))
            sock.recv(100)


def why_not():
    """Return why namespaces cannot be created here, or None if they can."""
    if os.geteuid() != 0:
        return f"{skips.NO_ROOT} make network namespaces"
    if tools.find("ip") is None:
        return "there is no ip command"
    try:
        Namespace().close()
    except OSError as error:
        return f"{skips.NO_ROOT} make network namespaces: {error}"
    return None


def drop(namespace, rule):
    """Add an nftables rule to a namespace: the chain, ``input`` or ``output``, and the rule."""
    hook, _, rule = rule.partition(" ")
    skips.program("nft")
    chain = f"{{ type filter hook {hook} priority 0; }}"
    namespace.command("nft", "add", "table", "inet", "test")
    namespace.command("nft", "add", "chain", "inet", "test", "dropping", chain)
    namespace.command("nft", "add", "rule", "inet", "test", "dropping", *rule.split())
