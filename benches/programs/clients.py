"""Clients that send requests to a server, one after another or several at once."""

from __future__ import annotations

from collections.abc import Callable

from benches.programs.run import Run
from tomada import Client

WINDOW = 32
# The number of requests of one request_many().
MANY = 20 * WINDOW


def standard(run: Run) -> None:
    """Send requests as a careful programmer would: with a timeout, retries, and a reply check."""
    sock = run.open()
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

    ask_each(run, ask)


def request(run: Run) -> None:
    with Client(("127.0.0.1", run.port)) as client:
        ask_each(run, client.request)


def ask_each(run: Run, ask: Callable[[bytes], bytes]) -> None:
    run.watch_for_end()
    payloads, counter = run.payloads(64), run.counter
    while not run.is_stopped:
        for payload in payloads:
            ask(payload)
            counter[0] += 1


def request_many(run: Run, match: Callable[[bytes, bytes], bool] | None = None) -> None:
    run.watch_for_end()
    payloads, counter = run.payloads(MANY), run.counter
    with Client(("127.0.0.1", run.port), match=match) as client:
        while not run.is_stopped:
            counter[0] += len(client.request_many(payloads, WINDOW))


def request_many_matched(run: Run) -> None:
    request_many(run, lambda request, reply: request[:8] == reply[:8])
