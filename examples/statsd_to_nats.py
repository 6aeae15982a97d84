"""A statsd collector for several machines: publishes what programs send to NATS JetStream.

python statsd_to_nats.py --listen 0.0.0.0:8125 --nats nats://127.0.0.1:4222 --workers 2

Run it on as many machines as needed, behind a load balancer for UDP. Each datagram becomes a
message of the stream "statsd" with its sender and its time; with --pack, thousands become one.
"""

from __future__ import annotations

import argparse
import contextlib

import tomada
from tomada.sinks import JetStream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:8125", metavar="HOST:PORT")
    parser.add_argument("--nats", default="nats://127.0.0.1:4222", metavar="URL")
    parser.add_argument("--subject", default="statsd")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pack", action="store_true", help="publish Arrow record batches")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    sink = JetStream(arguments.nats, arguments.subject, pack="arrow" if arguments.pack else None)
    # A line of statsd is short, and a host that sends more than this has a fault.
    guard = tomada.Guard(max_size=8192, rate=50_000)
    server = tomada.Server((host, int(port)), sink, workers=arguments.workers, guard=guard)
    with contextlib.suppress(KeyboardInterrupt), server:
        print("listening on {}:{}".format(*server.address), flush=True)
        server.serve_forever()
    stats = sink.stats()
    print(f"published {stats.published}, dropped {stats.dropped} of {stats.received} datagrams")


if __name__ == "__main__":
    main()
