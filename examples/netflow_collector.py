"""A NetFlow v5 collector: routers' reports of flows in numpy arrays, no Python object for each.

python netflow_collector.py --listen 0.0.0.0:2055 --every 10
"""

from __future__ import annotations

import argparse
import ipaddress
import time

import numpy as np

from tomada import Batch, socket

VERSION = 5
HEADER = 24
RECORD = np.dtype(
    [
        ("source", ">u4"),
        ("destination", ">u4"),
        ("next_hop", ">u4"),
        ("input", ">u2"),
        ("output", ">u2"),
        ("packets", ">u4"),
        ("octets", ">u4"),
        ("first", ">u4"),
        ("last", ">u4"),
        ("source_port", ">u2"),
        ("destination_port", ">u2"),
        ("pad", "u1"),
        ("tcp_flags", "u1"),
        ("protocol", "u1"),
        ("tos", "u1"),
        ("source_as", ">u2"),
        ("destination_as", ">u2"),
        ("source_mask", "u1"),
        ("destination_mask", "u1"),
        ("pad2", ">u2"),
    ]
)


def records(batch: Batch) -> np.ndarray:
    """Return the flows of all datagrams of a batch as one array."""
    memory = np.frombuffer(batch, "u1")
    offsets, lengths = np.asarray(batch.offsets), np.asarray(batch.lengths)
    # Keep datagrams of version 5 whose length matches their number of records.
    long_enough = lengths >= HEADER
    offsets, lengths = offsets[long_enough].astype("i8"), lengths[long_enough]
    header = memory[offsets[:, None] + np.arange(4)].view(">u2")
    counts = header[:, 1].astype("i8")
    good = (header[:, 0] == VERSION) & (lengths == HEADER + counts * RECORD.itemsize)
    offsets, counts = offsets[good], counts[good]
    # The start of each record follows from its datagram's offset and its index in the datagram.
    number = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    starts = np.repeat(offsets + HEADER, counts) + number * RECORD.itemsize
    return memory[starts[:, None] + np.arange(RECORD.itemsize)].view(RECORD).ravel()


class Talkers:
    """Counts the bytes that each source has sent."""

    def __init__(self) -> None:
        self.octets: dict[int, int] = {}
        self.flows = self.datagrams = 0

    def add(self, flows: np.ndarray, datagrams: int) -> None:
        self.flows += len(flows)
        self.datagrams += datagrams
        sources, where = np.unique(flows["source"], return_inverse=True)
        sums = np.zeros(len(sources), "u8")
        np.add.at(sums, where, flows["octets"])
        for source, octets in zip(sources.tolist(), sums.tolist(), strict=True):
            self.octets[source] = self.octets.get(source, 0) + octets

    def report(self, seconds: float, drops: int) -> None:
        print(
            f"{self.flows} flows in {self.datagrams} datagrams, "
            f"{self.flows / seconds:,.0f} flows/s, {drops} datagrams dropped"
        )
        for source, octets in sorted(self.octets.items(), key=lambda item: -item[1])[:10]:
            print(f"{ipaddress.IPv4Address(source)} {octets}", flush=True)


def collect(sock: socket.socket, every: float) -> None:
    batch, talkers, since = Batch(256), Talkers(), time.monotonic()
    try:
        print("listening on {}:{}".format(*sock.getsockname()), flush=True)
        while True:
            sock.settimeout(max(since + every - time.monotonic(), 0.001))
            try:
                count = sock.recv_batch(batch)
                talkers.add(records(batch), count)
            except TimeoutError:
                pass
            if (elapsed := time.monotonic() - since) >= every:
                talkers.report(elapsed, sock.stats().kernel_drops)
                talkers, since = Talkers(), time.monotonic()
    except KeyboardInterrupt:
        talkers.report(time.monotonic() - since, sock.stats().kernel_drops)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="0.0.0.0:2055")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between reports")
    given = parser.parse_args()
    host, _, port = given.listen.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.gro = True  # a router sends runs of full datagrams
        collector.bind((host, int(port)))
        collect(collector, given.every)
