"""Engines that sinks publish to, as programs of their own."""

import asyncio
import json
import signal
import subprocess

import tools
from support import DEADLINE, eventually


def send(serving, sock, numbers):
    """Send numbers to a server, no faster than it receives."""
    for number in numbers:
        before = serving.stats().received
        sock.send(b"%d" % number)
        eventually(lambda before=before: serving.stats().received > before)


class NatsServer:
    """A ``nats-server`` with JetStream, which keeps its port and its store when it restarts."""

    def __init__(self, folder, host="127.0.0.1"):
        self._folder, self._host = folder, host
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
        """Run a coroutine function on JetStream's interface, and return its result."""
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
    """The brokers that librdkafka simulates for its tests, in this process."""

    def __init__(self):
        from confluent_kafka import Producer

        self._owner = Producer({"test.mock.num.brokers": 2})
        brokers = self._owner.list_topics(timeout=DEADLINE).brokers.values()
        self.servers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def messages(self, topic, count):
        """Read messages of a topic: key, headers, payload and partition."""
        from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": "tests"})

        def partitions_of():  # none until something was published
            return consumer.list_topics(topic, timeout=DEADLINE).topics[topic].partitions

        partitions = eventually(partitions_of)
        # Subscribing would take seconds, for a group of which this is the only member.
        consumer.assign([TopicPartition(topic, each, OFFSET_BEGINNING) for each in partitions])
        found = []

        def enough():
            message = consumer.poll(0.1)
            if message is not None and message.error() is None:
                headers = dict(message.headers() or ())
                found.append((message.key(), headers, message.value(), message.partition()))
            return len(found) == count

        try:
            eventually(enough)
        finally:
            consumer.close()
        return found
