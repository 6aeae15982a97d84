"""A NetFlow collector: checks the exports of routers, and publishes them to Apache Kafka.

python netflow_to_kafka.py --listen 0.0.0.0:2055 --kafka 127.0.0.1:9092

The routers' addresses are the messages' keys, so the exports of one router stay in one partition,
in their order. Consumers decode them: NetFlow versions 5, 9 and 10 (IPFIX) begin with the version.
"""

from __future__ import annotations

import argparse
import contextlib

import tomada
from tomada.sinks import Kafka, Sink

VERSIONS = {b"\0\5", b"\0\x09", b"\0\x0a"}


class Exports(Kafka):
    """Publishes only what looks like an export."""

    def __call__(self, batch: list[tuple[bytes, object, int | None]]) -> None:
        super().__call__([row for row in batch if row[0][:2] in VERSIONS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:2055", metavar="HOST:PORT")
    parser.add_argument("--kafka", default="127.0.0.1:9092", metavar="HOST:PORT,…")
    parser.add_argument("--topic", default="netflow")
    parser.add_argument("--allow", action="append", metavar="NETWORK", help="a router's network")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    sink: Sink = Exports(
        arguments.kafka, arguments.topic, key="source", config={"compression.type": "zstd"}
    )
    guard = tomada.Guard(allow=arguments.allow)
    # Routers send bursts every few seconds.
    server = tomada.Server((host, int(port)), sink, guard=guard, rcvbuf=4 << 20)
    with contextlib.suppress(KeyboardInterrupt), server:
        print("listening on {}:{}".format(*server.address), flush=True)
        server.serve_forever()
    stats = sink.stats()
    print(f"published {stats.published}, dropped {stats.dropped} of {stats.received} exports")


if __name__ == "__main__":
    main()
