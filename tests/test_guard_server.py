"""Guards of servers, in one process and in several."""

import pytest

import tomada
from serving import ask, client, server


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_answers_whom_its_guard_lets_in(workers):
    guard = tomada.Guard(deny=["127.0.0.2"])
    with server(lambda data, _: data, guard=guard, workers=workers) as running:
        with client(running.address, local=("127.0.0.2", 0), timeout=0.2) as denied:
            denied.send(b"let me in")
            for _ in range(10):
                assert ask(running.address) == b"ping"
            with pytest.raises(TimeoutError):
                denied.recv(100)
        assert running.stats().received == 10


def test_a_guard_is_a_guard():
    with pytest.raises(TypeError), server(lambda data, _: data, guard="127.0.0.0/8"):
        pass
