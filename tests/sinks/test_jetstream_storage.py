"""The JetStream sink while the server's disk is full, or the stream's consumer is slow."""

import subprocess
from functools import partial
from pathlib import Path

import pytest

import skips
from brokers import NatsServer, send
from brokers import holds as holds_up_to
from serving import client, server
from support import eventually

nats = pytest.importorskip("nats")

from tomada.sinks import JetStream  # noqa: E402 - needs the package above

CAPACITY = 5000
holds = partial(holds_up_to, capacity=CAPACITY, in_hand=0)

pytestmark = [
    pytest.mark.thread_unsafe(reason="it runs programs"),
    # nats-py leaves its sockets to the garbage collector when the server is killed.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def disk(tmp_path):
    """Make a small file system in a mount namespace; return words that run a program there."""
    if not skips.is_privileged():
        pytest.skip(f"{skips.NO_ROOT} mount a file system")
    skips.program("nats-server")
    unshare, enter = skips.program("unshare"), skips.program("nsenter")
    store = tmp_path / "store"
    store.mkdir()
    mount = f"mount -t tmpfs -o size=4m none {store} && echo mounted && read _"
    keeper = subprocess.Popen(
        [unshare, "--mount", "sh", "-c", mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with keeper:
        assert keeper.stdout.readline() == b"mounted\n"
        namespace = f"--mount=/proc/{keeper.pid}/ns/mnt"
        yield (enter, namespace), Path(f"/proc/{keeper.pid}/root{store}")
        keeper.stdin.close()


def fill(path):
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk_loses_nothing_that_was_accepted(disk, tmp_path, workers):
    before, store = disk
    with NatsServer(tmp_path, before=before) as broker:
        broker.add_stream("udp")
        sink = JetStream(broker.url, "udp", capacity=CAPACITY, timeout=1, window=16)
        with server(sink, workers=workers, drain=60) as serving, client(serving.address) as sock:
            send(serving, sock, range(100))
            eventually(lambda: holds(sink).published == 100)
            fill(store / "filler")
            sent = 100
            # It fits into no buffer between the server and the disk.
            while not (holds(sink).in_flight and sent >= 1000):
                assert sent < CAPACITY - 100
                send(serving, sock, range(sent, sent + 100))
                sent += 100
            with pytest.raises((nats.errors.Error, TimeoutError)):
                broker.ask(lambda js: js.publish("udp", bytes(100_000), timeout=1))
            # nats-server has switched JetStream off, and needs a restart when there is room.
            (store / "filler").unlink()
            broker.kill()
            broker.start()
            send(serving, sock, range(sent, sent + 100))
            sent += 100
            eventually(lambda: (stats := holds(sink)).received == sent and not stats.in_flight)
        stats = holds(sink)
        assert (stats.published, stats.dropped) == (sent, 0)
        assert {int(data) for _, _, data in broker.messages("udp")} == set(range(sent))


def test_slow_consumer_of_a_work_queue(broker):
    """The stream holds few messages, and removes those that its consumer has processed."""
    broker.add_stream("work", retention="workqueue", max_msgs=10, discard="new")
    sink = JetStream(broker.url, "work", capacity=CAPACITY)
    consumed = []

    async def consume(js):
        subscription = await js.pull_subscribe("work", "slow")
        while len(consumed) < 100:
            for message in await subscription.fetch(3):
                consumed.append(int(message.data))
                await message.ack_sync()
            holds(sink)

    with server(sink) as serving, client(serving.address) as sock:
        send(serving, sock, range(100))
        eventually(lambda: holds(sink).published == 10)
        eventually(lambda: holds(sink).in_flight == 90)
        broker.ask(consume)
        eventually(lambda: not holds(sink).in_flight)
    stats = holds(sink)
    assert (stats.published, stats.dropped) == (100, 0)
    assert sorted(consumed) == list(range(100))
