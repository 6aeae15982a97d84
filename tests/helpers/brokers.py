"""Message brokers that sinks publish to, each in its own process."""

import asyncio
import contextlib
import json
import signal
import subprocess

import tools
from support import DEADLINE, HELPERS, Child, eventually


def send(serving, sock, numbers):
    """Send numbers to a server, no faster than it receives."""
    for number in numbers:
        before = serving.stats().received
        sock.send(b"%d" % number)
        eventually(lambda before=before: serving.stats().received > before)


# The most datagrams that may have been received but not yet dropped.
IN_HAND = 64


def holds(sink, capacity=100_000, in_hand=IN_HAND):
    """Check a sink's equation, and return its counters."""
    stats = sink.stats()
    assert stats.received == stats.published + stats.dropped + stats.in_flight
    assert 0 <= stats.in_flight <= capacity + in_hand
    return stats


def settle(sink, received, capacity=100_000):
    """Wait until a sink holds nothing, and return its counters."""

    def settled():
        stats = holds(sink, capacity)
        return stats.received == received and not stats.in_flight and stats

    return eventually(settled)


class NatsServer:
    """A ``nats-server`` with JetStream, which keeps its port and its store when it restarts."""

    def __init__(self, folder, host="127.0.0.1", before=()):
        """Start it. The words of ``before`` precede its command."""
        self._folder, self._host, self._before = folder, host, before
        self.port = -1
        self._process = None
        self.start()

    def start(self):
        ports = self._folder / "ports"
        ports.mkdir(exist_ok=True)
        for old in ports.iterdir():
            old.unlink()
        self._process = subprocess.Popen(
            [
                *self._before,
                *(tools.find("nats-server"), "-a", self._host, "-p", str(self.port), "-js"),
                *("-sd", str(self._folder / "store"), "--ports_file_dir", str(ports)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def address():
            assert self._process.poll() is None, "nats-server has exited"
            for path in ports.iterdir():
                text = path.read_text()
                if text.endswith("}"):
                    return json.loads(text)["nats"][0]
            return None

        self.port = int(eventually(address).rpartition(":")[2])
        self.url = f"nats://{self._host}:{self.port}"

    def signal(self, number):
        self._process.send_signal(number)

    def kill(self):
        self._process.kill()
        self._process.wait(DEADLINE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.send_signal(signal.SIGCONT)
        self.kill()

    def ask(self, question):
        """Call a coroutine function with JetStream's interface, and return its result."""
        import nats

        async def connected():
            connection = await nats.connect(self.url)
            try:
                return await question(connection.jetstream())
            finally:
                await connection.close()

        return asyncio.run(asyncio.wait_for(connected(), DEADLINE))

    def add_stream(self, name, **options):
        self.ask(lambda js: js.add_stream(name=name, subjects=[name, f"{name}.*"], **options))

    def purge(self, name):
        self.ask(lambda js: js.purge_stream(name))

    def count(self, name):
        async def read(js):
            return (await js.stream_info(name)).state.messages

        return self.ask(read)

    def last(self, name):
        """Return the payload of a stream's last message, or None if it has none."""

        async def read(js):
            last = (await js.stream_info(name)).state.last_seq
            return (await js.get_msg(name, last)).data if last else None

        return self.ask(read)

    def messages(self, name):
        """Return the messages of a stream: subject, headers and payload."""

        async def read(js):
            state = (await js.stream_info(name)).state
            found = [
                await js.get_msg(name, number)
                for number in range(state.first_seq, state.last_seq + 1)
            ]
            return [(message.subject, message.headers, message.data) for message in found]

        return self.ask(read)


class MockKafka:
    """The brokers that librdkafka simulates for its tests: see ``mock_kafka.py``.

    They keep their messages while they are down.
    """

    def __init__(self):
        self._program = Child(HELPERS / "mock_kafka.py")
        self.servers = self._program.line()

    def _tell(self, *words):
        self._program.tell(" ".join(map(str, words)) + "\n")
        assert self._program.line() == "done"

    def kill(self):
        """End all connections, and refuse new ones."""
        self._tell("kill")

    def start(self):
        """Accept connections again."""
        self._tell("start")

    def delay(self, seconds):
        """Delay the answer to each request."""
        self._tell("delay", round(seconds * 1000))

    def fill(self, requests):
        """Reject this many requests to store messages, like a broker whose disk is full."""
        self._tell("fill", requests)

    def empty(self):
        """Store messages again."""
        self._tell("empty")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._program.__exit__()

    def count(self, topic):
        """Return how many messages a topic has."""
        from confluent_kafka import TopicPartition

        with self._consumer() as consumer:
            partitions = consumer.list_topics(topic, timeout=DEADLINE).topics[topic].partitions
            ends = [
                consumer.get_watermark_offsets(TopicPartition(topic, each), timeout=DEADLINE)
                for each in partitions
            ]
        return sum(end - begin for begin, end in ends)

    @contextlib.contextmanager
    def _consumer(self):
        from confluent_kafka import Consumer

        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": "tests"})
        try:
            yield consumer
        finally:
            consumer.close()

    def messages(self, topic, count):
        """Read messages of a topic: key, headers, payload and partition."""
        from confluent_kafka import OFFSET_BEGINNING, TopicPartition

        found = []
        with self._consumer() as consumer:

            def partitions_of():  # empty until something is published
                return consumer.list_topics(topic, timeout=DEADLINE).topics[topic].partitions

            def enough():
                message = consumer.poll(0.1)
                if message is not None and message.error() is None:
                    headers = dict(message.headers() or ())
                    found.append((message.key(), headers, message.value(), message.partition()))
                return len(found) == count

            partitions = eventually(partitions_of)
            # Subscribing would take seconds, although this is the only member of its group.
            consumer.assign([TopicPartition(topic, each, OFFSET_BEGINNING) for each in partitions])
            eventually(enough)
        return found
