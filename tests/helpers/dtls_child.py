"""A DTLS server in its own process, which replies in upper case and has a pre-shared key.

It prints its address and then, for each line of input, a line with its counters and its memory.
"""

import contextlib
import json
import sys
from pathlib import Path

from support import Child

FOLDER = Path(__file__).parent


def memory(pid="self"):
    """Return the resident memory of a process in bytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


class ServerChild:
    """The server as seen by the test; ``settings`` are attributes of its context."""

    def __init__(self, **settings):
        self._child = Child(__file__, json.dumps(settings))
        self.address = tuple(json.loads(self._child.line()))

    def state(self):
        """Return the counters of the server's sessions, and its ``memory`` in bytes."""
        self._child.tell("state\n")
        return json.loads(self._child.line())

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self._child.__exit__(*details)


def main():
    from dtls_pairs import psk_server, serving

    context = psk_server()
    context.set_ciphers("PSK-AES128-GCM-SHA256")
    for name, value in json.loads(sys.argv[1]).items():
        setattr(context, name, value)
    with serving(context) as server:
        print(json.dumps(server.address), flush=True)
        for _ in sys.stdin:
            state = server.dtls_stats() | {"received": server.stats().received, "memory": memory()}
            print(json.dumps(state), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
