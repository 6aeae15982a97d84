"""A plain standard-library socket in its own process, which executes commands.

It reads one command per line from standard input and answers each with one line; the lines are
JSON. Its first line, before any command, is its own address. It exits when its input ends.
"""

import json
import os
import socket
import sys

# Long enough for a busy machine, in seconds. If a test fails sooner, it closes the input.
DEADLINE = 30


def dumps(value):
    """Format an object as a line of JSON, with bytes in hexadecimal."""
    return json.dumps(value, default=lambda data: {"hex": data.hex()}) + "\n"


def loads(line):
    """Parse a line of JSON made by :func:`dumps`; every list becomes a tuple."""
    return tuples(json.loads(line, object_hook=unhex))


def unhex(item):
    return bytes.fromhex(item["hex"]) if "hex" in item else item


def tuples(value):
    if isinstance(value, dict):
        return {name: tuples(item) for name, item in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def collect(sock, count):
    """Receive a number of datagrams, and report them with their senders."""
    return [sock.recvfrom(1 << 17) for _ in range(count)]


def drain(sock):
    """Report the queued datagrams, without waiting."""
    received = []
    sock.setblocking(False)
    try:
        while True:
            received.append(sock.recvfrom(1 << 17))
    except BlockingIOError:
        return received
    finally:
        sock.settimeout(DEADLINE)


def echo(sock, count):
    """Send a number of datagrams back to their senders."""
    for _ in range(count):
        sock.sendto(*sock.recvfrom(1 << 17))


def connect(sock, to):
    sock.connect(to)


def send(sock, datagrams, to):
    """Send datagrams to an address or, without one, to the connected peer."""
    for data in datagrams:
        if to is None:
            sock.send(data)
        else:
            sock.sendto(data, to)


def send_file(sock, text, to):
    """Send the descriptor of a file that contains a text."""
    file = os.memfd_create("text")
    os.write(file, text.encode())
    os.lseek(file, 0, os.SEEK_SET)
    sock.connect(to)
    socket.send_fds(sock, [b"a file"], [file])
    os.close(file)


def receive_file(sock):
    """Receive a file's descriptor, and report the file's text."""
    data, (file,), _, _ = socket.recv_fds(sock, 100, 1)
    with os.fdopen(file, encoding="utf-8") as text:
        return data, text.read()


COMMANDS = {
    command.__name__: command
    for command in (collect, connect, drain, echo, receive_file, send, send_file)
}


def main(family, address):
    with socket.socket(int(family), socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.bind(loads(address))
        answer = sock.getsockname()
        while True:
            sys.stdout.write(dumps(answer))
            sys.stdout.flush()
            line = sys.stdin.readline()
            if not line:
                return
            command = loads(line)
            answer = COMMANDS[command.pop("do")](sock, **command)


if __name__ == "__main__":
    main(*sys.argv[1:])
