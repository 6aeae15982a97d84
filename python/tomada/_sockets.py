"""The class of tomada's datagram sockets, and the functions that create them.

:mod:`tomada.socket` exports them in place of the standard ones.
"""

from __future__ import annotations

import _socket
import socket as _std
import sys as _sys
from socket import AF_UNIX, SOCK_STREAM, AddressFamily, SocketKind, dup
from types import FunctionType as _FunctionType

from tomada import _core

__all__ = ["SocketType", "fromfd", "socket", "socketpair"]

# Saved, because some programs replace the standard module's class with ours.
_StdSocket = _std.socket

TYPE_CHECKING = False  # as in tomada/__init__.py
if TYPE_CHECKING:
    from typing import Any, Self, SupportsIndex

    # For type checkers a tomada socket is a standard one, so it may be passed wherever an
    # annotation requires socket.socket. It has all methods of that class.
    _Interface = _StdSocket
else:
    _Interface = object

_FAMILIES = frozenset({_std.AF_INET, _std.AF_INET6, _std.AF_UNIX})
_TYPE_FLAGS = _std.SOCK_NONBLOCK | _std.SOCK_CLOEXEC


def _is_ours(family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> bool:
    """Return whether tomada implements this kind of socket."""
    if fileno is None:
        family = _std.AF_INET if family == -1 else family
        type = _std.SOCK_STREAM if type == -1 else type
    elif family == -1 or type == -1:
        try:
            found_family, found_type = _core.kind_of(fileno)
        except (OSError, TypeError, ValueError, OverflowError):
            return False  # the standard class raises the right exception
        family = found_family if family == -1 else family
        type = found_type if type == -1 else type
    return family in _FAMILIES and type & ~_TYPE_FLAGS == _std.SOCK_DGRAM


class _SocketMeta(type):
    """Makes ``socket(…)`` choose the class by the kind of socket."""

    if not TYPE_CHECKING:  # for type checkers, it creates a socket of this class

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if cls is socket and not _is_ours(*args, **kwargs):
                return _StdSocket(*args, **kwargs)
            return super().__call__(*args, **kwargs)

    @property
    def __signature__(cls) -> Any:
        import inspect  # noqa: PLC0415 - only interactive users need it

        made_by = _StdSocket if cls is socket else cls
        signature = inspect.signature(made_by.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    # socket.socket(AF_INET, SOCK_STREAM) is an instance of socket.socket, as in the standard
    # module.
    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or (
            cls is socket and isinstance(instance, _StdSocket)
        )

    def __subclasscheck__(cls, subclass: type) -> bool:
        return super().__subclasscheck__(subclass) or (
            cls is socket and issubclass(subclass, _StdSocket)
        )


def _answered_class(self: object) -> type:
    # Libraries test isinstance(sock, socket.socket) with the standard class. They rarely get an
    # instance of a subclass, whose methods may look up their own attributes in self.__class__.
    return _StdSocket if type(self) is socket else type(self)


class socket(_core.Socket, _Interface, metaclass=_SocketMeta):
    """A datagram socket with the interface of :class:`socket.socket`, and more.

    ``socket(family=AF_INET, type=SOCK_STREAM, proto=0, fileno=None)``

    It takes the same arguments as the standard class, has the same methods, and raises the same
    exceptions. The base class :class:`tomada._core.Socket` documents the additions.

    A subclass may also open stream sockets of these families. They work, but without the additions.
    """

    __module__ = "tomada.socket"  # the public location

    # The standard class is a Python layer over a C class. We reuse the layer: makefile, dup,
    # accept, repr, with and others are the running interpreter's own code. Methods that call
    # super() are bound to their class, so they are reimplemented below.
    vars().update(
        {
            name: item
            for name, item in vars(_StdSocket).items()
            if isinstance(item, _FunctionType) and "__class__" not in item.__code__.co_freevars
        }
    )
    # An assignment in the class body would hide the cell that super() needs.
    vars()["__class__"] = property(_answered_class)
    __slots__ = ("__weakref__", "_closed", "_io_refs")

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None
    ) -> None:
        if fileno is None:
            family = _std.AF_INET if family == -1 else family
            type = _std.SOCK_STREAM if type == -1 else type
            proto = 0 if proto == -1 else proto
        self._open(family, type, proto, fileno, _std.getdefaulttimeout())
        self._io_refs = 0
        self._closed = False

    # These use __class__ in the standard library, or in object.

    def __repr__(self) -> str:
        text = _StdSocket.__repr__(self)
        own, answered = type(self), self.__class__
        if own is answered:
            return text
        name = f"<{own.__module__}.{own.__qualname__}"
        return name + text.removeprefix(f"<{answered.__module__}.{answered.__qualname__}")

    def __dir__(self) -> list[str]:
        return sorted({*dir(type(self)), *getattr(self, "__dict__", ())})

    def dup(self) -> Self:
        """Duplicate the socket, including its timeout. The new descriptor is not inheritable."""
        twin = type(self)(self.family, self.type, self.proto, fileno=dup(self.fileno()))
        twin.settimeout(self.gettimeout())
        return twin

    def _real_close(self) -> None:
        _core.Socket.close(self)

    def detach(self) -> int:
        """Close the object without closing the descriptor; return the descriptor, or -1 if closed.

        Calls that are waiting on the socket in other threads raise :class:`OSError`.
        """
        self._closed = True
        return _core.Socket.detach(self)

    @property
    def family(self) -> AddressFamily:
        """The address family."""
        family: AddressFamily = _member(AddressFamily, super().family)
        return family

    @property
    def type(self) -> SocketKind:
        """The type of socket, without flags."""
        kind: SocketKind = _member(SocketKind, super().type)
        return kind

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        # multiprocessing sends sockets between processes; detect whether it is the caller. It
        # looks the standard class up by name. Other picklers get the standard class's TypeError.
        reduction = _sys.modules.get("multiprocessing.reduction")
        if reduction and _sys._getframe(1).f_globals is vars(reduction):  # noqa: SLF001
            descriptor = reduction.DupFd(self.fileno())
            return _rebuild, (descriptor, self.family, self.type, self.proto)
        return super().__reduce_ex__(protocol)

    def enable_hardware_timestamps(self, interface: str | int) -> None:
        """Let a network device timestamp datagrams and report its timestamps.

        :attr:`tomada.Datagram.hardware_timestamp_ns` and :meth:`timestamps` then contain the
        device's timestamps. The setting applies to the whole machine and outlives the socket. If
        another program (``ptp4l``, ``chronyd``) has already configured the device, its setting
        stays unchanged. ``tomada info`` shows which devices have this feature.

        :param interface: The device's name or index.
        :raises OSError: ``EOPNOTSUPP``: the hardware does not support timestamps; ``ERANGE``: it
            can timestamp only some protocols; ``EPERM``: this needs ``CAP_NET_ADMIN``; ``ENODEV``:
            there is no such device.
        """
        from tomada import _devices  # noqa: PLC0415 - few programs need it

        device = interface if isinstance(interface, str) else _std.if_indextoname(interface)
        _devices.enable_hardware_timestamps(self._descriptor(), device)
        self._request_hardware_timestamps()

    def sendmsg_afalg(self, *args: Any, **kwargs: Any) -> int:
        """Raise :class:`OSError`, because this is not an ``AF_ALG`` socket."""
        raise OSError("algset is only supported for AF_ALG")


def _member(enum: Any, value: int) -> Any:
    try:
        return enum(value)
    except ValueError:
        return value  # the object was never opened


def _rebuild(descriptor: Any, family: int, type: int, proto: int) -> socket:
    return socket(family, type, proto, fileno=descriptor.detach())


SocketType = socket


def fromfd(fd: int, family: int, type: int, proto: int = 0) -> socket:
    """Create a socket from a duplicate of ``fd``, like :func:`socket.fromfd`."""
    return socket(family, type, proto, dup(fd))


def socketpair(
    family: int | None = None, type: int = SOCK_STREAM, proto: int = 0
) -> tuple[socket, socket]:
    """Create two sockets that are connected to each other, like :func:`socket.socketpair`."""
    family = AF_UNIX if family is None else family
    ends = _socket.socketpair(family, type, proto)
    first, second = (socket(family, type, proto, end.detach()) for end in ends)
    return first, second


fromfd.__module__ = socketpair.__module__ = socket.__module__
