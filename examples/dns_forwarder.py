"""A DNS forwarder behind dnsdist: knows each client by the PROXY header, and limits each of them.

python dns_forwarder.py --listen 127.0.0.1:5300 --upstream 9.9.9.9 --proxy 127.0.0.1

In dnsdist.conf:

    setLocal("0.0.0.0:53")
    newServer({address="127.0.0.1:5300", useProxyProtocol=true})
"""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter

import tomada

HEADER, SERVFAIL, RESPONSE = 12, 2, 0x80


def is_query(data: bytes) -> bool:
    """Return whether a datagram is a query: two servers that answer answers would never stop."""
    return len(data) > HEADER and not data[2] & RESPONSE


def is_answer(query: bytes, reply: bytes) -> bool:
    """Return whether a reply has the query's identifier and its question."""
    end = query.find(b"\0", HEADER) + 5
    return reply[:2] == query[:2] and reply[HEADER:end].lower() == query[HEADER:end].lower()


class Forwarder:
    """Asks the upstream resolver."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.queries: Counter[str] = Counter()
        self.client = tomada.Client(upstream, timeout=2, retries=3, match=is_answer)

    def answer(self, batch: list[tuple[bytes, tuple[str, int]]]) -> list[bytes | None]:
        """Ask for all queries of a batch at once."""
        queries = [data for data, _ in batch if is_query(data)]
        self.queries.update(address[0] for _, address in batch)
        # Identical queries share one request and its answer.
        found = self.client.request_many(dict.fromkeys(queries), 256, errors="return")
        answers = dict(zip(dict.fromkeys(queries), found, strict=True))
        return [self.reply(data, answers.get(data)) for data, _ in batch]

    @staticmethod
    def reply(query: bytes, answer: bytes | OSError | None) -> bytes | None:
        if isinstance(answer, bytes):
            return answer
        if not is_query(query):
            return None
        return query[:2] + bytes([query[2] | RESPONSE, SERVFAIL]) + query[4:]


def address(text: str) -> tuple[str, int]:
    """Parse HOST or HOST:PORT; the port of DNS is 53."""
    host, colon, port = text.rpartition(":")
    return (host, int(port)) if colon else (text, 53)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", type=address, default="127.0.0.1:5300", metavar="HOST[:PORT]")
    parser.add_argument("--upstream", type=address, default="9.9.9.9", metavar="HOST[:PORT]")
    parser.add_argument("--proxy", action="append", default=[], metavar="NETWORK")
    parser.add_argument("--rate", type=float, default=20.0, help="queries per second and client")
    arguments = parser.parse_args()
    forwarder = Forwarder(arguments.upstream)
    guard = tomada.Guard(rate=arguments.rate, burst=100)
    server = tomada.Server(
        arguments.listen,
        forwarder.answer,
        takes="batch",
        proxy=arguments.proxy,
        guard=guard,
    )
    with contextlib.suppress(KeyboardInterrupt), forwarder.client, server:
        print("listening on {}:{}".format(*server.address), flush=True)
        server.serve_forever()
    for client, queries in forwarder.queries.most_common(10):
        print(f"{queries} queries from {client}")


if __name__ == "__main__":
    main()
