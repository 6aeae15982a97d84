"""Threads that share a client: none waits for another one's socket, and each has its deadline."""

import math
import threading
from time import monotonic

import pytest

import tomada
from answering import LONG, Server, echo, silence
from support import DEADLINE, Call, eventually
from tomada._client import pool
from tomada._client.connection import Connection, close_all
from tomada._client.retry import SHORTEST_WAIT

TIMEOUT = 0.1


class Stop:
    """Stops a method of the next connection, as a system call may that other threads run behind."""

    def __init__(self, monkeypatch, name):
        self.is_stopped, self.go_on = threading.Event(), threading.Event()
        method = getattr(Connection, name)

        def stop(connection, *arguments):
            if not self.is_stopped.is_set():
                self.is_stopped.set()
                assert self.go_on.wait(DEADLINE)
            return method(connection, *arguments)

        monkeypatch.setattr(Connection, name, stop)


def test_thread_that_opens_a_socket_holds_up_no_other(inet, monkeypatch):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        stop = Stop(monkeypatch, "__init__")
        call = Call(client.request, b"first")
        assert stop.is_stopped.wait(DEADLINE)
        assert client.request(b"second") == b"second"
        stop.go_on.set()
        assert call.result() == b"first"


@pytest.mark.parametrize("way", ["discard", "retire"])
def test_thread_that_closes_a_socket_holds_up_no_other(inet, monkeypatch, way):
    monkeypatch.setattr(pool, "MOST_RESTING", 0)
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        inside = client._pool  # noqa: SLF001
        connection = inside.take()
        stop = Stop(monkeypatch, "end_session")
        call = Call(getattr(inside, way), connection)
        assert stop.is_stopped.wait(DEADLINE)
        assert client.request(b"x") == b"x"
        stop.go_on.set()
        call.result()


def test_thread_that_closes_the_client_holds_up_no_other(inet, monkeypatch):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        client.request(b"x")
        stop = Stop(monkeypatch, "end_session")
        call = Call(client.close)
        assert stop.is_stopped.wait(DEADLINE)
        inside = client._pool  # noqa: SLF001
        assert inside._lock.acquire(timeout=DEADLINE)  # noqa: SLF001
        inside._lock.release()  # noqa: SLF001
        stop.go_on.set()
        call.result()


def test_duplicate_is_not_forgotten_if_another_thread_counts_meanwhile(inet):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        client.request(b"x")
        inside = client._pool  # noqa: SLF001
        inside._note_duplicate()  # noqa: SLF001
        inside.watched = 5  # as the other thread sets it, after it has read 6
        for _ in range(2):
            client.request(b"x")
        assert inside.watched == math.inf


def test_request_that_waited_for_its_socket_keeps_its_deadline(inet, monkeypatch):
    waits = []
    with Server(inet, silence) as server, tomada.Client(server.address, TIMEOUT, 0) as client:
        stop = Stop(monkeypatch, "__init__")
        call = Call(client.request, b"x")
        assert stop.is_stopped.wait(DEADLINE)
        begun = monotonic()  # after the request
        eventually(lambda: monotonic() > begun + TIMEOUT)
        set_wait = Connection.set_wait
        monkeypatch.setattr(
            Connection, "set_wait", lambda own, wait: (waits.append(wait), set_wait(own, wait))
        )
        stop.go_on.set()
        with pytest.raises(TimeoutError, match=r"1 attempt in \d\.\d+ s"):
            call.result()
    assert max(waits) == SHORTEST_WAIT


def test_request_closes_few_of_the_sockets_that_others_left(inet, monkeypatch):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        inside = client._pool  # noqa: SLF001
        left = [inside.take() for _ in range(20)]
        for connection in left:
            inside.retire(connection)
        monkeypatch.setattr(pool, "MOST_RESTING", 0)
        calls = []

        def note_and_close(ended):
            calls.append(ended)
            close_all(ended)

        monkeypatch.setattr(pool, "close_all", note_and_close)
        inside.retire(inside.take())
        closed = [connection for connection in left if connection.fileno() < 0]
        assert closed == left[: pool.TRIMMED]
        # In one call: after each, a thread may get the interpreter's lock back late.
        assert calls == [closed]


def test_client_that_was_closed_while_a_socket_was_opened_has_none(inet, monkeypatch):
    with Server(inet, echo) as server:
        client = tomada.Client(server.address, LONG)
        stop = Stop(monkeypatch, "__init__")
        call = Call(client.request, b"x")
        assert stop.is_stopped.wait(DEADLINE)
        client.close()
        stop.go_on.set()
        with pytest.raises(OSError, match="the client is closed"):
            call.result()
        assert not client._pool._all  # noqa: SLF001
