"""Clients that ask a server, one request after the other or several at once."""

from __future__ import annotations

from collections.abc import Callable

from benches.programs.run import Run
from tomada import Client

WINDOW = 32
# What one call of request_many() asks for.
MANY = 20 * WINDOW


def standard(run: Run) -> None:
    """As a careful programmer writes it: a timeout, a few attempts, and the right reply."""
    sock, counter = run.open(), run.counter
    sock.connect(("127.0.0.1", run.port))
    sock.settimeout(0.5)

    def ask(request: bytes) -> bytes:
        for _ in range(4):
            sock.send(request)
            try:
                while (reply := sock.recv(2048))[:8] != request[:8]:
                    pass
            except TimeoutError:
                continue
            return reply
        raise TimeoutError

    run.watch_for_end()
    payloads = run.payloads(64)
    while not run.is_stopped:
        for payload in payloads:
            ask(payload)
            counter[0] += 1


def request(run: Run) -> None:
    run.watch_for_end()
    payloads, counter = run.payloads(64), run.counter
    with Client(("127.0.0.1", run.port)) as client:
        ask = client.request
        while not run.is_stopped:
            for payload in payloads:
                ask(payload)
                counter[0] += 1


def request_many(run: Run) -> None:
    ask_many(run, None)


def request_many_matched(run: Run) -> None:
    ask_many(run, lambda request, reply: request[:8] == reply[:8])


def ask_many(run: Run, match: Callable[[bytes, bytes], bool] | None) -> None:
    run.watch_for_end()
    payloads, counter = run.payloads(MANY), run.counter
    with Client(("127.0.0.1", run.port), match=match) as client:
        while not run.is_stopped:
            counter[0] += len(client.request_many(payloads, WINDOW))
