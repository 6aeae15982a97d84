"""Reads what a sink with pack="arrow" has published to NATS JetStream, with Polars.

python read_stream.py --nats nats://127.0.0.1:4222 --subject statsd

Prints the senders with the most datagrams.
"""

from __future__ import annotations

import argparse
import asyncio

import nats
import polars as pl


async def read(url: str, subject: str, batches: int) -> pl.DataFrame:
    """Read record batches that were not read before, until none comes for a second."""
    connection = await nats.connect(url)
    stream = connection.jetstream()
    subscription = await stream.pull_subscribe(subject, durable="read_stream")
    frames = []
    try:
        while len(frames) < batches:
            for message in await subscription.fetch(100, timeout=1):
                frames.append(pl.read_ipc_stream(message.data))
                await message.ack()
    except TimeoutError:
        pass
    await connection.close()
    return pl.concat(frames) if frames else pl.DataFrame()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nats", default="nats://127.0.0.1:4222", metavar="URL")
    parser.add_argument("--subject", default="statsd")
    parser.add_argument("--batches", type=int, default=10_000, help="at most this many")
    arguments = parser.parse_args()
    frame = asyncio.run(read(arguments.nats, arguments.subject, arguments.batches))
    if frame.is_empty():
        print("nothing new")
        return
    senders = frame.group_by("host").agg(
        pl.len().alias("datagrams"),
        pl.col("data").bin.size().sum().alias("bytes"),
        pl.from_epoch(pl.col("timestamp_ns").max(), "ns").alias("last"),
    )
    for row in senders.sort("datagrams", descending=True).iter_rows(named=True):
        print("{datagrams} datagrams of {bytes} bytes from {host}, last {last}".format_map(row))


if __name__ == "__main__":
    main()
