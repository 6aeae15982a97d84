"""The module and the class: names, types, repr, attributes."""

import asyncio
import collections.abc
import enum
import inspect
import os
import selectors
import socket as std
import types
import typing
import weakref

import pytest

import tomada
from parity import Side, assert_same
from support import Peer
from tomada import socket

# Names that tomada defines itself; all others are the standard module's own objects.
OURS = {"socket", "SocketType", "fromfd", "socketpair"}

PUBLIC = sorted(name for name in vars(std) if not name.startswith("__"))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_of_the_standard_module_exists(name):
    ours, theirs = getattr(socket, name), getattr(std, name)
    if name in OURS:
        assert ours is not theirs
        assert ours.__module__ == "tomada.socket"
        assert callable(ours)
    else:
        assert ours is theirs


def test_star_import_provides_the_same_names():
    ours, theirs = {}, {}
    exec("from tomada.socket import *", ours)  # noqa: S102 - a module-level statement
    exec("from socket import *", theirs)  # noqa: S102
    assert set(theirs) <= set(ours)
    assert ours["socket"] is socket.socket
    assert all(isinstance(ours[name], int) for name in set(ours) - set(theirs))


def test_package_has_the_module_as_an_attribute():
    assert tomada.socket is socket
    assert socket.__name__ == "tomada.socket"


def test_constants_missing_in_the_standard_module_are_the_kernels():
    assert (socket.UDP_SEGMENT, socket.UDP_GRO, socket.MSG_WAITFORONE) == (103, 104, 0x10000)


@pytest.mark.parametrize("name", [name for name in dir(std.socket) if name != "__weakref__"])
def test_every_attribute_of_the_standard_class_exists(name):
    assert hasattr(socket.socket, name)
    with Side(socket) as side, Side(std) as other:
        assert hasattr(side.open(), name) == hasattr(other.open(), name)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, item in vars(std.socket).items()
        if inspect.isfunction(item) and (name == "__init__" or not name.startswith("_"))
    ],
)
def test_method_written_in_python_has_the_same_parameters(name):
    def parameters(cls):
        return [
            (parameter.name, parameter.kind, parameter.default)
            for parameter in inspect.signature(getattr(cls, name)).parameters.values()
        ]

    assert parameters(socket.socket) == parameters(std.socket)


@pytest.mark.parametrize("name", [name for name in dir(std.socket) if not name.startswith("_")])
def test_every_method_has_a_name_and_a_docstring(name):
    ours, theirs = getattr(socket.socket, name), getattr(std.socket, name)
    assert callable(ours) == callable(theirs)
    assert ours.__doc__ or not theirs.__doc__
    if callable(theirs):
        assert ours.__name__ == theirs.__name__
        assert name in ours.__qualname__


FAMILIES = (std.AF_INET, std.AF_INET6, std.AF_UNIX)

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def standard_repr(sock):
    """Return the repr of a standard socket with the same descriptor."""
    fd = os.dup(sock.fileno())
    with std.socket(sock.family, sock.type, sock.proto, fd) as twin:
        return (
            repr(twin)
            .replace("socket.socket", "tomada.socket.socket")
            .replace(f"fd={fd},", f"fd={sock.fileno()},")
        )


def test_repr_is_the_standard_classs(kind):
    with kind.open(socket) as sock, kind.bound(socket) as bound:
        assert repr(sock) == standard_repr(sock)
        assert repr(bound) == standard_repr(bound)
        assert str(bound.getsockname()) in repr(bound)
        sock.connect(bound.getsockname())
        assert repr(sock) == standard_repr(sock)
        assert f"raddr={bound.getsockname()}" in repr(sock)
        bound.connect(bound.getsockname())
        assert repr(bound) == standard_repr(bound)


def test_repr_of_a_closed_socket():
    def case(side):
        sock = side.bound()
        sock.close()
        return repr(sock).replace("tomada.", "")

    assert_same(case)


def test_repr_of_a_subclass_has_its_name():
    def case(side):
        class Special(side.module.socket):
            pass

        sock = side.keep(Special(std.AF_INET, std.SOCK_DGRAM))
        sock.close()
        return repr(sock)

    assert_same(case)


@every_family
def test_family_and_type_are_members_of_their_enumerations(family):
    with socket.socket(family, std.SOCK_DGRAM | std.SOCK_NONBLOCK) as sock:
        assert sock.family is family
        assert sock.type is std.SOCK_DGRAM
        assert isinstance(sock.family, enum.IntEnum)
        assert type(sock.proto) is int


@pytest.mark.parametrize("name", ["family", "type", "proto", "timeout", "colour", "_colour"])
def test_attributes_cannot_be_set(name):
    assert_same(lambda side: setattr(side.open(), name, 1), AttributeError)
    assert_same(lambda side: delattr(side.open(), name), AttributeError)


def test_unknown_attribute():
    assert_same(lambda side: side.open().colour, AttributeError)
    with Side(socket) as side:
        assert not hasattr(side.open(), "__dict__")


