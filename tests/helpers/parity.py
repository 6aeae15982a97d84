"""Make the same call with the standard module and with tomada, and compare the outcomes."""

import contextlib
import itertools
import os
import socket as std
import sys

from tomada import socket as ours

_names = itertools.count()


class Side:
    """One of the two modules, with the sockets that a case opens from it."""

    def __init__(self, module):
        self.module = module
        self._open = contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._open.close()

    def keep(self, sock):
        """Close the socket when the case is over."""
        # After close or detach, this does nothing.
        self._open.callback(sock.close)
        return sock

    def open(self, family=std.AF_INET):
        """Open a non-blocking datagram socket."""
        sock = self.keep(self.module.socket(family, std.SOCK_DGRAM))
        sock.setblocking(False)
        return sock

    def bound(self, family=std.AF_INET):
        sock = self.open(family)
        sock.bind(fresh(family))
        return sock

    def connected(self, family=std.AF_INET):
        """Open a socket that is connected to a plain one, and return both."""
        sock = self.bound(family)
        peer = self.keep(std.socket(family, std.SOCK_DGRAM))
        peer.bind(fresh(family))
        peer.connect(sock.getsockname())
        sock.connect(peer.getsockname())
        return sock, peer


def fresh(family):
    """Return an address to which no socket is bound."""
    if family == std.AF_UNIX:
        return b"\0tomada parity %d %d" % (os.getpid(), next(_names))
    return ("127.0.0.1" if family == std.AF_INET else "::1", 0)


def outcome(module, case):
    """Run a case, and describe what it returns or raises.

    The messages of an OSError must be the same on both sides: programs print them, and some search
    them. The messages of other exceptions are for programmers, so they may differ.
    """
    try:
        with Side(module) as side:
            result = case(side)
    except AssertionError:
        raise
    except OSError as error:
        return "raises", type(error), error.errno, str(error)
    except Exception as error:  # noqa: BLE001 - any exception must be the same
        return "raises", type(error)
    return "returns", type(result), result


def assert_same(case, raises=None):
    """Check that both modules have the same outcome and, if given, raise the expected exception."""
    expected = outcome(std, case)
    assert expected[0] == ("returns" if raises is None else "raises"), expected
    assert raises is None or issubclass(expected[1], raises), expected
    assert outcome(ours, case) == expected


def hides_exceptions(method, position):
    """Return whether the standard class replaces the argument's exception with a ``TypeError``."""
    since = {("sendmsg", 1): (3, 14), ("sendmsg", 0): (3, 14, 7), ("recvmsg_into", 0): (3, 14, 7)}
    return sys.version_info >= since.get((method, position), (4,))


def assert_same_outcome(case, hidden=None):
    """Check that both modules have the same outcome.

    :param hidden: The exception that the standard class replaces with a ``TypeError``.
    """
    expected = outcome(std, case)
    if hidden is not None:
        assert expected == ("raises", TypeError)
        expected = "raises", hidden
    assert outcome(ours, case) == expected
