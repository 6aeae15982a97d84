"""The class of tomada's datagram sockets, and the functions that make them.

:mod:`tomada.socket` puts them in the place of the standard ones.
"""

from __future__ import annotations

import _socket
import socket as _std
import sys as _sys
from socket import AF_UNIX, SOCK_STREAM, AddressFamily, SocketKind, dup
from types import FunctionType as _FunctionType
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

from tomada import _core

__all__ = ["SocketType", "fromfd", "socket", "socketpair"]

# Kept by a name of ours: some programs put our class in the standard module's place.
_StdSocket = _std.socket

if TYPE_CHECKING:
    # To a type checker a tomada socket is a standard one, so that it may go wherever an
    # annotation asks for socket.socket. It has every method of that class.
    _Interface = _StdSocket
else:
    _Interface = object

_FAMILIES = frozenset({_std.AF_INET, _std.AF_INET6, _std.AF_UNIX})
_TYPE_FLAGS = _std.SOCK_NONBLOCK | _std.SOCK_CLOEXEC


def _is_ours(family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> bool:
    """Say whether a socket of this kind is tomada's."""
    if fileno is None:
        family = _std.AF_INET if family == -1 else family
        type = _std.SOCK_STREAM if type == -1 else type
    elif family == -1 or type == -1:
        try:
            found_family, found_type = _core.kind_of(fileno)
        except (OSError, TypeError, ValueError, OverflowError):
            return False  # the standard class has the right words for it
        family = found_family if family == -1 else family
        type = found_type if type == -1 else type
    return family in _FAMILIES and type & ~_TYPE_FLAGS == _std.SOCK_DGRAM


class _SocketMeta(type):
    """Makes ``socket(…)`` a call that chooses the class, as the kind of socket demands."""

    if not TYPE_CHECKING:  # to a type checker, it makes a socket of this class

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if cls is socket and not _is_ours(*args, **kwargs):
                return _StdSocket(*args, **kwargs)
            return super().__call__(*args, **kwargs)

    @property
    def __signature__(cls) -> Any:
        import inspect  # noqa: PLC0415 - nobody asks but interactive users

        made_by = _StdSocket if cls is socket else cls
        signature = inspect.signature(made_by.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    # socket.socket(AF_INET, SOCK_STREAM) is an instance of socket.socket here as there.
    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or (
            cls is socket and isinstance(instance, _StdSocket)
        )

    def __subclasscheck__(cls, subclass: type) -> bool:
        return super().__subclasscheck__(subclass) or (
            cls is socket and issubclass(subclass, _StdSocket)
        )


def _answered_class(self: object) -> type:
    # Libraries test isinstance(sock, socket.socket) with the standard class. A subclass is seldom
    # given to them, and has methods that look up attributes of its own in self.__class__.
    return _StdSocket if type(self) is socket else type(self)


class socket(_core.Socket, _Interface, metaclass=_SocketMeta):
    """A datagram socket with the interface of :class:`socket.socket`, and more.

    ``socket(family=AF_INET, type=SOCK_STREAM, proto=0, fileno=None)``

    The arguments, methods and exceptions are those of the standard class. What comes on top of it
    is documented with :class:`tomada._core.Socket`, which has it.

    A subclass may also open stream sockets in the same families; they work, without the additions.
    """

    __module__ = "tomada.socket"  # which is where it is found

    # The standard class is itself a layer of Python over one of C. The layer serves here too:
    # makefile, dup, accept, repr, with and the rest are the running interpreter's own code. What
    # calls super() belongs to its class, and is written again below.
    vars().update(
        {
            name: item
            for name, item in vars(_StdSocket).items()
            if isinstance(item, _FunctionType) and "__class__" not in item.__code__.co_freevars
        }
    )
    # An assignment in the body would hide the cell that super() needs.
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

    # These ask for __class__ in the standard library, or in object.

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
        """Duplicate the socket, with its timeout. The new descriptor is not inheritable."""
        twin = type(self)(self.family, self.type, self.proto, fileno=dup(self.fileno()))
        twin.settimeout(self.gettimeout())
        return twin

    def _real_close(self) -> None:
        _core.Socket.close(self)

    def detach(self) -> int:
        """Close the object without closing the descriptor, and return the descriptor, or -1.

        Calls that wait on the socket in other threads end with an :class:`OSError`.
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
        # multiprocessing sends sockets from one process to another, in which case it is who asks.
        # It knows the standard class by name; other picklers get the standard class's TypeError.
        reduction = _sys.modules.get("multiprocessing.reduction")
        if reduction and _sys._getframe(1).f_globals is vars(reduction):  # noqa: SLF001
            descriptor = reduction.DupFd(self.fileno())
            return _rebuild, (descriptor, self.family, self.type, self.proto)
        return super().__reduce_ex__(protocol)

    def sendmsg_afalg(self, *args: Any, **kwargs: Any) -> int:
        """Raise :class:`OSError`: the socket is none of ``AF_ALG``."""
        raise OSError("algset is only supported for AF_ALG")


def _member(enum: Any, value: int) -> Any:
    try:
        return enum(value)
    except ValueError:
        return value  # an object that was never opened


def _rebuild(descriptor: Any, family: int, type: int, proto: int) -> socket:
    return socket(family, type, proto, fileno=descriptor.detach())


SocketType = socket


def fromfd(fd: int, family: int, type: int, proto: int = 0) -> socket:
    """Make a socket of a duplicate of ``fd``, as :func:`socket.fromfd`."""
    return socket(family, type, proto, dup(fd))


def socketpair(
    family: int | None = None, type: int = SOCK_STREAM, proto: int = 0
) -> tuple[socket, socket]:
    """Make two sockets that are connected to each other, as :func:`socket.socketpair`."""
    family = AF_UNIX if family is None else family
    ends = _socket.socketpair(family, type, proto)
    first, second = (socket(family, type, proto, end.detach()) for end in ends)
    return first, second


fromfd.__module__ = socketpair.__module__ = socket.__module__
