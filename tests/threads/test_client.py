"""One client used by several threads: each gets the replies to its own requests."""

import errno
import threading

import pytest

import tomada
from answering import Server, same
from support import RACES, eventually, together

pytestmark = pytest.mark.thread_unsafe(reason="it starts threads itself")


@pytest.fixture
def echo(kind):
    """Run a plain server that echoes each request."""
    with Server(kind, lambda data: [data]) as serving:
        yield serving


def requests(count):
    thread = threading.get_ident()
    return [b"%d %d" % (thread, number) for number in range(count)]


def test_client_threads_get_their_own_replies(echo, match):
    with tomada.Client(echo.address, timeout=30.0, match=match) as client:

        def ask():
            for data in requests(20 * RACES):
                assert client.request(data) == data

        def ask_many():
            for _ in range(RACES):
                mine = requests(30)
                assert client.request_many(mine, window=8) == mine

        together(ask, ask, ask, ask_many, ask_many)


@pytest.mark.parametrize("way", ["one", "many"])
def test_closed_client_raises_in_every_thread(echo, match, way):
    for _ in range(2 * RACES):
        client, answered = tomada.Client(echo.address, timeout=30.0, match=match), []

        def ask(client=client, answered=answered):
            try:
                while True:
                    mine = requests(8)
                    if way == "one":
                        replies = [client.request(mine[0])]
                    else:
                        replies = client.request_many(mine, window=4)
                    assert replies == mine[: len(replies)]
                    answered.append(None)
            except OSError as error:
                return error.errno, str(error)

        def close(client=client, answered=answered):
            eventually(lambda: len(answered) > 5)
            client.close()

        *ends, _, _ = together(ask, ask, ask, close, close)
        assert {number for number, _ in ends} == {errno.EBADF}
        assert all("the client is closed" in text for _, text in ends)


def test_clients_open_and_close_in_every_thread(echo):
    def ask():
        for data in requests(2 * RACES):
            with tomada.Client(echo.address, timeout=30.0, match=same) as client:
                assert client.request(data) == data

    together(ask, ask, ask, ask)
