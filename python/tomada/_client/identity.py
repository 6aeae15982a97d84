"""How a client knows which request a reply answers: by a match, a key, or the port alone."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from tomada._client.one_socket import Keyed, Matched
from tomada._client.own_sockets import Returning, Separate

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from socket import _Address

    from tomada._client.in_flight import InFlight
    from tomada._client.pool import Pool
    from tomada._client.retry import Retry

__all__ = ["Identity"]


class Identity:
    """The user's functions that match replies to requests.

    :param match: Returns whether a datagram answers a request.
    :param key: Returns what a request and its reply have in common.
    :raises TypeError: One is not a function.
    :raises ValueError: Both are given.
    """

    def __init__(
        self,
        match: Callable[[Any, bytes], bool] | None,
        key: Callable[[Any], Hashable] | None,
    ) -> None:
        if match is not None and not _is_function(match):
            raise TypeError(f"match must be a function of a request and a reply, not {match!r}")
        if key is not None and not _is_function(key):
            raise TypeError(f"key must be a function of a request or a reply, not {key!r}")
        if match is not None and key is not None:
            raise ValueError("pass match= or key=, not both")
        self._match = match
        self._key = key
        # Returns the key of a request in the form in which it is sent.
        self._key_of_request = key

    def behind(self, header: bytes) -> Identity:
        """Return the identity of requests sent with a header, which replies do not have."""
        match, key, start = self._match, self._key, len(header)
        if not header:
            return self
        behind = Identity(match, key)
        if match is not None:
            behind._match = lambda request, reply: match(request[start:], reply)
        if key is not None:
            behind._key_of_request = lambda request: key(request[start:])
        return behind

    @property
    def tells_apart(self) -> bool:
        """Whether the content of a reply identifies its request, so that one port is enough."""
        return self._match is not None or self._key is not None

    @property
    def match(self) -> Callable[[Any, bytes], bool] | None:
        """A function that returns whether a datagram answers a request."""
        key, key_of_request = self._key, self._key_of_request
        if key is None or key_of_request is None:
            return self._match
        return lambda request, reply: key_of_request(request) == key(reply)

    def in_flight(
        self, pool: Pool, retry: Retry, address: _Address, *, lasts: bool = False
    ) -> InFlight:
        """Return an object that keeps many requests in flight and matches replies to them.

        :param lasts: Whether it is used for the client's whole life.
        """
        if self._key is not None and self._key_of_request is not None:
            return Keyed(self._key_of_request, self._key, pool, retry, address)
        if self._match is not None:
            return Matched(self._match, pool, retry, address)
        return (Returning if lasts else Separate)(pool, retry, address)


def _is_function(value: object) -> bool:
    """Return whether a value is callable, but not a coroutine function."""
    return callable(value) and not inspect.iscoroutinefunction(value)
