"""Signals at every line of a request: the client goes on, and returns only replies to requests."""

import contextlib
import errno
import gc
import itertools
from functools import partial

import pytest

import tomada
from answering import LONG, Server, same, silence
from families import LONG as LONG_FORM
from lines import AtLine
from support import FREE, open_descriptors
from tomada._client import pool
from tomada._client.ports import PORTS

pytestmark = [
    pytest.mark.thread_unsafe(reason="only the main thread handles signals"),
    # An exception may come right after a socket was opened, before anything knows it.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

# With a port of its own for each request, a match, or a key.
WAYS = {"port": {}, "match": {"match": same}, "key": {"key": bytes}}
# Another request is sent this often: that takes 50 ms, once it is known how long a reply takes.
STEP = {"answered": 1, "repeated": 5} if LONG_FORM else {"answered": 7, "repeated": 61}


class AlarmError(Exception):
    """The exception that a handler raises."""


def unrecorded(server, client):
    """Return the ports from which a client has asked that another request may get."""
    inside = client._pool  # noqa: SLF001
    open_ones = {sock.getsockname()[1] for sock in inside._all if sock.fileno() >= 0}  # noqa: SLF001
    asked = {sender[1] for _, sender in server.asked}
    return asked - open_ones - PORTS.avoided(server.address)


class Once:
    """Replies to a request when it is sent for the second time if it begins with "repeated"."""

    def __init__(self):
        self._seen = set()

    def __call__(self, data):
        if data.startswith(b"repeated") and data not in self._seen:
            self._seen.add(data)
            return []
        return [data]


def single(client, name):
    return [client.request(name)] == [name]


def many(client, name):
    requests = [b"%s, %d of many" % (name, number) for number in range(3)]
    return client.request_many(requests, window=2) == requests


every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
every_ask = pytest.mark.parametrize("ask", [single, many])
every_kind = pytest.mark.parametrize("kind_of_request", STEP)


@pytest.fixture
def server(inet):
    with Server(inet, Once()) as server:
        with tomada.Client(server.address, LONG) as client:
            client.request(b"opens what the process keeps")
        yield server


@pytest.fixture(autouse=True)
def _nothing_left_open(server):  # noqa: ARG001 - it is opened before
    """Check that no descriptor is left, and let the collector run in no line of a request."""
    gc.collect()
    gc.disable()
    before = open_descriptors()
    yield
    gc.enable()
    gc.collect()
    assert open_descriptors() == before


def rounds(server, way, kind_of_request, action):
    """Yield clients, each with a request and what calls ``action(client, number)`` at one line.

    The last one has fewer lines.
    """
    for number in itertools.count(1, STEP[kind_of_request]):
        with tomada.Client(server.address, LONG, **way) as client:
            assert single(client, b"first %d" % number)
            at = AtLine(number, partial(action, client, number))
            yield client, b"%s %d" % (kind_of_request.encode(), number), at
        if not at.is_over:
            break
    assert FREE or number > 10  # a trace function may miss lines without the global lock


@every_way
@every_ask
@every_kind
def test_exception_at_any_line_of_a_request_leaves_a_usable_client(
    server, way, ask, kind_of_request
):
    def alarm(_client, _number):
        raise AlarmError

    for client, name, at in rounds(server, way, kind_of_request, alarm):
        try:
            with at:
                assert ask(client, name)
        except AlarmError:
            assert at.is_over
        for later in range(3):
            assert ask(client, b"later %d than %s" % (later, name)), at.place


@every_way
@every_ask
@every_kind
def test_request_in_a_signal_handler_at_any_line_of_another(server, way, ask, kind_of_request):
    inner = []

    def handle(client, number):
        inner.append(ask(client, b"inner %d" % number))

    for client, name, at in rounds(server, way, kind_of_request, handle):
        with at:
            assert ask(client, name)
        assert inner == [True] * at.is_over, at.place
        inner.clear()


@every_way
@every_ask
@every_kind
def test_close_in_a_signal_handler_at_any_line_of_a_request(server, way, ask, kind_of_request):
    def close(client, _number):
        client.close()

    for client, name, at in rounds(server, way, kind_of_request, close):
        error = None
        try:
            with at:
                assert ask(client, name)
        except OSError as caught:
            error = caught
        assert error is None or error.errno == errno.EBADF, at.place


def test_exception_at_any_line_of_an_unanswered_request_gives_no_port_up(inet, monkeypatch):
    """Where a late reply may arrive: such a port is open, or avoided."""

    def alarm():
        raise AlarmError

    monkeypatch.setattr(pool, "MOST_RESTING", 0)
    with Server(inet, silence) as silent:
        for number in itertools.count(1, 1 if LONG_FORM else 3):
            with tomada.Client(silent.address, 0.002, retries=0) as client:
                at = AtLine(number, alarm)
                with contextlib.suppress(AlarmError, TimeoutError), at:
                    client.request(b"x")
                gc.collect()
                assert unrecorded(silent, client) == set(), at.place
            if not at.is_over:
                break
    assert FREE or number > 100
