"""Wrong arguments to every method: the same results as with the standard class."""

import socket as std
from unittest import mock

import pytest

from parity import hides_exceptions, outcome
from tomada import socket as ours

# Valid arguments to each method of a connected socket.
RIGHT = {
    "bind": lambda sock: (sock.getsockname(),),
    "close": lambda _: (),
    "connect": lambda sock: (sock.getpeername(),),
    "connect_ex": lambda sock: (sock.getpeername(),),
    "detach": lambda _: (),
    "dup": lambda _: (),
    "fileno": lambda _: (),
    "get_inheritable": lambda _: (),
    "getblocking": lambda _: (),
    "getpeername": lambda _: (),
    "getsockname": lambda _: (),
    "getsockopt": lambda _: (std.SOL_SOCKET, std.SO_BROADCAST, 4),
    "gettimeout": lambda _: (),
    "listen": lambda _: (1,),
    "makefile": lambda _: ("rb", 0),
    "recv": lambda _: (100, 0),
    "recv_into": lambda _: (bytearray(10), 0, 0),
    "recvfrom": lambda _: (100, 0),
    "recvfrom_into": lambda _: (bytearray(10), 0, 0),
    "recvmsg": lambda _: (100, 0, 0),
    "recvmsg_into": lambda _: ([bytearray(10)], 0, 0),
    "send": lambda _: (b"data", 0),
    "sendall": lambda _: (b"data", 0),
    "sendfile": lambda _: (None, 0, None),
    "sendmsg": lambda sock: ([b"data"], [], 0, sock.getpeername()),
    "sendmsg_afalg": lambda _: ([b"data"],),
    "sendto": lambda sock: (b"data", 0, sock.getpeername()),
    "set_inheritable": lambda _: (True,),
    "setblocking": lambda _: (False,),
    "setsockopt": lambda _: (std.SOL_SOCKET, std.SO_BROADCAST, 1),
    "settimeout": lambda _: (0.0,),
    "shutdown": lambda _: (std.SHUT_RD,),
}

ARITY = {method: len(right(mock.Mock())) for method, right in RIGHT.items()}

KEYWORDS = {
    *("address", "ancbufsize", "ancdata", "backlog", "buffer", "buffers", "buflen", "bufsize"),
    *("data", "file", "flag", "flags", "how", "inheritable", "level", "mode", "msg", "nbytes"),
    *("offset", "optlen", "optname", "sock", "timeout", "value"),
}

FAMILIES = (std.AF_INET, std.AF_INET6, std.AF_UNIX)

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
every_method = pytest.mark.parametrize("method", RIGHT)


class Index:
    """An object whose ``__index__`` returns zero."""

    def __index__(self):
        return 0


class Unruly:
    """An object whose conversions raise."""

    def __index__(self):
        raise ZeroDivisionError

    __bool__ = __iter__ = __len__ = __index__


def wrong():
    """Make arguments that are wrong, or at least unusual, for most parameters."""
    return {
        "None": None,
        "True": True,
        "-1": -1,
        "2**31": 2**31,
        "-2**31-1": -(2**31) - 1,
        "2**32": 2**32,
        "2**63": 2**63,
        "-2**63-1": -(2**63) - 1,
        "1.0": 1.0,
        "nan": float("nan"),
        "text": "text",
        "empty text": "",
        "bytes": b"bytes",
        "empty bytes": b"",
        "bytearray": bytearray(b"array"),
        "tuple": (),
        "list": [],
        "list of None": [None],
        "list of bytes": [b"bytes"],
        "list of tuples": [(1, 2)],
        "dict": {},
        "index": Index(),
        "unruly": Unruly(),
        "object": object(),
        "class": int,
    }


def call(side, family, method, change, keywords=()):
    """Call a method of a connected socket with changed arguments."""
    sock, peer = side.connected(family)
    peer.send(b"hello")
    names = {sock.getsockname(): "this socket's", peer.getsockname(): "the peer's"}
    arguments = change(list(RIGHT[method](sock)))
    result = getattr(sock, method)(*arguments, **dict(keywords))
    if hasattr(result, "close"):
        result.close()
        return type(result).__name__
    if isinstance(result, tuple):
        return [
            names.get(item, item) if isinstance(item, tuple | bytes) else item for item in result
        ]
    return names.get(result, result)


def is_about_memory(method, position, name):
    """Return whether the standard class would try to allocate this much."""
    return (
        method in {"recv", "recvfrom", "recvmsg"} and position == 0 and name in {"2**31", "2**32"}
    )


@every_family
@pytest.mark.parametrize(
    ("method", "position"),
    [(method, position) for method, arity in ARITY.items() for position in range(arity)],
)
def test_one_wrong_argument(family, method, position):
    def outcomes(module):
        answers = {}
        for name, value in wrong().items():
            if is_about_memory(method, position, name):
                continue

            def change(arguments, value=value):
                arguments[position] = value
                return arguments

            answers[name] = outcome(module, lambda side: call(side, family, method, change))
        return answers

    expected = outcomes(std)
    if hides_exceptions(method, position):
        expected["unruly"] = ("raises", ZeroDivisionError)
    assert outcomes(ours) == expected


@every_family
@pytest.mark.parametrize(
    ("method", "count"),
    [
        (method, count)
        for method, arity in ARITY.items()
        for count in range(arity + 2)
        if count or arity  # for methods without parameters, no arguments are valid
    ],
)
def test_too_few_and_too_many_arguments(family, method, count):
    def case(side):
        return call(side, family, method, lambda arguments: [*arguments, None][:count])

    assert outcome(ours, case) == outcome(std, case)


@every_method
def test_same_arguments_are_accepted_by_keyword(method):
    def outcomes(module):
        answers = {}
        for position in range(ARITY[method]):
            for name in KEYWORDS:
                value = RIGHT[method](mock.Mock())[position]
                if isinstance(value, mock.Mock):
                    value = ("127.0.0.1", 9)

                def case(side, position=position, keyword=(name, value)):
                    return call(
                        side, std.AF_INET, method, lambda arguments: arguments[:position], [keyword]
                    )

                answers[position, name] = outcome(module, case)
        return answers

    assert outcomes(ours) == outcomes(std)


@every_method
def test_unknown_keyword_argument(method):
    def case(side):
        return call(side, std.AF_INET, method, list, [("colour", "red")])

    assert outcome(ours, case) == outcome(std, case)