def test_socket_equals_only_itself():
    with Side(socket) as side:
        sock, twin = side.open(), side.open()
        assert sock == sock  # noqa: PLR0124 - this is tested
        assert sock != twin
        assert len({sock, twin, sock}) == 2
        assert bool(sock) is True


def test_weak_reference_lives_as_long_as_the_socket():
    with socket.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        ref = weakref.ref(sock)
        proxy = weakref.proxy(sock)
        assert ref() is sock
        assert proxy.fileno() == sock.fileno()
    del sock
    assert ref() is None


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (std.AF_INET, std.SOCK_STREAM),
        (std.AF_INET6, std.SOCK_STREAM),
        (std.AF_UNIX, std.SOCK_STREAM),
        (std.AF_UNIX, std.SOCK_SEQPACKET),
        (std.AF_NETLINK, std.SOCK_DGRAM),
        (std.AF_NETLINK, std.SOCK_RAW),
        (-1, -1),
        (std.AF_INET, -1),
    ],
)
def test_sockets_of_other_types_are_the_standard_librarys(family, kind):
    with socket.socket(family, kind) as sock:
        assert type(sock) is std.socket
        assert isinstance(sock, socket.socket)
    with std.socket(family, kind) as other:
        fd = os.dup(other.fileno())
        with socket.socket(fileno=fd) as adopted:
            assert type(adopted) is std.socket


@every_family
def test_every_datagram_socket_is_tomadas(family):
    with socket.socket(family, std.SOCK_DGRAM) as sock:
        assert type(sock) is socket.socket
        assert isinstance(sock, socket.SocketType)
        with socket.socket(fileno=os.dup(sock.fileno())) as adopted:
            assert type(adopted) is socket.socket


def test_classes_are_related_as_in_the_standard_module():
    class Special(socket.socket):
        pass

    assert issubclass(socket.socket, socket.SocketType)
    assert issubclass(std.socket, socket.socket)
    assert issubclass(Special, socket.socket)
    assert not issubclass(std.socket, Special)
    assert not issubclass(int, socket.socket)
    assert not isinstance(3, socket.socket)
    with Side(std) as side:
        assert isinstance(side.open(), socket.socket)
        assert not isinstance(side.open(), Special)
    with Side(socket) as side:
        assert not isinstance(side.open(), Special)
    assert isinstance(socket.socket, type)
    assert not isinstance(socket.socket, types.FunctionType)


def test_class_works_in_annotations():
    assert typing.get_type_hints(annotated) == {"sock": socket.socket | None}
    assert isinstance(None, socket.socket | None)


def annotated(sock: socket.socket | None):
    del sock


def test_inherited_methods_are_found_through_the_type():
    # unittest.mock and others build doubles from the class.
    for name in ("recv", "sendto", "close", "fileno", "makefile"):
        assert isinstance(getattr(socket.socket, name), collections.abc.Callable)
        assert name in dir(socket.socket)


def test_selector_accepts_a_socket(inet, peer):
    other = peer(inet)
    with inet.bound(socket) as sock, selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        assert selector.select(0) == []
        other.do("send", datagrams=[b"x"], to=sock.getsockname())
        ((key, events),) = selector.select(30)
        assert (key.fileobj, events) == (sock, selectors.EVENT_READ)
        assert sock.recv(10) == b"x"
        assert selector.select(0) == []


def test_standard_event_loop_accepts_a_socket(inet, peer):
    other = peer(inet)

    async def talk(sock):
        loop = asyncio.get_running_loop()
        await loop.sock_sendto(sock, b"there", other.address)
        return await asyncio.wait_for(loop.sock_recvfrom(sock, 100), 30)

    with inet.bound(socket) as sock:
        sock.setblocking(False)
        other.ask("echo", count=1)
        assert asyncio.run(talk(sock)) == (b"there", other.address)


def test_standard_datagram_endpoint_accepts_a_socket(inet, peer):
    other = peer(inet)

    class Protocol(asyncio.DatagramProtocol):
        def __init__(self):
            self.received = asyncio.get_running_loop().create_future()

        def datagram_received(self, data, address):
            self.received.set_result((data, address))

    async def talk(sock):
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(Protocol, sock=sock)
        transport.sendto(b"there", other.address)
        received = await asyncio.wait_for(protocol.received, 30)
        transport.close()
        return received

    other.ask("echo", count=1)
    assert asyncio.run(talk(inet.bound(socket))) == (b"there", other.address)


def test_helper_functions_make_streams():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        connection, address = server.accept()
        with connection:
            assert address == client.getsockname()
            assert isinstance(connection, socket.socket)
    assert socket.has_dualstack_ipv6() == std.has_dualstack_ipv6()


def test_peer_is_a_plain_socket(unix):
    # The other suites rely on this.
    with Peer(unix.family, unix.address()) as plain:
        maps = f"/proc/{plain.pid}/maps"
        with open(maps, encoding="utf-8") as loaded:  # noqa: PTH123
            assert "tomada" not in loaded.read()
